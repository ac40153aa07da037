"""What a Fisher computation gives, and its file: safetensors, with what it is beside the numbers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from forgetting.fisher.estimators import ESTIMATORS, Estimator
from forgetting.fisher.shards import refuse

FORMAT = "forgetting.diagonal_fisher"


@dataclass(frozen=True)
class DiagonalFisher:
    """The diagonal of the Fisher information, and what it is.

    Attributes:
        values: Parameter name (a tied parameter once) to a tensor of its shape: the mean over examples of the
            squared gradient of log p(example); for ``batched`` the mean over batches. Of a sharded model a DTensor,
            divided as the parameter is.
        estimator: See :func:`forgetting.fisher.diagonal_fisher`.
        samples: Draws per example, for ``sample``.
        examples: Examples averaged over.
        tokens: Predicted labels in them.
    """

    values: dict[str, Tensor]
    estimator: Estimator
    examples: int
    tokens: int
    samples: int | None = None

    @property
    def unit(self) -> str:
        """What is squared: the gradient of an example (a sequence), or of a batch's mean, or of a position."""
        return {"batched": "batch", "positionwise": "position"}.get(self.estimator, "example")

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, at once and whole; its metadata tell the estimator, unit and counts.

        Raises:
            OSError, SafetensorError: if it cannot be written.
            ValueError: of a sharded model's: no process has the whole.
        """
        from safetensors.torch import save_file

        refuse("a file", self.values.values())

        about = {
            "format": FORMAT,
            "estimator": self.estimator,
            "samples": self.samples,
            "unit": self.unit,
            "normalisation": "mean over units",
            "examples": self.examples,
            "tokens": self.tokens,
        }
        path = Path(path)
        partial = path.with_name(path.name + ".tmp")
        values = {name: value.detach().cpu().contiguous() for name, value in self.values.items()}
        try:
            partial.touch()  # with the mode of any new file: safetensors would keep it to its owner
            mode = partial.stat().st_mode
            save_file(values, partial, metadata={"about": json.dumps(about)})
            partial.chmod(mode)
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, path: str | Path, model: nn.Module | None = None) -> DiagonalFisher:
        """Read a file that :meth:`save` wrote.

        Args:
            path: The file.
            model: If given, the file must fit it: every name is one of its parameters, of the same shape.

        Raises:
            ValueError: if it is another kind of file, or does not fit.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {}).get("about", "{}"))
                values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError, RecursionError, MemoryError) as error:
            problem = " ".join(str(error).split())
            raise ValueError(f"{str(path)!r} is not a whole safetensors file ({problem})") from None
        if not _describes(about):
            raise ValueError(f"{str(path)!r} is a safetensors file, but not one of a diagonal Fisher information")
        for name, value in values.items():
            if not value.is_floating_point() or not bool((value >= 0).all()) or bool(value.isinf().any()):
                raise ValueError(f"{str(path)!r}: {name} is not a mean of squares: it needs finite numbers from 0 on")
        if model is not None:
            _check_fit(values, model, path)
        return cls(
            values=values,
            estimator=cast(Estimator, about["estimator"]),
            examples=about["examples"],
            tokens=about["tokens"],
            samples=about["samples"],
        )


def _describes(about: Any) -> bool:
    """Whether a file's metadata are what :meth:`DiagonalFisher.save` writes."""
    if not isinstance(about, dict) or about.get("format") != FORMAT or about.get("estimator") not in ESTIMATORS:
        return False
    counts = [about.get("examples"), about.get("tokens")]
    if about["estimator"] == "sample":
        counts.append(about.get("samples"))
    elif about.get("samples") is not None:
        return False
    return all(isinstance(count, int) and not isinstance(count, bool) and count >= 0 for count in counts)


def _check_fit(values: dict[str, Tensor], model: nn.Module, path: str | Path) -> None:
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    for name, value in values.items():
        if name not in shapes:
            raise ValueError(f"{str(path)!r}: the model has no parameter {name}")
        if shapes[name] != tuple(value.shape):
            raise ValueError(
                f"{str(path)!r}: parameter {name} has shape {tuple(value.shape)}, the model's has {shapes[name]}"
            )
