"""Replay: mix pretraining text, examples of earlier tasks, or both into each task's training data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from forgetting.mitigations.base import Mitigation, Options, Processes

if TYPE_CHECKING:
    from torch.utils.data import Dataset
    from transformers import TrainingArguments

    from forgetting.tasks.task import Task


class ReplayOptions(Options):
    """Options of replay."""

    fraction: float = Field(default=0.1, ge=0, lt=1, description="expected share of every batch that is replayed")
    source: Literal["pretraining", "earlier", "both"] = Field(
        default="pretraining", description="pretraining text, earlier tasks' examples, or half of each"
    )
    buffer: Literal["reservoir", "balanced"] = Field(
        default="balanced",
        description="which examples of earlier tasks are kept (Avalanche's storage policies)",
    )
    buffer_size: int = Field(default=1000, ge=1, description="examples of earlier tasks kept in all")
    equal_steps: bool = Field(
        default=False, description="control: as many steps, but padding without loss instead of replay"
    )

    @model_validator(mode="after")
    def _used(self) -> ReplayOptions:
        """No option is accepted and then ignored."""
        given = self.model_fields_set & {"buffer", "buffer_size"}
        if given and self.source == "pretraining":
            raise ValueError(f"{', '.join(sorted(given))}: needs source=earlier or source=both")
        return self


class Replay(Mitigation[ReplayOptions]):
    """Every slot of every batch is replayed with probability ``fraction``.

    The task's examples are all seen as often as without replay, so a task takes 1 / (1 − fraction) times as
    many steps. ``equal_steps`` runs the same steps and schedule with padding in the replay's slots: what that
    control forgets less than naive is due to the longer schedule and the fewer task examples per batch, not to
    replay. The realised share is in the record, in examples and in tokens; the loss is a mean over tokens, so a
    document without a prompt weighs as much as its length.
    """

    summary: ClassVar[str] = "mix pretraining text or earlier tasks' examples into every batch"
    paper: ClassVar[str] = "Robins 1995; Rolnick et al. 2019, arXiv 1811.11682; Bethune et al. 2025, arXiv 2502.06042"
    equation: ClassVar[str] = "batch ~ (1 − f) D_task + f D_replay, steps N / (1 − f)"
    cost: ClassVar[str] = "1 / (1 − f) times the steps; the replayed data"
    Options: ClassVar[type[Options]] = ReplayOptions
    processes: ClassVar[Processes] = "sharded"
    null: ClassVar[dict[str, Any] | None] = {"fraction": 0}

    def __init__(self, options: ReplayOptions) -> None:
        super().__init__(options)
        self._stretch = 1 / (1 - options.fraction)  # what is expected, until a task's data are mixed
        self._stored = 0

    def train_dataset(self, dataset: Dataset, task: Task, seen: Sequence[Task]) -> Dataset:
        """Mix; with nothing to replay yet (``earlier``, first task) the task's data stay as they are."""
        from forgetting.tasks.memory import stored_tokens
        from forgetting.tasks.mixing import mix

        self._stretch = 1.0
        sources: list[Sequence[dict[str, Any]]] = []
        if self.options.source != "earlier":
            sources.append(self.context.encode_text(self.context.pretraining.train))
        if self.options.source != "pretraining" and seen:
            sources.append(self._earlier(seen))
        if self.options.fraction == 0 or not sources:
            return dataset
        mixed = mix(
            dataset,
            [self.context.pack(source) for source in sources],
            fraction=self.options.fraction,
            seed=self.context.seed * 1000 + len(seen),
            padded=self.options.equal_steps,
        )
        self._stored = sum(map(stored_tokens, sources))
        self._stretch = len(mixed) / len(dataset)  # type: ignore[arg-type]  # map-style
        return mixed

    def _earlier(self, seen: Sequence[Task]) -> list[dict[str, Any]]:
        from forgetting.avalanche import replay_buffer
        from forgetting.tasks.mixing import EARLIER

        kept = replay_buffer(
            [len(task.train) for task in seen],
            capacity=self.options.buffer_size,
            policy=self.options.buffer,
            seed=self.context.seed,
        )
        features = [self.context.encode_task(task) for task in seen]
        return [{**features[experience][example], "source": EARLIER} for experience, example in kept]

    def training_arguments(self, args: TrainingArguments) -> TrainingArguments:
        """Lengthen a budget given in steps; one in epochs grows with the data set itself."""
        if args.max_steps > 0:
            args.max_steps = math.ceil(args.max_steps * self._stretch)
        return args

    def stored_floats(self) -> int:
        """The tokens of what is replayed."""
        return self._stored
