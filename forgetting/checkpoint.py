"""A run's state between two tasks: the model's weights and the mitigation's, as safetensors."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from forgetting.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from forgetting.mitigations import Mitigation


def save_checkpoint(folder: Path, row: int, model: PreTrainedModel, mitigation: Mitigation) -> None:
    """Write ``folder/row-<row>`` under a temporary name, rename it, then delete older rows but one.

    The one before stays until the next: a kill between this and the record's write must find the row that the
    record tells of.

    Raises:
        UsageError: if the folder cannot be written (read-only, full).
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file, save_model

    target = folder / f"row-{row}"
    temporary = folder / f".row-{row}.tmp"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        save_model(model, str(temporary / "model.safetensors"))
        state = {key: value.detach().contiguous().clone() for key, value in mitigation.state_dict().items()}
        save_file(state, temporary / "mitigation.safetensors")
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


def load_checkpoint(folder: Path, row: int, model: PreTrainedModel, mitigation: Mitigation) -> PreTrainedModel:
    """Load what :func:`save_checkpoint` wrote for ``row`` into a model and mitigation that were set up.

    Raises:
        FileNotFoundError: if there is no such checkpoint.
    """
    from safetensors.torch import load_file, load_model

    target = folder / f"row-{row}"
    if not (target / "mitigation.safetensors").is_file():
        raise FileNotFoundError(str(target))
    load_model(model, str(target / "model.safetensors"), device=str(next(model.parameters()).device))
    device = next(model.parameters()).device
    mitigation.load_state_dict(load_file(target / "mitigation.safetensors", device=str(device)))
    return model
