"""Elastic weight consolidation, with the pretrained state as task 0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from forgetting.consolidation import PenaltyOptions, QuadraticMitigation, check_rules
from forgetting.mitigations.base import Options, Processes, RunContext

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from forgetting.fisher import DiagonalPenalty, KroneckerPenalty
    from forgetting.tasks.task import Task


class EWCOptions(PenaltyOptions):
    """Options of ewc."""

    strength: float = Field(
        default=1000.0, ge=0, allow_inf_nan=False, description="λ, of the mean per-sequence Fisher; 0 switches it off"
    )
    convention: Literal["mean", "van_de_ven", "kirkpatrick", "avalanche"] = Field(
        default="mean", description="whose λ the strength is; others are converted (forgetting.fisher.penalty)"
    )
    mode: Literal["separate", "online", "kfac"] = Field(
        default="separate",
        description="separate: the sum of all penalties; online: around the latest weights; kfac: in eigenbases",
    )
    decay: float = Field(default=1.0, gt=0, le=1, description="of the earlier Fisher information, with mode=online")
    estimator: Literal["sample", "empirical", "batched", "positionwise"] = Field(
        default="sample",
        description="sample: labels drawn from the model; empirical: observed labels; batched, positionwise: "
        "approximations of the literature",
    )
    samples: int = Field(default=1, ge=1, description="draws per sequence, with estimator=sample")
    examples: int = Field(default=128, ge=1, description="sequences for each Fisher")
    tasks: bool = Field(default=True, description="protect learned tasks too, not only the pretrained state")

    @model_validator(mode="after")
    def _used(self) -> EWCOptions:
        """No option is accepted and then ignored."""
        if self.decay < 1 and self.mode != "online":
            raise ValueError(f"decay={self.decay:g} needs mode=online")
        if self.samples > 1 and self.estimator != "sample":
            raise ValueError(f"samples={self.samples} needs estimator=sample")
        if self.mode == "kfac" and self.estimator not in ("sample", "empirical"):
            raise ValueError(f"mode=kfac needs estimator=sample or empirical, not {self.estimator}")
        return self


class EWC(QuadraticMitigation[EWCOptions]):
    """A quadratic penalty around the pretrained weights and every learned task's, weighted by their Fisher.

    All diagonal penalties are one quadratic: memory and time per step do not grow with the number of tasks. By
    default it is applied after the optimizer's step as an implicit (proximal) step of length η, the current learning
    rate, like AdamW's decoupled weight decay: it is stable at any strength, and as λ → ∞ the weights with F > 0 do
    not move. Through Adam's preconditioner, the penalty's gradient loses its scale.
    """

    summary: ClassVar[str] = "quadratic penalty weighted by the Fisher information; the pretrained state is task 0"
    paper: ClassVar[str] = (
        "Kirkpatrick et al. 2017, arXiv 1612.00796; Schwarz et al. 2018, arXiv 1805.06370; van de Ven 2025, "
        "arXiv 2502.11756"
    )
    equation: ClassVar[str] = "θ ← argmin_u ‖u − θ‖² / 2η + λ/2 Σ_i (u − θ_i)ᵀ F_i (u − θ_i)"
    cost: ClassVar[str] = "2 floats per trained parameter; about a training step per batch of Fisher sequences and task"
    Options: ClassVar[type[Options]] = EWCOptions
    processes: ClassVar[Processes] = "sharded"

    def __init__(self, options: EWCOptions) -> None:
        super().__init__(options)
        if options.mode == "kfac" or options.estimator == "batched":
            self.processes = "replicated"  # type: ignore[misc]  # no such Fisher information layer by layer

    def estimators(self) -> tuple[str, ...]:
        """See QuadraticMitigation."""
        if self.options.strength == 0:
            return ()
        return (self.options.estimator, "sample") if self.options.mode == "kfac" else (self.options.estimator,)

    def check_model(self, model: PreTrainedModel) -> None:
        """Every trained parameter has a rule."""
        if self.options.strength > 0 and self.options.estimator != "batched":
            check_rules(f"mitigation {self.name!r}", model)

    def setup(self, model: PreTrainedModel, context: RunContext) -> PreTrainedModel:
        """Consolidate the pretrained state, on pretraining text."""
        from forgetting import fisher

        super().setup(model, context)
        online = self.options.mode == "online"
        self.penalty: DiagonalPenalty | KroneckerPenalty = (
            fisher.KroneckerPenalty()
            if self.options.mode == "kfac"
            else fisher.DiagonalPenalty(online=online, decay=self.options.decay)
        )
        self._consolidated = 0
        if self.options.strength > 0:
            self._consolidate(model, self._pretraining_features(self.options.examples))
        return model

    def _consolidate(self, model: PreTrainedModel, features: Sequence[dict[str, Any]]) -> None:
        """Protect the present weights."""
        import torch

        from forgetting.fisher import KroneckerPenalty, diagonal_fisher, fisher_weight, kfac_fisher
        from forgetting.trainer import padded_batches

        batches = padded_batches(features, self.context.tokenizer, self.context.training.batch_size)
        draw: dict[str, Any] = {
            "samples": self.options.samples,
            "max_examples": self.options.examples,
            "generator": torch.Generator().manual_seed(self.context.seed * 1000 + self._consolidated),
        }
        parameters, convention = dict(model.named_parameters()), self.options.convention
        wide = any(parameter.dtype == torch.float64 for parameter in parameters.values())
        if isinstance(self.penalty, KroneckerPenalty):
            kronecker = kfac_fisher(model, batches, estimator=self.options.estimator, **draw)
            self.penalty.consolidate(kronecker, parameters, fisher_weight(convention, kronecker.diagonal.examples))
        else:
            draw["accumulate_dtype"] = torch.float64 if wide else torch.float32
            fisher = diagonal_fisher(model, batches, estimator=self.options.estimator, **draw)
            self.penalty.consolidate(fisher, parameters, fisher_weight(convention, fisher.examples))
        self._consolidated += 1

    def before_task(self, model: PreTrainedModel, task: Task) -> PreTrainedModel:
        """Convert the strength: other conventions depend on the task's size."""
        from forgetting.fisher import raw_strength
        from forgetting.tasks.encode import IGNORED

        if self.options.convention != "mean":
            features = self.context.encode_task(task)
            predicted = sum(label != IGNORED for feature in features for label in feature["labels"][1:])
            self._strength = raw_strength(
                self.options.strength,
                self.options.convention,
                tokens=predicted / len(features),
                examples=len(features),
            )
        return model

    def after_task(self, model: PreTrainedModel, task: Task) -> PreTrainedModel:
        """Consolidate the task."""
        from forgetting.tasks.memory import drawn

        if self.options.strength > 0 and self.options.tasks:
            seed = self.context.seed * 1000 + self._consolidated
            self._consolidate(model, drawn(self.context.encode_task(task), self.options.examples, seed))
        return model

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The penalty, and how many states it protects."""
        import torch

        return {"consolidated": torch.tensor(self._consolidated)} | super().state_dict()

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Restore."""
        self._consolidated = int(state["consolidated"])
        super().load_state_dict(state)
