"""Replay of what the base model says itself: text sampled from it, on which its predictions are kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from forgetting.distillation import Direction
from forgetting.mitigations.base import Mitigation, Options, Processes, RunContext

if TYPE_CHECKING:
    import torch
    from torch.utils.data import Dataset
    from transformers import PreTrainedModel

    from forgetting.models import ModelFamily
    from forgetting.tasks.memory import Memory
    from forgetting.tasks.task import Task


class SelfReplayOptions(Options):
    """Options of self_replay."""

    strength: float = Field(default=1.0, ge=0, description="λ, weight of the loss on sampled text; 0 switches it off")
    documents: int = Field(default=256, ge=1, description="documents sampled from the base model, once")
    tokens: int = Field(default=64, ge=2, description="most tokens of a sampled document, the beginning one counted")
    loss: Literal["kl", "ce"] = Field(
        default="kl", description="kl: divergence from the base model's predictions; ce: cross-entropy of its tokens"
    )
    direction: Direction = Field(default="forward", description="forward: KL(base ‖ model); reverse: KL(model ‖ base)")
    memory_batch: int | None = Field(
        default=None, ge=1, description="documents of a minibatch; the training's batch size where not given"
    )

    @model_validator(mode="after")
    def _used(self) -> SelfReplayOptions:
        """No option is accepted and then ignored."""
        if self.loss == "ce" and "direction" in self.model_fields_set:
            raise ValueError(f"direction={self.direction} needs loss=kl")
        return self


class SelfReplay(Mitigation[SelfReplayOptions]):
    """Each step has a minibatch of sampled documents of its own, beside the task's batch.

    No pretraining text is needed. The documents are sampled as those of ``pretraining.source: self`` are, with other
    draws, and none of the held-out documents is among them. As x is sampled from the base model p_0, the gradients of
    both losses agree in expectation over x (the cross-entropy is the forward divergence plus p_0's entropy); that of
    ``kl`` has the smaller variance, and costs a copy of the base model. Where gradients are computed again (``sam``),
    another minibatch is drawn.
    """

    summary: ClassVar[str] = "keep the base model's predictions on text that it generated itself"
    paper: ClassVar[str] = "Robins 1995; Sun et al. 2020 (LAMOL), arXiv 1909.03329; Huang et al. 2024, arXiv 2403.01244"
    equation: ClassVar[str] = "L + λ KL(p_0(· | x) ‖ p_θ(· | x)), x ~ p_0; with loss=ce L − λ ln p_θ(x) per token"
    cost: ClassVar[str] = (
        "a forward and backward pass on the sampled minibatch per step, and with loss=kl a forward pass of the base "
        "model; the sampled tokens and, with loss=kl, the base model's parameters"
    )
    Options: ClassVar[type[Options]] = SelfReplayOptions
    families: ClassVar[tuple[ModelFamily, ...]] = ("decoder",)
    null: ClassVar[dict[str, Any] | None] = {"strength": 0}
    processes: ClassVar[Processes] = "one"
    resumes_within_task: ClassVar[bool] = True

    def check(self, chain: Sequence[Mitigation]) -> None:
        """What is sampled must be the base model."""
        from forgetting.adapters import check_base_first

        check_base_first("self_replay", self, chain)

    def setup(self, model: PreTrainedModel, context: RunContext) -> PreTrainedModel:
        """Sample; a resumed run samples the same again, from the base model that it too begins with."""
        import torch

        from forgetting.distillation import frozen_copy
        from forgetting.tasks.pretraining import sample_documents

        super().setup(model, context)
        self._features: Sequence[dict[str, Any]] = []
        self._base: PreTrainedModel | None = None
        self._memory: Memory | None = None
        if self.options.strength == 0:
            return model
        base = frozen_copy(model)
        draws = torch.Generator().manual_seed(context.seed * 1000)  # a small seed may be the pretraining text's
        documents = sample_documents(
            base,
            context.tokenizer,
            self.options.documents,
            max_length=self.options.tokens,
            seed=int(torch.randint(2**62, (), generator=draws)),
            exclude={document for column in context.pretraining.held_out.values() for document in column},
            asked_by=f"mitigation 'self_replay': documents = {self.options.documents}:",
        )
        self._features = context.encode_text(documents)
        self._base = base if self.options.loss == "kl" else None
        return model

    def train_dataset(self, dataset: Dataset, task: Task, seen: Sequence[Task]) -> Dataset:
        """Begin the task's draws; its data stay as they are."""
        from forgetting.tasks.memory import Memory

        if self._features:
            self._memory = Memory.for_task(
                self._features, self.context, batch_size=self.options.memory_batch, position=len(seen)
            )
        return dataset

    def loss(
        self, model: PreTrainedModel, batch: dict[str, torch.Tensor], outputs: Any, loss: torch.Tensor
    ) -> torch.Tensor:
        """Add the loss on a minibatch of sampled documents."""
        from forgetting.distillation import kl_divergence, predict, teach

        if self._memory is None:
            return loss
        sampled = self._memory.next_batch(loss.device)
        with self._memory.own_randomness(loss.device):
            if self._base is None:
                return loss + self.options.strength * model(**sampled).loss
            student = predict(model, sampled)
        teacher = teach(self._base, sampled)
        return loss + self.options.strength * kl_divergence(teacher, student, direction=self.options.direction)

    def task_state(self) -> dict[str, torch.Tensor]:
        """Where the draws stand."""
        return {} if self._memory is None else self._memory.state_dict()

    def load_task_state(self, state: dict[str, torch.Tensor]) -> None:
        """Restore."""
        if self._memory is not None:
            self._memory.load_state_dict(state)

    def stored_floats(self) -> int:
        """The sampled tokens, and the base model's parameters where it is compared with."""
        from forgetting.tasks.memory import stored_tokens

        base = 0 if self._base is None else sum(p.numel() for p in self._base.parameters())
        return stored_tokens(self._features) + base
