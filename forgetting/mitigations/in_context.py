"""In-context learning: nothing is trained, examples of a task are put before its test items."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from forgetting.errors import UsageError
from forgetting.mitigations.base import Mitigation, Options, RunContext

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, TrainingArguments

    from forgetting.models import ModelFamily
    from forgetting.tasks.task import Example, Task

logger = logging.getLogger(__name__)


class InContextOptions(Options):
    """Options of in_context."""

    shots: int = Field(default=4, ge=0, description="training examples before every test item; 0: none, the base model")


class InContext(Mitigation[InContextOptions]):
    """The reference that forgets nothing: the weights stay, and with them every capability.

    A task that was met is scored after examples of its own training split, the same ones for all of its test items,
    a line each; one that was not is scored without. Which task an item belongs to must be known for that. An example
    that leaves no room for the longest test item within ``max_length`` is left out.

    Attributes:
        dropped: Examples left out, by task.
    """

    summary: ClassVar[str] = "train nothing; put a task's training examples before its test items (oracle)"
    paper: ClassVar[str] = "Brown et al. 2020, Language models are few-shot learners, arXiv 2005.14165"
    equation: ClassVar[str] = "p(y | x) = p_θ(y | x_1 y_1 … x_k y_k x), with θ as pretrained"
    cost: ClassVar[str] = "no training; every test item is longer by the examples"
    Options: ClassVar[type[Options]] = InContextOptions
    families: ClassVar[tuple[ModelFamily, ...]] = ("decoder",)
    task_oracle: ClassVar[bool] = True

    def check(self, chain: Sequence[Mitigation]) -> None:
        """Beside it no other method has anything to do."""
        for part in chain:
            name = type(part).__module__.rpartition(".")[2]
            if part is not self and name != "naive":
                raise UsageError(f"mitigation 'in_context': trains nothing, so that {name!r} beside it does nothing")

    def setup(self, model: PreTrainedModel, context: RunContext) -> PreTrainedModel:
        """Begin with no task met."""
        self._met = 0
        self._texts: dict[str, str] = {}
        self.dropped: dict[str, int] = {}
        return super().setup(model, context)

    def before_task(self, model: PreTrainedModel, task: Task) -> PreTrainedModel:
        """Meet a task."""
        self._met += 1
        return model

    def training_arguments(self, args: TrainingArguments) -> TrainingArguments:
        """Train nothing."""
        args.max_steps = 0
        return args

    def demonstrations(self, task: Task) -> str:
        """Return a line per example of a task that was met."""
        position = [other.name for other in self.context.tasks].index(task.name)
        if position >= self._met:
            return ""
        if task.name not in self._texts:
            self._texts[task.name] = self._write(task, position)
        return self._texts[task.name]

    def _write(self, task: Task, position: int) -> str:
        import torch

        shots = self.options.shots
        generator = torch.Generator().manual_seed(self.context.seed * 1000 + position)
        drawn = torch.randperm(len(task.train), generator=generator).tolist()[:shots]
        longest = max((self._item(task, example) for example in task.test), key=self._tokens)
        reserved = 0 if task.metric in ("accuracy", "perplexity") else task.max_new_tokens
        text = ""
        for index in drawn:
            longer = f"{text}{task.train[index].prompt}{task.train[index].completion}\n"
            if self._tokens(longer + longest) + reserved <= self.context.training.max_length:
                text = longer
            else:
                self.dropped[task.name] = self.dropped.get(task.name, 0) + 1
        if task.name in self.dropped:
            left_out = self.dropped[task.name]
            logger.warning("in_context: %d of %d examples of task %r leave no room", left_out, len(drawn), task.name)
        return text

    def _item(self, task: Task, example: Example) -> str:
        """The longest text that is read of a test item."""
        if task.metric == "accuracy":
            return example.prompt + max(example.choices or (), key=self._tokens)
        return example.prompt + (example.completion if task.metric == "perplexity" else "")

    def _tokens(self, text: str) -> int:
        from forgetting.evaluation.encoding import encode_texts

        return len(encode_texts(self.context.tokenizer, [text])[0])

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The number of tasks met."""
        import torch

        return {"met": torch.tensor(self._met)}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Restore."""
        self._met = int(state["met"])
