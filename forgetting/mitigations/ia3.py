"""(IA)³ through peft: activations are scaled by learned vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, model_validator

from forgetting.adapters import Adapter, AdapterOptions, targeted, task_type
from forgetting.errors import UsageError

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel


class IA3Options(AdapterOptions):
    """Options of ia3."""

    target: str | None = Field(
        default=None,
        description="modules that are scaled, name|name; else the architecture's keys, values and second "
        "feed-forward layer, as peft knows them",
    )
    feedforward: str | None = Field(
        default=None, description="those of target whose input is scaled, name|name; of others it is the output"
    )
    merge: bool = Field(default=True, description="merge before the next task and start from ones; else keep one")

    @model_validator(mode="after")
    def _used(self) -> IA3Options:
        """No option is accepted and then ignored."""
        if self.feedforward is not None:
            if self.target is None:
                raise ValueError("feedforward needs target")
            other = sorted(set(self.feedforward.split("|")) - set(self.target.split("|")))
            if other:
                raise ValueError(f"feedforward={other[0]} is not in target={self.target}")
        return self


class IA3(Adapter[IA3Options]):
    """Only the vectors train. They start at one, so that row 0 is the base model's.

    The view ``adapter_off`` is the model before this task with ``merge``, else the base model.
    """

    summary: ClassVar[str] = "train vectors that scale keys, values and feed-forward activations (peft)"
    paper: ClassVar[str] = "Liu et al. 2022, (IA)³, arXiv 2205.05638"
    equation: ClassVar[str] = "k ← l_k ⊙ k, v ← l_v ⊙ v, W₂ γ(W₁ x) ← W₂ (l_ff ⊙ γ(W₁ x)), with l trained"
    cost: ClassVar[str] = "a trained float per scaled activation"
    Options: ClassVar[type[AdapterOptions]] = IA3Options

    def lasts(self) -> bool:
        """See Adapter."""
        return not self.options.merge

    def check_model(self, model: PreTrainedModel) -> None:
        """Targets that are named must exist; else peft must know the architecture."""
        from peft.utils.constants import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as KNOWN

        kind = model.config.model_type
        if self.options.target is not None:
            targeted(model, self.options.target, "ia3")
        elif kind not in KNOWN:
            raise UsageError(
                f"mitigation 'ia3': peft knows no modules of {kind!r} to scale; give target and feedforward"
            )

    def config(self, model: PreTrainedModel) -> PeftConfig:
        """See Adapter."""
        from peft import IA3Config

        options = self.options
        if options.target is None:
            return IA3Config(task_type=task_type(model))
        feedforward = options.feedforward.split("|") if options.feedforward else []
        return IA3Config(
            target_modules=options.target.split("|"), feedforward_modules=feedforward, task_type=task_type(model)
        )
