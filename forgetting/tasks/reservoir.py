"""Examples kept with the logits that a model had for them when they were stored (dark experience replay)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from forgetting.avalanche import replay_buffer
from forgetting.distillation import at_predicted, predict, teach
from forgetting.tasks.encode import IGNORED
from forgetting.tasks.memory import Memory, predicts, stored_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from forgetting.avalanche.buffers import BufferPolicy
    from forgetting.mitigations.base import RunContext


class LogitReservoir:
    """A buffer of Avalanche's, in which every example has the logits of the model that met it.

    What is kept is a function of the sizes of the states met so far and of the seed; what once was left out never
    comes back, so that no example is stored without its logits.

    Args:
        context: Of the run.
        capacity: Examples kept in all.
        policy: Of the buffer, see :func:`forgetting.avalanche.replay_buffer`.
        positions: Most predicted positions of an example whose logits are kept; which ones is drawn.
    """

    def __init__(self, context: RunContext, *, capacity: int, policy: BufferPolicy, positions: int) -> None:
        self.context = context
        self.capacity, self.policy, self.positions = capacity, policy, positions
        self.sizes: list[int] = []
        self.features: dict[tuple[int, int], dict[str, Any]] = {}
        self.logits: dict[tuple[int, int], Tensor] = {}
        self._memory: Memory | None = None

    def __len__(self) -> int:
        return len(self.features)

    def add(self, model: PreTrainedModel, features: Sequence[dict[str, Any]]) -> None:
        """Meet a state's examples, and store those that are kept with the logits (N, V) that the model has now."""
        state = len(self.sizes)
        self.sizes.append(len(features))
        kept = replay_buffer(self.sizes, capacity=self.capacity, policy=self.policy, seed=self.context.seed)
        for key in self.features.keys() - set(kept):
            del self.features[key], self.logits[key]
        generator = torch.Generator().manual_seed(self.context.seed * 1000 + state)
        new = [key for key in kept if key[0] == state and predicts(features[key[1]])]
        was_training = model.training
        model.eval()
        for key in new:
            feature = self._at_some_positions(features[key[1]], generator)
            batch = Memory([feature], self.context.tokenizer, batch_size=1, seed=0).batch([0], model.device)
            self.features[key], self.logits[key] = feature, teach(model, batch)
        model.train(was_training)

    def _at_some_positions(self, feature: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
        predicted = [i for i, label in enumerate(feature["labels"]) if label != IGNORED]
        order = torch.randperm(len(predicted), generator=generator).tolist()
        kept = {predicted[i] for i in order[: self.positions]}
        labels = [label if i in kept else IGNORED for i, label in enumerate(feature["labels"])]
        return {"input_ids": feature["input_ids"], "labels": labels, "source": 0, "truncated": 0}

    def begin(self, *, batch_size: int | None, position: int) -> None:
        """Begin the draws of the run's task at ``position``."""
        features = list(self.features.values())
        if features:
            self._memory = Memory.for_task(features, self.context, batch_size=batch_size, position=position)

    def replay(self, model: PreTrainedModel, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Run the model on the next minibatch; N is the number of its stored positions.

        Returns:
            The model's logits (N, V), the stored ones (N, V), and the targets (N,).
        """
        assert self._memory is not None
        indices, stored = self._memory.draw(), list(self.logits.values())
        batch = self._memory.batch(indices, device)
        with self._memory.own_randomness(device):
            logits = predict(model, batch)
        return logits, torch.cat([stored[i] for i in indices]), at_predicted(batch["labels"], batch["labels"])

    def task_state(self) -> dict[str, Tensor]:
        """Where the task's draws stand."""
        return {} if self._memory is None else self._memory.state_dict()

    def load_task_state(self, state: dict[str, Tensor]) -> None:
        """Restore."""
        if self._memory is not None:
            self._memory.load_state_dict(state)

    def stored_floats(self) -> int:
        """The logits and the tokens."""
        return sum(logits.numel() for logits in self.logits.values()) + stored_tokens(list(self.features.values()))

    def state_dict(self) -> dict[str, Tensor]:
        """What is kept, its examples one after the other; K of them, T tokens and N predicted positions in all."""
        features = list(self.features.values())
        state = {
            "sizes": torch.tensor(self.sizes, dtype=torch.long),
            "keys": torch.tensor(list(self.features), dtype=torch.long).reshape(-1, 2),  # (K, 2)
            "lengths": torch.tensor([len(feature["input_ids"]) for feature in features], dtype=torch.long),  # (K,)
        }
        for key in ("input_ids", "labels"):
            state[key] = torch.tensor(
                [token for feature in features for token in feature[key]], dtype=torch.long
            )  # (T,)
        if features:
            state["logits"] = torch.cat(list(self.logits.values()))  # (N, V)
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self.sizes = state["sizes"].tolist()
        keys = [(int(s), int(e)) for s, e in state["keys"]]
        lengths = state["lengths"].tolist()
        ids, labels = state["input_ids"].split(lengths), state["labels"].split(lengths)
        self.features = {
            key: {"input_ids": tokens.tolist(), "labels": targets.tolist(), "source": 0, "truncated": 0}
            for key, tokens, targets in zip(keys, ids, labels, strict=True)
        }
        counts = [sum(label != IGNORED for label in feature["labels"]) for feature in self.features.values()]
        self.logits = dict(zip(keys, state["logits"].split(counts), strict=True)) if keys else {}
