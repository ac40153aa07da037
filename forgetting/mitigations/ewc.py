"""Elastic weight consolidation, with the pretrained state as task 0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from forgetting.errors import UsageError
from forgetting.mitigations.base import Mitigation, Options, RunContext

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from forgetting.tasks.task import Task


class EWCOptions(Options):
    """Options of ewc."""

    strength: float = Field(default=1000.0, ge=0, description="λ, of the mean per-sequence Fisher; 0 switches it off")
    estimator: Literal["sample", "empirical"] = Field(
        default="sample", description="sample: labels drawn from the model; empirical: observed labels"
    )
    examples: int = Field(default=128, ge=1, description="sequences for each Fisher")
    tasks: bool = Field(default=True, description="protect learned tasks too, not only the pretrained state")


class EWC(Mitigation[EWCOptions]):
    """A quadratic penalty around the pretrained weights and every learned task's, weighted by their Fisher.

    All penalties are one quadratic, kept as Σ F_i and Σ F_i θ_i: memory and time per step do not grow with the
    number of tasks. It is applied after the optimizer's step as an implicit (proximal) step of length η, the
    current learning rate, like AdamW's decoupled weight decay: it is stable at any strength, and as
    λ → ∞ the weights with F > 0 do not move. Through Adam's preconditioner, an explicit penalty gradient would
    lose its scale.
    """

    summary: ClassVar[str] = "quadratic penalty weighted by the Fisher information; the pretrained state is task 0"
    paper: ClassVar[str] = "Kirkpatrick et al. 2017, arXiv 1612.00796; van de Ven 2025, arXiv 2502.11756"
    equation: ClassVar[str] = "θ ← argmin_u ‖u − θ‖² / 2η + λ/2 Σ_i Σ_k F_i,k (u_k − θ_i,k)²"
    cost: ClassVar[str] = "2 floats per trained parameter; one backward per Fisher sequence and task"
    Options: ClassVar[type[Options]] = EWCOptions
    null: ClassVar[dict[str, Any] | None] = {"strength": 0}

    def check(self, chain: Sequence[Mitigation]) -> None:
        """The penalty must stand on the parameters that train, for as long as the run lasts."""
        for position, part in enumerate(chain):
            if type(part).__name__ != "LoRA":
                continue
            if position > chain.index(self):
                raise UsageError(
                    "mitigation 'ewc': stands before 'lora', which freezes what it protects; write lora+ewc"
                )
            if part.options.merge:
                raise UsageError("mitigation 'ewc': needs an adapter that lasts; write lora:merge=false+ewc")

    def setup(self, model: PreTrainedModel, context: RunContext) -> PreTrainedModel:
        """Consolidate the pretrained state, on pretraining text."""
        super().setup(model, context)
        self._fisher: dict[str, torch.Tensor] = {}
        self._anchor: dict[str, torch.Tensor] = {}
        self._consolidated = 0
        if self.options.strength > 0:
            self._consolidate(model, context.encode_text(context.pretraining.train[: self.options.examples]))
        return model

    def _consolidate(self, model: PreTrainedModel, features: list[dict[str, Any]]) -> None:
        """Add F and Fθ of the present weights to the sums."""
        import torch

        from forgetting.fisher import diagonal_fisher
        from forgetting.trainer import padded_batches

        generator = torch.Generator().manual_seed(self.context.seed * 1000 + self._consolidated)
        fisher = diagonal_fisher(
            model,
            padded_batches(features, self.context.tokenizer, self.context.training.batch_size),
            estimator=self.options.estimator,
            max_examples=self.options.examples,
            generator=generator,
        )
        parameters = dict(model.named_parameters())
        for name, value in fisher.values.items():
            weighted = value * parameters[name].detach()
            if name in self._fisher:
                self._fisher[name] += value
                self._anchor[name] += weighted
            else:
                self._fisher[name], self._anchor[name] = value, weighted
        self._consolidated += 1

    def after_step(self, model: PreTrainedModel, learning_rate: float) -> None:
        """θ ← (θ + ηλ ΣF_iθ_i) / (1 + ηλ ΣF_i), elementwise and exact."""
        import torch

        if not self._fisher or learning_rate == 0:
            return
        scale = learning_rate * self.options.strength
        named = {name: p for name, p in model.named_parameters() if p.requires_grad and name in self._fisher}
        with torch.no_grad():
            weights = [p.data for p in named.values()]
            denominator = torch._foreach_mul([self._fisher[name] for name in named], scale)
            torch._foreach_add_(denominator, 1.0)
            torch._foreach_add_(weights, [self._anchor[name] for name in named], alpha=scale)
            torch._foreach_div_(weights, denominator)

    def after_task(self, model: PreTrainedModel, task: Task) -> PreTrainedModel:
        """Consolidate the task."""
        import torch

        if self.options.strength > 0 and self.options.tasks:
            features = self.context.encode_task(task)
            generator = torch.Generator().manual_seed(self.context.seed * 1000 + self._consolidated)
            order = torch.randperm(len(features), generator=generator).tolist()  # a file may be sorted by label
            self._consolidate(model, [features[i] for i in order[: self.options.examples]])
        return model

    def stored_floats(self) -> int:
        """Two per protected parameter."""
        return sum(value.numel() for value in (*self._fisher.values(), *self._anchor.values()))

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The two sums and their number of terms."""
        import torch

        state = {"consolidated": torch.tensor(self._consolidated)}
        state |= {f"fisher.{name}": value for name, value in self._fisher.items()}
        return state | {f"anchor.{name}": value for name, value in self._anchor.items()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Restore."""
        self._consolidated = int(state["consolidated"])
        for prefix, target in (("fisher.", self._fisher), ("anchor.", self._anchor)):
            target.clear()
            target.update({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
