"""Edits of a finished fine-tune: base and tuned weights mixed so that each stands for a remedy that was not trained.

| edit | weights | stands for |
|---|---|---|
| interpolation | base + α Δ | a lower learning rate; WiSE-FT, of which it is the definition |
| revert | base's in some layers, tuned in the rest | training with these layers frozen |
| rank | base + Δ truncated to rank r in the linear layers, base elsewhere | LoRA of rank r |
| fisher | base's where the Fisher information is greatest, tuned in the rest | EWC |

None is what retraining would give: there the rest of the weights would have adapted. How well each predicts it is
measured by the study ``audit_advice`` (:mod:`forgetting.audit.reliability`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from forgetting.errors import UsageError
from forgetting.weights import between, exchange, swapped

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from forgetting.fisher import DiagonalFisher
    from forgetting.weights import Weights

Kind = Literal["interpolation", "revert", "rank", "fisher"]
STANDS_FOR: dict[Kind, str] = {
    "interpolation": "a lower learning rate (WiSE-FT)",
    "revert": "freezing these layers",
    "rank": "LoRA",
    "fisher": "EWC",
}


@dataclass(frozen=True, slots=True)
class Edit:
    """One mixture of base and tuned weights.

    Attributes:
        kind: See the module.
        amount: α of an interpolation; the rank; the share of the weights that a Fisher mask reverts; of a revert, 0.
        layers: Those that are reverted (``embeddings``, ``block 0`` ..., ``final norm``, ``head``).

    Raises:
        ValueError: if the amount is out of range, or layers are given of another kind, or not of a revert.
    """

    kind: Kind
    amount: float = 0.0
    layers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind: {self.kind!r} is none of {', '.join(get_args(Kind))}")
        if (self.kind == "revert") != bool(self.layers):
            raise ValueError(f"layers: {self.layers!r}; a revert names some, the other kinds none")
        whole = self.kind == "rank"
        if whole and (self.amount < 1 or self.amount != int(self.amount)):
            raise ValueError(f"amount: {self.amount} is not a rank of 1 or more")
        if not whole and not 0 <= self.amount <= 1:
            raise ValueError(f"amount: {self.amount} of kind {self.kind!r} is not between 0 and 1")

    @property
    def name(self) -> str:
        """Of a row in a table."""
        if self.kind == "revert":
            return f"revert {_listed(self.layers)}"
        shown = {"interpolation": "base + {:g} Δ", "rank": "rank {:g} of Δ", "fisher": "revert top {:.0%} of Fisher"}
        return shown[self.kind].format(self.amount)


def _listed(layers: Sequence[str]) -> str:
    """``block 2, block 3, block 4`` as ``blocks 2–4``."""
    parts: list[str] = []
    blocks = [int(layer.split()[1]) for layer in layers if layer.startswith("block ")]
    whole = len(blocks) > 1 and blocks == list(range(blocks[0], blocks[-1] + 1))
    for layer in layers:
        if whole and layer.startswith("block "):
            if layer == f"block {blocks[0]}":
                parts.append(f"blocks {blocks[0]}–{blocks[-1]}")
        else:
            parts.append(layer)
    return ", ".join(parts)


def _paired_weights(base_model: PreTrainedModel, model: PreTrainedModel) -> Iterator[tuple[str, str, Tensor, Tensor]]:
    """Name, layer, base value and tuned value of every weight, of one shape."""
    from forgetting.evaluation.drift import compared_weights

    try:
        for name, layer, base, tuned in compared_weights(base_model, model):
            if base.shape != tuned.shape:
                raise UsageError(
                    f"tuned model: {name} has shape {tuple(tuned.shape)}, in the base model {tuple(base.shape)}; "
                    "weights of different shapes cannot be mixed"
                )
            yield name, layer, base, tuned
    except KeyError as error:
        raise UsageError(
            f"tuned model: has no parameter {error}, which the base model has; give a fine-tune of that base model"
        ) from None


def check_weights(base_model: PreTrainedModel, model: PreTrainedModel) -> str | None:
    """Check that both have the same weights; holds one at a time.

    Returns:
        The first parameter of the tuned model that has a value which is not finite; ``None`` where all are.

    Raises:
        UsageError: naming the parameter that the tuned model lacks, or has in another shape.
    """
    spoiled = [name for name, _, _, tuned in _paired_weights(base_model, model) if not tuned.isfinite().all()]
    return spoiled[0] if spoiled else None


INERT = ("dropout", "pdrop", "initializer_range", "use_cache")
"""Endings of configuration fields that do not change what a model in eval mode computes."""


def check_mixable(base_model: PreTrainedModel, model: PreTrainedModel) -> None:
    """Check that a mixture of both models' weights, in the base model's architecture, is a mixture of the models.

    Args:
        base_model: The one whose configuration a mixture has.
        model: The tuned one, adapters merged.

    Raises:
        UsageError: naming the field of the configuration that differs and changes what is computed, or the parameter
            that only one of them has, or has in another shape.
    """
    from transformers import PretrainedConfig

    known = {name for name, *_ in _paired_weights(base_model, model)}
    base, tuned = base_model.config.to_dict(), model.config.to_dict()
    inert = set(PretrainedConfig().to_dict()) | {"transformers_version", "dtype", "torch_dtype", "_name_or_path"}
    for key in sorted({*base, *tuned} - inert):
        if not key.endswith(INERT) and base.get(key) != tuned.get(key):
            raise UsageError(
                f"tuned model: its configuration has {key} = {tuned.get(key)!r}, the base model's {base.get(key)!r}; "
                "a mixture of their weights would be neither's"
            )
    more = [name for name, _ in model.named_parameters() if name not in known and not name.startswith("heads.")]
    if more:
        raise UsageError(f"tuned model: has a parameter {more[0]}, which the base model has not; it cannot be mixed")


class Change:
    """A base model and a tuned one of the same architecture, and one model that takes any mixture of both.

    Args:
        base_model: Is left as it is.
        model: Full weights, or a peft wrapper whose active adapter counts as merged. Is left as it is.

    Attributes:
        model: A copy of the base model with the tuned weights, adapters merged, in eval mode; an untied head where one
            of the two has one.
        base, tuned: Weights by name, in the base model's precision.
        layers: Each weight's layer.

    Raises:
        UsageError: naming the parameter that the tuned model lacks, or has in another shape.
    """

    def __init__(self, base_model: PreTrainedModel, model: PreTrainedModel) -> None:
        from forgetting.models import untied_head

        self.base: Weights = {}
        self.tuned: Weights = {}
        self.layers: dict[str, str] = {}
        self._factors: dict[str, tuple[Tensor, Tensor]] = {}
        for name, layer, base, tuned in _paired_weights(base_model, model):
            self.layers[name] = layer
            self.base[name], self.tuned[name] = base.to(base_model.dtype), tuned.to(base_model.dtype)
        self.model = copy.deepcopy(base_model).eval()
        if set(self.base) - {name for name, _ in self.model.named_parameters()}:
            untied_head(self.model)
        exchange(self.model, dict(self.tuned))

    def weights(self, edit: Edit, fisher: DiagonalFisher | None = None) -> Weights:
        """Return what an edit makes.

        Args:
            edit: Which.
            fisher: Of the base model, for an edit of kind ``fisher``. What it has no value for stays tuned.

        Raises:
            ValueError: if a layer is none of the model's, or the Fisher information is missing or of another model.
        """
        if edit.kind == "interpolation":
            return between(self.base, self.tuned, edit.amount)
        if edit.kind == "revert":
            if unknown := set(edit.layers) - set(self.layers.values()):
                raise ValueError(
                    f"layers: {sorted(unknown)[0]!r} is none of {', '.join(dict.fromkeys(self.layers.values()))}"
                )
            return {name: (self.base if self.layers[name] in edit.layers else self.tuned)[name] for name in self.base}
        if edit.kind == "rank":
            return self._truncated(int(edit.amount))
        if fisher is None:
            raise ValueError("fisher: is needed for an edit of kind 'fisher'")
        return self._masked(edit.amount, fisher)

    def at(self, edit: Edit, fisher: DiagonalFisher | None = None) -> AbstractContextManager[None]:
        """Within, :attr:`model` has the weights of an edit; afterwards the tuned ones, bit for bit."""
        return swapped(self.model, lambda: self.weights(edit, fisher))

    def at_base(self) -> AbstractContextManager[None]:
        """Within, :attr:`model` is the base model."""
        return swapped(self.model, lambda: dict(self.base))

    def _linear(self) -> list[str]:
        """The matrices that LoRA reaches by default: of linear layers other than the head (peft's ``all-linear``)."""
        from forgetting.adapters import ALL_LINEAR, targeted

        modules = targeted(self.model, ALL_LINEAR, "rank")
        return [f"{name}.weight" for name in modules if f"{name}.weight" in self.base]

    def _truncated(self, rank: int) -> Weights:
        """Best approximations of Δ by matrices of the rank (Eckart & Young 1936)."""
        import torch

        mixed = dict(self.base)
        for name in self._linear():
            if name not in self._factors or self._factors[name][0].shape[1] < min(rank, *self.base[name].shape):
                delta = self.tuned[name] - self.base[name]
                u, s, v = torch.linalg.svd(
                    delta if delta.dtype == torch.float64 else delta.float(), full_matrices=False
                )
                self._factors[name] = ((u * s)[:, :rank].clone(), v[:rank].clone())
            left, right = self._factors[name]
            mixed[name] = self.base[name] + (left[:, :rank] @ right[:rank]).to(self.base[name].dtype)
        return mixed

    def _masked(self, share: float, fisher: DiagonalFisher) -> Weights:
        """Base where F is among the top share of all its values; equal values at the border stay tuned."""
        import torch

        for name, value in fisher.values.items():
            if name not in self.base or value.shape != self.base[name].shape:
                raise ValueError(f"fisher: has {name} of shape {tuple(value.shape)}, which the base model has not")
        values = torch.cat([value.flatten() for value in fisher.values.values()])
        top = math.floor(share * values.numel())
        mixed = dict(self.tuned)
        if top == 0:
            return mixed
        border = values.kthvalue(values.numel() - top).values if top < values.numel() else values.new_tensor(-math.inf)
        for name, value in fisher.values.items():
            high = (value > border).to(self.base[name].device)
            mixed[name] = torch.where(high, self.base[name], self.tuned[name])
        return mixed


def layer_groups(change: Change, most: int = 8) -> list[tuple[str, ...]]:
    """Return layers that are reverted together: each by itself, blocks in at most ``most`` runs of neighbours.

    Args:
        change: Of the model.
        most: Runs of blocks, at least 1; a revert is a scoring of everything.

    Raises:
        ValueError: if ``most`` is less than 1.
    """
    import numpy as np

    if most < 1:
        raise ValueError(f"most: {most} is less than 1")
    layers = list(dict.fromkeys(change.layers.values()))
    blocks = [layer for layer in layers if layer.startswith("block ")]
    runs = [tuple(str(b) for b in run) for run in np.array_split(blocks, min(most, len(blocks)))] if blocks else []
    before = [(layer,) for layer in layers if layer == "embeddings"]
    return [*before, *runs, *((layer,) for layer in layers if layer not in (*blocks, "embeddings"))]
