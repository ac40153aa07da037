"""A SLURM array script: one array task per run, each of which continues its run of the study."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from forgetting.errors import UsageError

SECONDS_TO_SAVE = 120
"""SIGTERM comes so long before the time limit: enough to finish a step and save."""


def array_script(
    name: str,
    runs: Sequence[tuple[Path, str]],
    *,
    cpus: int = 1,
    gpus: int = 0,
    at_once: int | None = None,
    directives: Sequence[str] = (),
    working_directory: Path | None = None,
) -> str:
    """Write the script; submitted again, it continues what was cut and passes over what is finished.

    Args:
        name: Of the job.
        runs: Study folder and run id of each array task; relative folders start at the working directory.
        cpus: Of each array task.
        gpus: Of each array task.
        at_once: At most so many array tasks run at the same time.
        directives: Further options of ``sbatch``, such as ``--time=24:00:00``; they come last, and win.
        working_directory: Where the study's relative paths start; the present one where not given.

    Raises:
        UsageError: if there is no run, or a directive is not one line that begins with ``-``.
    """
    if not runs:
        raise UsageError(f"study {name!r}: every run is finished, there is nothing for an array to do")
    for directive in directives:
        if not re.fullmatch(r"-\S[^\n\r]*", directive):
            raise UsageError(f"--sbatch {directive!r}: is not an option of sbatch, such as --time=24:00:00")
    throttle = f"%{at_once}" if at_once else ""
    options = [
        f"--job-name={name}",
        f"--array=0-{len(runs) - 1}{throttle}",
        "--ntasks=1",
        f"--cpus-per-task={cpus}",
        *([f"--gres=gpu:{gpus}"] if gpus else []),
        f"--signal=B:TERM@{SECONDS_TO_SAVE}",
        "--requeue",
        "--open-mode=append",
        *directives,
    ]
    quoted = shlex.quote
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH {option}" for option in options),
        "",
        f"# {len(runs)} runs, one per array task; what is finished is passed over, what was cut goes on.",
        "set -euo pipefail",
        f"cd {quoted(str((working_directory or Path.cwd()).absolute()))}",
        "folders=(",
        *(f"  {quoted(str(folder))}" for folder, _ in runs),
        ")",
        "runs=(",
        *(f"  {quoted(run_id)}" for _, run_id in runs),
        ")",
        f"export OMP_NUM_THREADS={cpus}",
        f"exec {quoted(sys.executable)} -m forgetting resume "
        '"${folders[$SLURM_ARRAY_TASK_ID]}" --only "${runs[$SLURM_ARRAY_TASK_ID]}"',
    ]
    return "\n".join(lines) + "\n"
