"""Checkpoints: folders that are whole or are not used; a run's state between two tasks.

Every checkpoint is a folder of safetensors and JSON with a manifest of its files' sizes and checksums. It is written
under a temporary name, flushed (files and folder) and renamed; what does not agree with its manifest is torn, and the
one before it is used. A run's folder has

    row-<r>                 model and mitigation after the first r tasks; the last two are kept. Where processes divide
                            a model among them (FSDP2), each has its files, model-<i>-of-<n>, and reads them again
    row-<r>-step-<s>        the next task's training after s steps (``forgetting.training_state``); the last two
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forgetting.distributed import barrier, is_main, sharded
from forgetting.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from forgetting.mitigations import Mitigation

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
KEPT = 2
"""Checkpoints of a kind that are kept: the newest may turn out to be torn."""
EVERY = "10 minutes"
"""The default: a task that takes less time is not saved in its middle, and costs nothing more."""
UNITS = {"step": 1, "steps": 1, "second": 1, "seconds": 1, "minute": 60, "minutes": 60, "hour": 3600, "hours": 3600}


class Interval:
    """How often a task's training is saved.

    Args:
        text: ``50 steps``, ``10 minutes`` (seconds, hours), or ``never``.

    Raises:
        UsageError: for anything else.
    """

    def __init__(self, text: str) -> None:
        match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([a-z]+)", text.strip())
        self.steps: int | None = None
        self.seconds: float | None = None
        if text.strip() == "never":
            return
        if match is None or match[2] not in UNITS or float(match[1]) == 0:
            raise UsageError(f"checkpoint_every = {text!r}: needs '50 steps', '10 minutes' or 'never'")
        if not match[2].startswith("step"):
            self.seconds = float(match[1]) * UNITS[match[2]]
        elif "." in match[1]:
            raise UsageError(f"checkpoint_every = {text!r}: steps are whole")
        else:
            self.steps = int(match[1])


def write_checkpoint(target: Path, files: Mapping[str, Callable[[Path], None]], *, shared: bool = False) -> None:
    """Write a folder of files and their manifest: the folder is there whole, or not at all.

    Args:
        target: The folder; one of that name is replaced.
        files: By name, functions that write them.
        shared: Whether every process calls this, each with files of its own, on one file system.

    Raises:
        UsageError: if it cannot be written (read-only, full).
    """
    from safetensors import SafetensorError

    temporary = target.with_name(f".{target.name}.tmp")
    wait: Callable[[], None] = barrier if shared else lambda: None
    try:
        if is_main():
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        wait()
        for name, write in files.items():
            write(temporary / name)
            flush(temporary / name)
        wait()
        if is_main():
            listed = {file.name: _describe(file) for file in sorted(temporary.iterdir())}
            (temporary / MANIFEST).write_text(json.dumps({"files": listed}, indent=1))
            flush(temporary / MANIFEST)
            flush(temporary)
            shutil.rmtree(target, ignore_errors=True)
            os.replace(temporary, target)
            flush(target.parent)
        wait()
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UsageError(
            f"output {str(target.parent)!r}: the checkpoint cannot be written: {error}; what was finished before is "
            "intact, free some space and resume"
        ) from None


def _describe(file: Path) -> dict[str, Any]:
    with open(file, "rb") as handle:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(handle, "sha256").hexdigest()}


def flush(path: Path) -> None:
    """Have a file's content, or a folder's names, written to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def torn(folder: Path) -> str | None:
    """Return what is wrong with a checkpoint, or ``None`` where every file is what its manifest says."""
    try:
        files = json.loads((folder / MANIFEST).read_bytes())["files"]
        for name, expected in files.items():
            if _describe(folder / name) != expected:
                return f"{name} is not what was written"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _whole(folder: Path) -> bool:
    """Whether a checkpoint can be used; one line in the log where it is there and cannot."""
    if not folder.is_dir():
        return False
    problem = torn(folder)
    if problem is not None:
        logger.warning("checkpoint %s is torn (%s); the one before it is used", folder, problem)
    return problem is None


def row_path(folder: Path, row: int) -> Path:
    """Where the state after the first ``row`` tasks is."""
    return folder / f"row-{row}"


def steps_of(folder: Path, row: int) -> list[int]:
    """The steps at which the task after row ``row`` was saved, oldest first, torn ones too."""
    found = (re.fullmatch(rf"row-{row}-step-(\d+)", path.name) for path in folder.glob(f"row-{row}-step-*"))
    return sorted(int(match[1]) for match in found if match)


def step_path(folder: Path, row: int, step: int) -> Path:
    """Where the state of the task after row ``row`` is, as it was after ``step`` of its steps."""
    return folder / f"row-{row}-step-{step}"


def save_checkpoint(folder: Path, row: int, model: PreTrainedModel, mitigation: Mitigation) -> None:
    """Write the state after the first ``row`` tasks.

    What is older stays until :func:`drop_older`: a kill between this and the record's write must find the row that
    the record tells of.

    Raises:
        UsageError: if the folder cannot be written (read-only, full).
    """
    from safetensors.torch import save_model

    if sharded():
        _save_shards(row_path(folder, row), model, mitigation)
        return
    if not is_main():
        return
    state = mitigation.state_dict()
    write_checkpoint(
        row_path(folder, row),
        {
            "model.safetensors": lambda path: save_model(model, str(path)),
            "mitigation.safetensors": lambda path: save_tensors(path, state),
        },
    )


def _save_shards(target: Path, model: PreTrainedModel, mitigation: Mitigation) -> None:
    from forgetting.sharding import held, part_name

    parts = {"model": held(dict(model.named_parameters())), "mitigation": held(mitigation.state_dict())}
    writers = {part_name(stem): lambda path, part=part: save_tensors(path, *part) for stem, part in parts.items()}
    write_checkpoint(target, writers, shared=True)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str] | None = None) -> None:
    """Write tensors by name; those that are parts of others, or share memory, are copied first."""
    from safetensors.torch import save_file

    own: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        value = tensor.detach().contiguous()
        if value.untyped_storage().nbytes() != value.nbytes or value.data_ptr() in seen:
            value = value.clone()
        seen.add(value.data_ptr())
        own[name] = value
    save_file(own, path, metadata=dict(about) if about else None)


def drop_older(folder: Path, row: int) -> None:
    """Delete what is not needed once row ``row`` is in the record: older rows but one, and steps on the way to it."""
    if not is_main():
        return
    for path in folder.glob("row-*"):
        match = re.fullmatch(r"row-(\d+)(-step-\d+)?", path.name)
        if match and int(match[1]) < (row if match[2] else row - KEPT + 1):
            shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(".row-*.tmp"):  # of a process that was killed while it wrote
        shutil.rmtree(path, ignore_errors=True)


def drop_newer(folder: Path, row: int) -> None:
    """Delete what comes after row ``row`` and the steps on from it: a run that goes back there trains it again."""
    if not is_main():
        return
    for path in folder.glob("row-*"):
        match = re.fullmatch(r"row-(\d+)(-step-\d+)?", path.name)
        if match and int(match[1]) > row:
            shutil.rmtree(path, ignore_errors=True)


def latest_row(folder: Path, row: int) -> int:
    """Return the newest row up to ``row`` whose checkpoint is whole, or 0 (the base model needs none)."""
    return next((candidate for candidate in range(row, 0, -1) if _whole(row_path(folder, candidate))), 0)


def latest_step(folder: Path, row: int) -> Path | None:
    """Return the newest whole checkpoint of the training after row ``row``, or ``None``."""
    paths = (step_path(folder, row, step) for step in reversed(steps_of(folder, row)))
    return next((path for path in paths if _whole(path)), None)


def load_checkpoint(folder: Path, row: int, model: PreTrainedModel, mitigation: Mitigation) -> None:
    """Load what :func:`save_checkpoint` wrote for ``row`` into a model and mitigation that were set up."""
    from safetensors.torch import load_file, load_model

    if sharded():
        _load_shards(row_path(folder, row), model, mitigation)
        return
    if not (row_path(folder, row) / "model.safetensors").is_file():
        raise UsageError(
            f"checkpoint {str(row_path(folder, row))!r}: was written under FSDP, in shards; resume as it was launched"
        )
    device = str(next(model.parameters()).device)
    load_model(model, str(row_path(folder, row) / "model.safetensors"), device=device)
    mitigation.load_state_dict(load_file(row_path(folder, row) / "mitigation.safetensors", device=device))


def _load_shards(checkpoint: Path, model: PreTrainedModel, mitigation: Mitigation) -> None:
    from safetensors import safe_open

    from forgetting.fisher.shards import local
    from forgetting.sharding import part_name, together

    read: dict[str, dict[str, Tensor]] = {}
    for stem in ("model", "mitigation"):
        if not (path := checkpoint / part_name(stem)).is_file():
            raise UsageError(
                f"checkpoint {str(checkpoint)!r}: has no {path.name}; resume with as many processes as it was "
                "written by, under FSDP if it was"
            )
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            read[stem] = together(tensors, file.metadata())
    for name, parameter in model.named_parameters():
        local(parameter.data).copy_(local(read["model"][name]))
    mitigation.load_state_dict(read["mitigation"])
