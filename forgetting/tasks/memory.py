"""Examples that are rehearsed in minibatches of their own, beside the task's batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from forgetting.tasks.encode import BOOKKEEPING, IGNORED, Collator
from forgetting.tasks.lazy import Selected

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from forgetting.mitigations.base import RunContext
    from forgetting.tasks.task import Task


def predicts(feature: dict[str, Any]) -> bool:
    """Whether a feature has any predicted token: a document of one token may have none, and its loss is not defined."""
    return any(label != IGNORED for label in feature["labels"])


def drawn(features: Sequence[dict[str, Any]], count: int, seed: int) -> list[dict[str, Any]]:
    """Return at most ``count`` features in a random order of the seed's: a file may be sorted by label."""
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed)).tolist()
    return [features[i] for i in order[:count]]


def some_of_task(context: RunContext, task: Task, position: int, count: int) -> list[dict[str, Any]]:
    """Return at most ``count`` of a task's training features; the same ones whenever the run asks again.

    Args:
        context: Of the run.
        task: Whose.
        position: The task's in the run, from 1; 0 is the pretrained state.
        count: Most features.
    """
    features = context.encode_task(task)
    usable = np.array([i for i, feature in enumerate(features) if predicts(feature)], dtype=np.int64)
    return drawn(Selected(features, usable), count, context.seed * 1000 + position)


def some_text(context: RunContext, count: int) -> list[dict[str, Any]]:
    """Return the features of at most ``count`` documents of the pretraining text's training part."""
    return [feature for feature in context.encode_text(context.pretraining.train[:count]) if predicts(feature)]


def remembered(
    context: RunContext, seen: Sequence[Task], count: int, *, pretraining: bool
) -> list[list[dict[str, Any]]]:
    """Return at most ``count`` features of every earlier state, in order; states without any are left out.

    Args:
        context: Of the run.
        seen: The tasks learned before.
        count: Most features of each state.
        pretraining: Whether the pretrained state is one, remembered by pretraining text.
    """
    states = [some_text(context, count)] if pretraining else []
    states += [some_of_task(context, task, position, count) for position, task in enumerate(seen, start=1)]
    return [features for features in states if features]


def stored_tokens(features: Sequence[dict[str, Any]]) -> int:
    """Return how many token ids, or pixel values, a learner keeps who keeps these features."""
    return sum(f["pixel_values"].numel() if "pixel_values" in f else len(f["input_ids"]) for f in features)


class Memory:
    """Features drawn in seeded minibatches, without replacement until all were drawn, then anew.

    Args:
        features: What is kept (``forgetting.tasks.encode``).
        tokenizer: For its padding token.
        batch_size: Features per minibatch, at most as many as there are.
        seed: Of the draws.
    """

    def __init__(
        self, features: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, *, batch_size: int, seed: int
    ) -> None:
        self.features = features
        self.batch_size = min(batch_size, len(features))
        self._collate = Collator.for_tokenizer(tokenizer)
        self._generator = torch.Generator().manual_seed(seed)
        self._queue: list[int] = []

    @classmethod
    def for_task(
        cls, features: Sequence[dict[str, Any]], context: RunContext, *, batch_size: int | None, position: int
    ) -> Memory:
        """Return a memory for a run's task at ``position`` (from 0); by default with the training's batch size."""
        size = batch_size or context.training.batch_size
        return cls(features, context.tokenizer, batch_size=size, seed=context.seed * 1000 + position)

    def __len__(self) -> int:
        return len(self.features)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Where the draws stand; the features are not in it."""
        return {"generator": self._generator.get_state(), "queue": torch.tensor(self._queue, dtype=torch.long)}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Go on drawing from where :meth:`state_dict` was called."""
        self._generator.set_state(state["generator"])
        self._queue = state["queue"].tolist()

    def draw(self) -> list[int]:
        """Return the next minibatch's indices into ``features``."""
        while len(self._queue) < self.batch_size:
            self._queue += torch.randperm(len(self.features), generator=self._generator).tolist()
        drawn, self._queue = self._queue[: self.batch_size], self._queue[self.batch_size :]
        return drawn

    def batch(self, indices: list[int], device: torch.device) -> dict[str, torch.Tensor]:
        """Return features as a batch of the model's inputs and ``labels`` on a device."""
        collated = self._collate([self.features[index] for index in indices])
        return {key: value.to(device) for key, value in collated.items() if key not in BOOKKEEPING}

    def next_batch(self, device: torch.device) -> dict[str, torch.Tensor]:
        """Draw the next minibatch, as a batch on a device."""
        return self.batch(self.draw(), device)

    @contextmanager
    def own_randomness(self, device: torch.device) -> Iterator[None]:
        """Within it, dropout on ``device`` draws from the memory's seed; the global random state is as before after."""
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(int(torch.randint(2**62, (), generator=self._generator)))
            yield
