"""Commands that train: ``demo``, ``run`` and ``resume``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from forgetting import interruption
from forgetting.checkpoint import EVERY
from forgetting.cli_launch import Address, CpusPerRun, DryRun, GpusPerRun, Launcher, Launching, Sbatch, Workers
from forgetting.errors import UsageError

if TYPE_CHECKING:
    from forgetting.config import StudyConfig
    from forgetting.results import RunRecord

Hours = Annotated[float | None, typer.Option(min=0, help="Begin no run after so many hours; resume later.")]
Every = Annotated[
    str, typer.Option("--checkpoint-every", help="Save a task's training: '10 minutes', '50 steps', or never.")
]
Wandb = Annotated[str | None, typer.Option("--wandb", help="Log to this wandb project too (offline if need be).")]


def _study(
    folder: Path,
    config: StudyConfig,
    launching: Launching,
    *,
    wandb: str | None = None,
    hours: float | None = None,
    checkpoint_every: str = EVERY,
) -> None:
    """Plan, run with progress, report; exit code 1 where a run failed, 75 after SIGINT or SIGTERM."""
    from forgetting.display import RunProgress
    from forgetting.distributed import is_main
    from forgetting.study import run_study

    launch = launching.launch()
    try:
        with RunProgress() as progress:
            records = run_study(
                config,
                folder,
                launch=launch,
                workers=launching.workers_or(1),
                progress=progress.update,
                wandb_project=wandb,
                on_plan=progress.expect,
                hours=hours,
                checkpoint_every=checkpoint_every,
            )
    except interruption.Interrupted as stop:
        if is_main():
            typer.echo(f"{stop}; continue with: forgetting resume {folder}", err=True)
        raise typer.Exit(interruption.EXIT_CODE) from None
    if is_main():
        _tell(folder, config, records, hours)
    if any(record.status == "failed" for record in records):
        raise typer.Exit(1)


def _tell(folder: Path, config: StudyConfig, records: list[RunRecord], hours: float | None) -> None:
    from forgetting.display import print_outcome
    from forgetting.report import write_report

    print_outcome(folder, write_report(folder))
    if missing := len(config.runs()) - len(records):
        typer.echo(f"{missing} runs were not begun within {hours:g} hours; continue with: forgetting resume {folder}")


def demo(
    output: Annotated[Path, typer.Option(help="Folder of the study.")] = Path("demo"),
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds.")] = 1,
    workers: Workers = 2,
) -> None:
    """Run the embedded model over five tasks under every headline mitigation: table, figures, HTML report."""
    from forgetting.demo import demo_study

    _study(output, demo_study(seeds), Launching(workers=workers))


def run(
    study: Annotated[Path | None, typer.Argument(help="A study file (YAML); flags change what it says.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the study.")] = None,
    model: Annotated[str | None, typer.Option(help="micro, a transformers folder, or a hub id.")] = None,
    sequence: Annotated[str | None, typer.Option(help="A named sequence.")] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(help="A JSONL file of your own as a task, instead of --sequence; repeatable."),
    ] = None,
    data_dir: Annotated[str | None, typer.Option(help="Local folder with the sequence's data.")] = None,
    mitigation: Annotated[
        list[str] | None, typer.Option(help="name:option=value+name; repeatable (see `list mitigations`).")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Number of seeds.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Base learning rate.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps per task.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Epochs per task, instead of steps.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Sequences per batch.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens per sequence.")] = None,
    suite: Annotated[
        list[str] | None, typer.Option(help="Capability suite, lm-eval task, or folder of YAML; repeatable.")
    ] = None,
    suite_dir: Annotated[str | None, typer.Option(help="Local folder with the suites' data.")] = None,
    limit: Annotated[int | None, typer.Option(help="Items per capability.")] = None,
    pretraining: Annotated[
        str | None,
        typer.Option(help="Text like the pretraining data: micro, self, a file, or a hub data set."),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Any other key: training.packing=true; repeatable.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the study (default: results/<name>).")] = None,
    workers: Workers = None,
    launcher: Launcher = "local",
    cpus_per_run: CpusPerRun = None,
    gpus_per_run: GpusPerRun = None,
    address: Address = None,
    sbatch: Sbatch = None,
    hours: Hours = None,
    checkpoint_every: Every = EVERY,
    wandb: Wandb = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Let code that came with the model run. Dangerous.")
    ] = False,
    dry_run: DryRun = False,
) -> None:
    """Run a study from a YAML file, from flags, or both."""
    from forgetting.config import parse_study, read_yaml

    values: dict[str, Any] = read_yaml(study) if study else {}
    flags: dict[str, Any] = {
        "name": name,
        "model": model,
        "mitigations": mitigation,
        "seeds": seeds,
        "training.learning_rate": learning_rate,
        "training.steps": steps,
        "training.epochs": epochs,
        "training.batch_size": batch_size,
        "training.max_length": max_length,
        "evaluation.suite": suite,
        "evaluation.data_dir": suite_dir,
        "evaluation.limit": limit,
        "pretraining.source": pretraining,
        "trust_remote_code": trust_remote_code or None,
    }
    if sequence is not None and data:
        raise UsageError("--sequence and --data are both given; give one")
    if sequence is not None:
        values["sequence"] = {"name": sequence}
    if data:
        tasks = [{"name": path.stem, "train": str(path)} for path in data]
        values["sequence"] = {"name": "-".join(path.stem for path in data), "tasks": tasks}
    if data_dir is not None:
        if isinstance(values.get("sequence"), str):
            values["sequence"] = {"name": values["sequence"]}
        flags["sequence.data_dir"] = data_dir
    for key, value in flags.items():
        if value is not None:
            assign(values, key, value)
    for item in settings or []:
        key, equals, text = item.partition("=")
        if not equals or not key:
            raise UsageError(f"--set {item!r}: is not key=value, such as training.packing=true")
        assign(values, key, _scalar(text))
    if steps is not None:
        values["training"].pop("epochs", None)
    if epochs is not None and steps is None:
        values["training"].pop("steps", None)
    values.setdefault("name", study.stem if study else "study")
    config = parse_study(values, source=str(study) if study else "flags")
    folder = output or Path("results") / config.name
    launching = Launching(launcher, workers, cpus_per_run, gpus_per_run, address, tuple(sbatch or ()))
    if dry_run:
        launching.print_plans(config.name, {folder: config})
        return
    _study(folder, config, launching, wandb=wandb, hours=hours, checkpoint_every=checkpoint_every)


def _scalar(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        return text


def assign(values: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key in nested mappings."""
    *parents, last = key.split(".")
    for parent in parents:
        child = values.setdefault(parent, {})
        if not isinstance(child, dict):
            raise UsageError(f"{key}: {parent} is {child!r}, which has no keys of its own")
        values = child
    values[last] = value


def resume(
    folder: Annotated[Path, typer.Argument(help="Folder of a study that was begun.")],
    only: Annotated[
        str | None, typer.Option(help="Do this run alone, by its id (a file's name in runs/); no report is made.")
    ] = None,
    workers: Workers = None,
    launcher: Launcher = "local",
    cpus_per_run: CpusPerRun = None,
    gpus_per_run: GpusPerRun = None,
    address: Address = None,
    sbatch: Sbatch = None,
    hours: Hours = None,
    checkpoint_every: Every = EVERY,
    wandb: Wandb = None,
    dry_run: DryRun = False,
) -> None:
    """Continue a study after a crash, a kill or a full disk, from each run's last checkpoint.

    What it may be given changes no number: processes, hours, checkpoints and logging. Everything else is in study.yaml.
    """
    from forgetting.results import ResultStore

    config = ResultStore.existing(folder).config()
    launching = Launching(launcher, workers, cpus_per_run, gpus_per_run, address, tuple(sbatch or ()))
    if only is not None:
        for option, given in (
            ("--dry-run", dry_run),
            ("--launcher", launcher != "local"),
            ("--workers", workers is not None),
            ("--hours", hours is not None),
        ):
            if given:
                raise UsageError(f"{option}: --only does one run, here and now; leave it out")
        launching.launch()  # refuses the other launchers' options
        _one_run(folder, config, only, wandb, checkpoint_every)
    elif dry_run:
        launching.print_plans(config.name, {folder: config})
    else:
        _study(folder, config, launching, wandb=wandb, hours=hours, checkpoint_every=checkpoint_every)


def _one_run(folder: Path, config: StudyConfig, run_id: str, wandb: str | None, checkpoint_every: str) -> None:
    """Do one run of a study in this process: what others do beside it, in an array of jobs, is left alone."""
    from forgetting.display import RunProgress
    from forgetting.results import ResultStore
    from forgetting.study import run_studies

    try:
        with RunProgress() as progress:
            run_studies(
                {folder: config},
                progress=progress.update,
                on_plan=progress.expect,
                wandb_project=wandb,
                checkpoint_every=checkpoint_every,
                only=run_id,
            )
    except interruption.Interrupted as stop:
        typer.echo(f"{stop}; continue with the same command", err=True)
        raise typer.Exit(interruption.EXIT_CODE) from None
    record = ResultStore(folder).load(run_id)
    assert record is not None
    typer.echo(f"{run_id}: {record.status}; all of the study: forgetting report {folder}")
    if record.status == "failed":
        raise typer.Exit(1)
