"""``forgetting study``: the named studies."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Annotated

import typer

from forgetting import interruption
from forgetting.cli_launch import Address, CpusPerRun, DryRun, GpusPerRun, Launcher, Launching, Sbatch, Workers
from forgetting.errors import UsageError

studies = typer.Typer(help="The named studies: a published claim, its runs, and the verdict.", no_args_is_help=True)

Root = Annotated[Path, typer.Option("--output", "-o", help="Folder of all studies' results.")]


@studies.command("list")
def list_studies() -> None:
    """List the studies of this repository."""
    from rich.console import Console
    from rich.table import Table

    from forgetting.studies import headline, scripts

    table = Table("study", "what it asks")
    for name, path in scripts().items():
        table.add_row(name, headline(path))
    Console().print(table)


@studies.command("run")
def run_study(
    name: Annotated[list[str] | None, typer.Argument(help="Studies; see `forgetting study list`.")] = None,
    scale: Annotated[str, typer.Option(help="smoke, laptop or gpu.")] = "laptop",
    every: Annotated[bool, typer.Option("--all", help="All studies.")] = False,
    workers: Workers = None,
    launcher: Launcher = "local",
    cpus_per_run: CpusPerRun = None,
    gpus_per_run: GpusPerRun = None,
    address: Address = None,
    sbatch: Sbatch = None,
    hours: Annotated[float | None, typer.Option(min=0, help="Begin no run after so many hours.")] = None,
    draw: Annotated[bool, typer.Option("--draw", help="Verdicts and figures from results alone.")] = False,
    dry_run: DryRun = False,
    output: Root = Path("results"),
) -> None:
    """Run what is missing of studies, then print and write their verdicts; goes on where it was stopped."""
    from forgetting.studies import conclude, load, print_verdicts, run_named, scale_of, scripts, unfinished

    if bool(name) == every:
        raise UsageError("study run: name studies, or give --all")
    checked = scale_of(scale)
    launching = Launching(launcher, workers, cpus_per_run, gpus_per_run, address, tuple(sbatch or ()))
    chosen = [load(one) for one in (scripts() if every else name or ())]
    if dry_run:
        grids = {folder: config for study in chosen for folder, config in unfinished(study, output, checked).items()}
        launching.print_plans("-".join(study.name for study in chosen), grids)
        return
    launch = launching.launch()
    until = math.inf if hours is None else time.monotonic() + 3600 * hours
    stopped: list[str] = []
    for study in chosen:
        try:
            if draw:
                verdicts = conclude(study, output, checked)
            else:
                verdicts = run_named(
                    study, output, checked, workers=launching.workers_or(2), until=until, launch=launch
                )
        except interruption.Interrupted as stop:
            typer.echo(f"{stop}; continue with the same command", err=True)
            raise typer.Exit(interruption.EXIT_CODE) from None
        except UsageError as error:  # the others can run: what is needed is said at the end
            stopped.append(f"{study.name}: {error}")
            continue
        print_verdicts(study, verdicts)
    if stopped:
        raise UsageError("; ".join(stopped))


@studies.command("summary")
def summary(output: Root = Path("results")) -> None:
    """Write README.md of the results: every claim, what was published, ours, and the verdict."""
    from forgetting.report.claims import write_claims

    typer.echo(write_claims(output))
