"""Fisher merging: the model before a task and the one after it are averaged by what each knows about a weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from forgetting.mitigations.base import Mitigation, Options, RunContext
from forgetting.weights import (
    between,
    check_known,
    exchange,
    kept,
    present,
    refuse_adapters,
    size,
    under_prefix,
    with_prefix,
)

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from forgetting.tasks.task import Task
    from forgetting.weights import Weights


class FisherMergeOptions(Options):
    """Options of fisher_merge."""

    weight: float = Field(
        default=0.5, ge=0, le=1, description="w, of the weights after the task; 1 is naive, 0 keeps the model as it was"
    )
    epsilon: float = Field(
        default=1e-6, gt=0, description="added to every Fisher, as a share of its root mean square over the parameters"
    )
    examples: int = Field(default=128, ge=1, description="sequences for each Fisher")


class FisherMerge(Mitigation[FisherMergeOptions]):
    """After each task the weights before and after it are averaged, each weighted by its Fisher information.

    F_0 is taken on pretraining text at the pretrained weights, F_t on the task's data at the weights after it, with
    labels drawn from the model. Each is divided by its root mean square over all parameters (Matena & Raffel's code
    divides by the norm), for a document predicts more tokens than an answer, and ``epsilon`` is added: where neither
    has information, the plain average is left. A, the sum of all so far, weighs the weights before the task, so that
    with w = ½ the merged weights are the Fisher-weighted mean of the pretrained state and all tasks'.
    """

    summary: ClassVar[str] = "average the weights before and after a task, weighted by their Fisher information"
    paper: ClassVar[str] = "Matena & Raffel 2022, arXiv 2111.09832"
    equation: ClassVar[str] = "θ ← ((1 − w) A θ_{t−1} + w F_t θ_t) / ((1 − w) A + w F_t), A ← A + F_t"
    cost: ClassVar[str] = (
        "1 float per trained parameter, 3 within a task; about a training step per batch of Fisher sequences"
    )
    Options: ClassVar[type[Options]] = FisherMergeOptions
    null: ClassVar[dict[str, Any] | None] = {"weight": 1}
    replaces_weights: ClassVar[bool] = True

    def check(self, chain: Sequence[Mitigation]) -> None:
        """Weights are mixed, not the factors of adapters."""
        refuse_adapters("fisher_merge", chain)

    def check_model(self, model: PreTrainedModel) -> None:
        """Every trained parameter has a rule."""
        from forgetting.consolidation import check_rules

        if self.options.weight < 1:
            check_rules("mitigation 'fisher_merge'", model)

    def setup(self, model: PreTrainedModel, context: RunContext) -> PreTrainedModel:
        """Take the Fisher information of the pretrained state, on pretraining text."""
        super().setup(model, context)
        self._taken = 0
        self.information: Weights = {}
        if self.options.weight < 1:
            texts = context.pretraining.train[: self.options.examples]
            self.information = self._fisher(model, context.encode_text(texts))
        return model

    def _fisher(self, model: PreTrainedModel, features: Sequence[dict[str, Any]]) -> Weights:
        """F / √(mean F²) + ε, by parameter."""
        import torch

        from forgetting.fisher import diagonal_fisher
        from forgetting.trainer import padded_batches

        generator = torch.Generator().manual_seed(self.context.seed * 1000 + self._taken)
        batches = padded_batches(features, self.context.tokenizer, self.context.training.batch_size)
        fisher = diagonal_fisher(model, batches, max_examples=self.options.examples, generator=generator).values
        self._taken += 1
        squares = sum(float(value.double().square().sum()) for value in fisher.values())
        scale = (squares / size(fisher)) ** 0.5 or 1.0
        return {name: value / scale + self.options.epsilon for name, value in fisher.items()}

    def before_task(self, model: PreTrainedModel, task: Task) -> PreTrainedModel:
        """Keep the weights."""
        self._previous = {}
        if self.options.weight < 1:
            check_known("fisher_merge", model, self.information)
            self._previous = kept(model)
        return model

    def after_task(self, model: PreTrainedModel, task: Task) -> PreTrainedModel:
        """Merge, and add the task's information."""
        import torch

        from forgetting.tasks.memory import drawn

        if not self._previous:
            return model
        w = self.options.weight
        seed = self.context.seed * 1000 + self._taken
        fisher = self._fisher(model, drawn(self.context.encode_task(task), self.options.examples, seed))
        merged = between(self._previous, present(model, self._previous), w)  # running statistics have no Fisher
        names = [name for name in self._previous if name in fisher]
        before, after = ([part[name] for name in names] for part in (self.information, fisher))
        tuned = list(present(model, names).values())
        weighted = torch._foreach_mul(after, w)
        shares = torch._foreach_div(weighted, torch._foreach_add(torch._foreach_mul(before, 1 - w), weighted))
        shares = tuple(share.to(weight.dtype) for share, weight in zip(shares, tuned, strict=True))
        by_fisher = torch._foreach_lerp([self._previous[name] for name in names], tuned, shares)
        exchange(model, merged | dict(zip(names, by_fisher, strict=True)))
        torch._foreach_add_(before, after)
        self._previous = {}
        return model

    def stored_floats(self) -> int:
        """The information."""
        return size(self.information)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The information, and how often it was taken."""
        import torch

        return {"taken": torch.tensor(self._taken)} | with_prefix("information", self.information)

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Restore."""
        self._taken = int(state["taken"])
        self.information = under_prefix("information", state)
