"""A run's state between two tasks: the model's weights and the mitigation's, as safetensors."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from forgetting.distributed import is_main
from forgetting.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from forgetting.mitigations import Mitigation

FILES = ("model.safetensors", "mitigation.safetensors")


def save_checkpoint(folder: Path, row: int, model: PreTrainedModel, mitigation: Mitigation) -> None:
    """Write ``folder/row-<row>`` under a temporary name, rename it, then delete older rows but one.

    The one before stays until the next: a kill between this and the record's write must find the row that the
    record tells of.

    Raises:
        UsageError: if the folder cannot be written (read-only, full).
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file, save_model

    if not is_main():
        return
    target = folder / f"row-{row}"
    temporary = folder / f".row-{row}.tmp"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        save_model(model, str(temporary / FILES[0]))
        state = {key: value.detach().contiguous().clone() for key, value in mitigation.state_dict().items()}
        save_file(state, temporary / FILES[1])
        for file in temporary.iterdir():
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())
        shutil.rmtree(target, ignore_errors=True)
        os.replace(temporary, target)
    except (OSError, SafetensorError) as error:
        raise UsageError(
            f"output {str(folder)!r}: the checkpoint cannot be written: {error}; what was finished before is intact, "
            "free some space and resume"
        ) from None
    for old in folder.glob("row-*"):
        if int(old.name.removeprefix("row-")) < row - 1:
            shutil.rmtree(old, ignore_errors=True)


def latest_row(folder: Path, row: int) -> int:
    """Return the newest row up to ``row`` whose checkpoint is whole, or 0 (the base model needs none)."""
    from safetensors import SafetensorError, safe_open

    for candidate in range(row, 0, -1):
        try:
            for file in FILES:
                with safe_open(folder / f"row-{candidate}" / file, framework="pt"):
                    pass
            return candidate
        except (OSError, SafetensorError):
            continue
    return 0


def load_checkpoint(folder: Path, row: int, model: PreTrainedModel, mitigation: Mitigation) -> None:
    """Load what :func:`save_checkpoint` wrote for ``row`` into a model and mitigation that were set up."""
    from safetensors.torch import load_file, load_model

    device = str(next(model.parameters()).device)
    load_model(model, str(folder / f"row-{row}" / FILES[0]), device=device)
    mitigation.load_state_dict(load_file(folder / f"row-{row}" / FILES[1], device=device))
