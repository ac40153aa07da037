"""A task's training in its middle, as tensors and JSON: what a killed process needs to go on with the very next step.

In a checkpoint of a task's training are the weights that train and the model's buffers (the rest is what the task began
with), the optimizer's and the scheduler's state, all random states, what the mitigation and its callbacks have gathered
since the task began, and what the trainer counted. The order of the data is a function of the seed and the epoch;
transformers' Trainer skips what was seen.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from forgetting.checkpoint import KEPT, Interval, save_tensors, step_path, steps_of, write_checkpoint
from forgetting.errors import UsageError

TENSORS, VALUES, TRAINER = "state.safetensors", "state.json", "trainer_state.json"


class TaskCheckpoints:
    """Of one task of a run: when to save, where to, and which are kept.

    Args:
        folder: Of the run's checkpoints.
        row: Tasks that were learned before.
        interval: How often; a signal's checkpoint is written all the same.

    Attributes:
        seconds_before: What the task took in the processes before this one.
    """

    def __init__(self, folder: Path, row: int, interval: Interval) -> None:
        self.folder, self.row, self.interval = folder, row, interval
        self.seconds_before = 0.0
        self._begun = self._saved = time.monotonic()

    def seconds(self) -> float:
        """What the task took so far, in all processes."""
        return self.seconds_before + time.monotonic() - self._begun

    def due(self, step: int, *, last: bool) -> bool:
        """Whether to save after a step.

        With an interval of time, also after the last step, if a tenth of it has passed: a kill during the evaluation
        or the Fisher information that follows then repeats no training.
        """
        if self.interval.steps is not None:
            return last or step % self.interval.steps == 0
        if self.interval.seconds is not None:
            return time.monotonic() - self._saved >= self.interval.seconds * (0.1 if last else 1)
        return False

    def save(self, step: int, tensors: Mapping[str, Tensor], values: Mapping[str, Any], trainer_state: str) -> None:
        """Write a checkpoint, then delete all of the task's but the last ones.

        Those of later steps go first: they are torn, or of a training that was begun again from before them.
        """
        content = json.dumps({**values, "seconds": self.seconds()})
        for later in (one for one in steps_of(self.folder, self.row) if one > step):
            shutil.rmtree(step_path(self.folder, self.row, later), ignore_errors=True)
        write_checkpoint(
            step_path(self.folder, self.row, step),
            {
                TENSORS: lambda path: save_tensors(path, tensors),
                VALUES: lambda path: _write(path, content),
                TRAINER: lambda path: _write(path, trainer_state),
            },
        )
        for old in steps_of(self.folder, self.row)[:-KEPT]:
            shutil.rmtree(step_path(self.folder, self.row, old), ignore_errors=True)
        self._saved = time.monotonic()


def _write(path: Path, content: str) -> None:
    path.write_text(content, "utf-8")


def load_values(checkpoint: Path) -> dict[str, Any]:
    """Read a checkpoint's JSON."""
    return json.loads((checkpoint / VALUES).read_bytes())


def load_tensors(checkpoint: Path) -> dict[str, Tensor]:
    """Read a checkpoint's tensors, on the CPU."""
    from safetensors.torch import load_file

    return load_file(checkpoint / TENSORS)


def moving(model: nn.Module) -> dict[str, Tensor]:
    """What training may change in a model: the parameters that require gradients, and all buffers; no copies."""
    trained = {name: p.data for name, p in model.named_parameters() if p.requires_grad}
    return trained | dict(model.named_buffers())


def put_back(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Give a model what :func:`moving` returned of it.

    Raises:
        UsageError: if something else trains now than then.
    """
    here = moving(model)
    if here.keys() != values.keys():
        other = sorted(here.keys() ^ values.keys())[0]
        raise UsageError(f"checkpoint: {other!r} trains now or did then, not both; delete the run's checkpoints")
    for name, tensor in here.items():
        tensor.copy_(values[name])


def optimizer_state(optimizer: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split an optimizer's state into tensors, ``<parameter>.<key>``, and JSON."""
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for parameter, entries in state["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{parameter}.{key}"] = value
            else:
                plain.setdefault(str(parameter), {})[key] = value
    return tensors, {"groups": state["param_groups"], "plain": plain}


def load_optimizer(optimizer: Any, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    """Restore what :func:`optimizer_state` gave."""
    state: dict[int, dict[str, Any]] = {int(key): dict(entries) for key, entries in values["plain"].items()}
    for name, tensor in tensors.items():
        parameter, key = name.split(".", 1)
        state.setdefault(int(parameter), {})[key] = tensor
    groups = [
        {key: tuple(value) if key == "betas" else value for key, value in group.items()} for group in values["groups"]
    ]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


TorchState = tuple[Tensor, Tensor | None]
"""Of torch's global generators: the CPU's, and that of the GPU in use where there is one."""


def torch_state() -> TorchState:
    """What dropout draws from; it is kept for every batch, so other GPUs are not waited for."""
    return torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_available() else None


def set_torch_state(state: TorchState) -> None:
    """Restore what :func:`torch_state` gave."""
    cpu, gpu = state
    torch.set_rng_state(cpu)
    if gpu is not None:
        torch.cuda.set_rng_state(gpu)


def random_state() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All global random states: Python's, numpy's, torch's on the CPU and on every GPU."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    tensors = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors |= {f"cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    values = {
        "python": [version, list(internal), gauss],
        "numpy": [name, np.asarray(keys).tolist(), position, has_gauss, cached],
    }
    return tensors, values


def set_random_state(tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    """Restore what :func:`random_state` gave, as far as there are as many GPUs."""
    version, internal, gauss = values["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = values["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(tensors["cpu"])
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            if f"cuda.{i}" in tensors:
                torch.cuda.set_rng_state(tensors[f"cuda.{i}"], i)


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin with ``<prefix>/``, without it."""
    start = f"{prefix}/"
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}


def gathered(parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Name every part's tensors ``<part>/<name>``, in one dictionary."""
    return {f"{part}/{name}": value for part, tensors in parts.items() for name, value in tensors.items()}
