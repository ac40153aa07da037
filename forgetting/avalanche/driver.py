"""Avalanche's plugins in our loop: a stand-in for their strategy, and a language model as a classifier of tokens."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from avalanche.benchmarks.utils import DataAttribute, TaskAwareSupervisedClassificationDataset, TaskLabels
from avalanche.training.plugins.clock import Clock
from avalanche.training.regularization import LearningWithoutForgetting
from avalanche.training.utils import ParamData, cycle
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from forgetting.avalanche.plugins import PluginName, avalanche_plugin
from forgetting.distillation import predicted_logits
from forgetting.tasks.encode import IGNORED

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    Features = Sequence[dict[str, Any]]

PADDING = -1
SEPARATOR = "/"
BEGIN, END, STEP = range(3)
"""Moments of a task; its steps are numbered from STEP on."""
KEPT = {
    "ewc": ("saved_params", "importances"),
    "si": ("ewc_data", "syn_data"),
    "mas": ("params", "importance"),
    "rwalk": ("iter_importance", "exp_scores", "exp_params", "exp_importance", "exp_penalties"),
}
"""What must be stored; the others' state is a function of the tasks so far and of the present weights."""


class TokenClassifier(nn.Module):
    """A causal language model as Avalanche's plugins see models: x in, a row of logits per predicted token out.

    x is int64 (B, 2, W): token ids, -1 where padded, and labels. One tensor of one width, since plugins stack, cut and
    keep x as they do images.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, V) of the batch's N predicted tokens."""
        x = x[:, :, : int((x[:, 0] != PADDING).sum(1).max())]
        ids, labels = x[:, 0], x[:, 1]
        output = self.model(input_ids=ids.clamp(min=0), attention_mask=(ids != PADDING).long(), use_cache=False)
        return predicted_logits(output.logits, labels)


def token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy, in nats, of logits (N, V) for the N predicted tokens of labels (B, W); 0 for none."""
    wanted = labels[:, 1:][labels[:, 1:] != IGNORED]
    return functional.cross_entropy(logits, wanted) if len(wanted) else logits.sum()


class _AllUnits(LearningWithoutForgetting):
    """Distils every token of the vocabulary: all are classes that the pretrained model has seen."""

    def _distillation_loss(self, out: Tensor, prev_out: Tensor, active_units: Any) -> Tensor:
        return super()._distillation_loss(out, prev_out, range(out.shape[1]))


class Driver:
    """Calls an Avalanche plugin at the moments of our loop, with what it expects of a strategy.

    What the plugin draws at random comes from seeds of its own, and the model's mode is left as it was found.

    Args:
        name: Of the plugin.
        model: Trained in our loop.
        width: Tokens per example, at most.
        batch_size: Of the plugin's own passes.
        seed: Of what it draws.
        options: Of ``avalanche_plugin``.
    """

    def __init__(
        self, name: PluginName, model: PreTrainedModel, *, width: int, batch_size: int, seed: int, **options: Any
    ) -> None:
        self.name, self.model, self.width, self.batch_size, self.seed = name, model, width, batch_size, seed
        self.plugin: Any = avalanche_plugin(name, **options)
        if name == "lwf":
            self.plugin.lwf = _AllUnits(self.plugin.lwf.alpha, self.plugin.lwf.temperature)
        self.clock = Clock()
        self.strategy = SimpleNamespace(
            model=TokenClassifier(model),
            _criterion=token_loss,
            optimizer=SimpleNamespace(zero_grad=lambda: model.zero_grad(set_to_none=True)),
            device=next(model.parameters()).device,
            train_mb_size=batch_size,
            clock=self.clock,
            is_training=True,
        )
        self._in_step = False
        self._memory: Iterator[list[Tensor]] | None = None

    @contextmanager
    def _apart(self, moment: int) -> Iterator[None]:
        """The plugin's draws are a function of the seed, the task and the moment; nothing global is left changed."""
        python, training, device = random.getstate(), self.model.training, self.strategy.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            seed = (self.seed * 1000 + self.clock.train_exp_counter) * 1_000_003 + moment
            torch.manual_seed(seed)
            random.seed(seed)
            try:
                yield
            finally:
                random.setstate(python)
                self.model.train(training)

    def _call(self, *callbacks: str) -> None:
        for callback in callbacks:
            if hasattr(self.plugin, callback):
                getattr(self.plugin, callback)(self.strategy)

    def _rows(self, ids: Tensor, labels: Tensor) -> Tensor:
        """Ids and labels (B, T) as x (B, 2, W)."""
        x = ids.new_full((len(ids), 2, self.width), PADDING)
        x[:, 1] = IGNORED
        x[:, 0, : ids.shape[1]], x[:, 1, : ids.shape[1]] = ids, labels
        return x

    def _experience(self, features: Features) -> SimpleNamespace:
        """A task's features as an experience."""
        x = torch.cat([self._rows(torch.tensor([f["input_ids"]]), torch.tensor([f["labels"]])) for f in features])
        zeros = [0] * len(x)
        dataset = TaskAwareSupervisedClassificationDataset(
            [TensorDataset(x, x[:, 1])], data_attributes=[DataAttribute(zeros, "targets"), TaskLabels(zeros)]
        )
        return SimpleNamespace(dataset=dataset, current_experience=self.clock.train_exp_counter)

    def begin_task(self, features: Features) -> None:
        """Begin an experience with a task's training features."""
        self.strategy.experience = self._experience(features)
        with self._apart(BEGIN):
            if self.name != "replay":
                self._call("before_training", "before_training_exp")
            elif len(self.plugin.storage_policy.buffer):  # its callback would make a loader for Avalanche's loop
                buffer = self.plugin.storage_policy.buffer
                self._memory = cycle(DataLoader(buffer, batch_size=self.batch_size, shuffle=True))
        self.clock.before_training_exp(self.strategy)

    def loss(self, batch: dict[str, Tensor], outputs: Any, loss: Tensor) -> Tensor:
        """Return the batch's loss as the plugin changes it."""
        labels, strategy = batch["labels"], self.strategy
        ids = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, PADDING)
        x = self._rows(ids, labels)
        strategy.mbatch = [x, x[:, 1], torch.zeros_like(labels[:, 0])]
        strategy.mb_x, strategy.mb_y, strategy.mb_task_id = strategy.mbatch
        with self._apart(STEP + self.clock.train_exp_iterations):
            if not self._in_step:  # ``again`` comes back here within one step
                self._in_step = True
                self._call("before_training_iteration")
                self.model.zero_grad(set_to_none=True)
                self._replayed = next(self._memory) if self._memory is not None else None
            if self._replayed is not None:
                return self._with_memory(loss, int((labels[:, 1:] != IGNORED).sum()), self._replayed)
            strategy.mb_output = predicted_logits(outputs.logits, labels)
            strategy.loss = loss.clone()  # they add to it in place
            self._call("before_forward", "after_forward", "before_backward")
        return strategy.loss

    def _with_memory(self, loss: Tensor, predicted: int, replayed: list[Tensor]) -> Tensor:
        """The mean over the predicted tokens of the batch and of the memory's: Avalanche joins them to one batch."""
        x, y = (part.to(self.strategy.device) for part in replayed[:2])
        count = int((y[:, 1:] != IGNORED).sum())
        return (predicted * loss + count * token_loss(self.strategy.model(x), y)) / max(predicted + count, 1)

    def after_backward(self) -> None:
        """Let the plugin change the gradients."""
        with self._apart(STEP + self.clock.train_exp_iterations):
            self._call("after_backward", "before_update")

    def after_step(self) -> None:
        """Let the plugin see the weights after a step."""
        with self._apart(STEP + self.clock.train_exp_iterations):
            self._call("after_update", "after_training_iteration")
        self.clock.after_training_iteration(self.strategy)
        self._in_step = False
        self.strategy.loss = self.strategy.mb_output = None  # a graph

    def end_task(self) -> None:
        """End the experience: importances, memories, teachers."""
        with self._apart(END):
            self._call("after_training_exp", "after_training")
        self.model.zero_grad(set_to_none=True)
        self.clock.after_training_exp(self.strategy)
        self._memory = None

    def stored_floats(self) -> int:
        """Numbers that the plugin keeps for later tasks; examples are not counted."""
        if self.name == "lwf":
            teacher = self.plugin.lwf.prev_model
            return sum(parameter.numel() for parameter in teacher.parameters()) if teacher is not None else 0
        return sum(value.numel() for value in self._kept().values())

    def _kept(self) -> dict[str, Tensor]:
        return {
            path: value
            for attribute in KEPT.get(self.name, ())
            for path, value in _flat(attribute, getattr(self.plugin, attribute))
        }

    def state_dict(self) -> dict[str, Tensor]:
        """Counters, and what cannot be made again from the tasks so far."""
        counters = {"tasks": self.clock.train_exp_counter, "iterations": self.clock.train_iterations}
        return {key: torch.tensor(value) for key, value in counters.items()} | self._kept()

    def load_state_dict(self, state: dict[str, Tensor], tasks: Iterable[Features]) -> None:
        """Restore, with the weights as they were, and with the features of every task so far."""
        done = int(state["tasks"])
        if self.name not in KEPT:
            for features in islice(tasks, done):
                self.strategy.experience = self._experience(features)
                self.end_task()
        self.clock.train_exp_counter, self.clock.train_iterations = done, int(state["iterations"])
        for path, value in state.items():
            attribute, *keys = path.split(SEPARATOR)
            if not keys:
                continue
            if getattr(self.plugin, attribute) is None:
                setattr(self.plugin, attribute, {})
            place: Any = getattr(self.plugin, attribute)
            *inner, last = [int(key) if key.isdigit() else key for key in keys]
            for key in inner:
                place = place.setdefault(key, {}) if isinstance(place, dict) else place[key]
            place[last] = ParamData(str(last), init_tensor=value.clone(), device=value.device)


def _flat(path: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """Tensors in nested dictionaries and tuples, by path."""
    if isinstance(value, ParamData):
        yield path, value.data.detach().clone()
    elif isinstance(value, (dict, tuple)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _flat(f"{path}{SEPARATOR}{key}", item)
