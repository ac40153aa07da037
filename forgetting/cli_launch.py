"""Options of the command line that say where runs are computed, shared by ``run``, ``resume`` and ``study run``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from forgetting.config import StudyConfig
    from forgetting.launchers import Launch

Workers = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Runs at once. local: processes, the cores and GPUs are divided among them, never more than GPUs.",
    ),
]
Launcher = Annotated[
    str, typer.Option("--launcher", help="local, ray, or slurm (prints an array script, with --dry-run).")
]
CpusPerRun = Annotated[int | None, typer.Option(min=1, help="ray, slurm: cores of each run. [default: 1]")]
GpusPerRun = Annotated[int | None, typer.Option(min=0, help="ray, slurm: GPUs of each run. [default: 0]")]
Address = Annotated[
    str | None, typer.Option(help="ray: address of a cluster (auto, host:port). [default: one of this machine]")
]
Sbatch = Annotated[
    list[str] | None, typer.Option("--sbatch", help="slurm: an option of sbatch, as --time=24:00:00; repeatable.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan (slurm: the script) and stop.")]


@dataclass(frozen=True)
class Launching:
    """What those options say."""

    launcher: str = "local"
    workers: int | None = None
    cpus: int | None = None
    gpus: int | None = None
    address: str | None = None
    directives: tuple[str, ...] = ()

    def launch(self, *, dry_run: bool = False) -> Launch:
        """The launcher; see :func:`forgetting.launchers.choose`."""
        from forgetting.launchers import choose

        return choose(
            self.launcher,
            cpus=self.cpus,
            gpus=self.gpus,
            address=self.address,
            directives=self.directives,
            dry_run=dry_run,
        )

    def workers_or(self, default: int) -> int:
        """Runs at once: those given, else ``default`` locally, and on a cluster (0) as many as it has room for."""
        return self.workers or (default if self.launcher == "local" else 0)

    def print_plans(self, name: str, studies: Mapping[Path, StudyConfig]) -> None:
        """Print what would be done; for SLURM the script, after writing each study.yaml that it needs."""
        from forgetting.display import print_plan
        from forgetting.launchers.slurm import array_script
        from forgetting.results import ResultStore
        from forgetting.study import plan_study

        self.launch(dry_run=True)
        plans = {folder: plan_study(config, folder) for folder, config in studies.items()}
        if self.launcher != "slurm":
            for folder, plan in plans.items():
                print_plan(plan, folder)
            return
        runs = [(folder, run.config.run_id) for folder, plan in plans.items() for run in plan.left]
        script = array_script(
            name, runs, cpus=self.cpus or 1, gpus=self.gpus or 0, at_once=self.workers, directives=self.directives
        )
        for folder, config in studies.items():
            ResultStore.create(folder, config)
            for warning in plans[folder].warnings:
                typer.echo(f"note: {warning}", err=True)
        typer.echo(script, nl=False)
