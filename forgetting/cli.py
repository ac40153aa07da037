"""The command line; each command is a few lines that call the package, imported when it runs."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from forgetting import interruption
from forgetting.checkpoint import EVERY
from forgetting.cli_audit import audit
from forgetting.cli_launch import Address, CpusPerRun, DryRun, GpusPerRun, Launcher, Launching, Sbatch, Workers
from forgetting.cli_plan import plan
from forgetting.cli_studies import studies
from forgetting.distributed import is_main
from forgetting.errors import ForgettingError, UsageError

if TYPE_CHECKING:
    from forgetting.config import StudyConfig
    from forgetting.results import RunRecord

app = typer.Typer(
    name="forgetting",
    help="Fine-tune pretrained models over tasks, mitigate what they forget, and measure it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
micro = typer.Typer(help="The embedded world: its generator and its pretrained model.", no_args_is_help=True)
app.add_typer(micro, name="micro")
app.add_typer(studies, name="study")
app.command()(plan)
app.command()(audit)

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


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder of the study.")] = Path("demo"),
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds.")] = 1,
    workers: Workers = 2,
) -> None:
    """Run the embedded model over five tasks under every headline mitigation: table, figures, HTML report."""
    from forgetting.demo import demo_study

    _study(output, demo_study(seeds), Launching(workers=workers))


@app.command()
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
            _assign(values, key, value)
    for item in settings or []:
        key, equals, text = item.partition("=")
        if not equals or not key:
            raise UsageError(f"--set {item!r}: is not key=value, such as training.packing=true")
        _assign(values, key, _scalar(text))
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


def _assign(values: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key in nested mappings."""
    *parents, last = key.split(".")
    for parent in parents:
        child = values.setdefault(parent, {})
        if not isinstance(child, dict):
            raise UsageError(f"{key}: {parent} is {child!r}, which has no keys of its own")
        values = child
    values[last] = value


@app.command()
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
        if dry_run or launcher != "local":
            raise UsageError("--only: does one run, here and now; leave --dry-run and --launcher out")
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


@app.command()
def rerun(
    record: Annotated[Path, typer.Argument(help="A run's record: results/<study>/runs/<run id>.json.")],
    output: Annotated[Path | None, typer.Option(help="A new folder (default: results/rerun-<run id>).")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Let code that came with the model run. Dangerous.")
    ] = False,
) -> None:
    """Run a record again from itself alone, and print the difference: code 0 if equal bit for bit, 3 if not."""
    from forgetting.rerun import DIFFERENT, print_difference
    from forgetting.rerun import rerun as run_again

    _, difference = run_again(
        record, output or Path("results") / f"rerun-{record.stem}", trust_remote_code=trust_remote_code
    )
    print_difference(difference)
    if difference.numbers:
        raise typer.Exit(DIFFERENT)


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="Folder of a study.")]) -> None:
    """Make summary, figures, tables and one self-contained HTML page from a study's results."""
    from forgetting.display import print_outcome
    from forgetting.report import write_report
    from forgetting.results import ResultStore

    ResultStore.existing(folder)
    print_outcome(folder, write_report(folder))


@app.command()
def fisher(
    model: Annotated[str, typer.Argument(help="micro, a transformers folder, or a hub id.")],
    data: Annotated[
        str,
        typer.Option(help="JSONL with prompt and completion, or text: a file, micro, or a hub data set."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write (safetensors).")],
    estimator: Annotated[
        str, typer.Option(help="sample, empirical, exact, or the approximations batched and positionwise.")
    ] = "sample",
    samples: Annotated[int, typer.Option(min=1, help="Draws per example, with sample.")] = 1,
    parameters: Annotated[list[str] | None, typer.Option(help="Names, or patterns with *; repeatable.")] = None,
    max_examples: Annotated[int, typer.Option(min=1, help="Examples averaged over.")] = 256,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples per batch; only batched depends on it.")] = 8,
    max_length: Annotated[int, typer.Option(min=8, help="Tokens per example.")] = 256,
    backend: Annotated[str, typer.Option(help="auto, torch, triton, or reference (slow, any layer).")] = "auto",
    device: Annotated[str | None, typer.Option(help="cpu or cuda (default: the best there is).")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the drawn labels.")] = 0,
    summary: Annotated[bool, typer.Option("--summary", help="Print and plot importance per layer and kind.")] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Let code that came with the model run. Dangerous.")
    ] = False,
) -> None:
    """Compute the diagonal Fisher information of a causal language model's parameters on data."""
    from forgetting.importance import fisher_file, print_summary

    found = fisher_file(
        model,
        data,
        output,
        estimator=estimator,
        samples=samples,
        parameters=parameters,
        max_examples=max_examples,
        batch_size=batch_size,
        max_length=max_length,
        backend=backend,
        device=device,
        seed=seed,
        trust_remote_code=trust_remote_code,
    )
    if summary:
        print_summary(found, output)


@app.command("list")
def list_(
    what: Annotated[str, typer.Argument(help="mitigations, sequences, suites or models")],
    name: Annotated[str | None, typer.Argument(help="One mitigation: its equation, paper and options.")] = None,
) -> None:
    """List what can be named in a study."""
    from forgetting.display import print_list, print_mitigation

    if name is None:
        print_list(what)
    elif what == "mitigations":
        print_mitigation(name)
    else:
        raise UsageError(f"list {what} {name!r}: only a mitigation has more to show; leave the name away")


@micro.command()
def pretrain(
    output: Annotated[Path, typer.Option(help="Folder for the model.")] = Path("micro-model"),
    family: Annotated[str, typer.Option(help="decoder, encoder, encoder_decoder or vision.")] = "decoder",
    size: Annotated[str, typer.Option(help="Parameters of a decoder: 300k, 1M or 4M.")] = "1M",
    steps: Annotated[int | None, typer.Option(min=1, help="Optimizer steps (default: the shipped model's).")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of initialisation and text.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Pretrain an embedded model again, on CPU or GPU."""
    from forgetting.micro.pretrain import pretrain as pretrain_model
    from forgetting.micro.pretrain_families import pretrain_family

    if family != "decoder":
        pretrain_family(family, output, steps=steps, seed=seed, device=device)  # type: ignore[arg-type]  # checked there
        return
    options: dict[str, Any] = {} if steps is None else {"steps": steps}
    pretrain_model(output, seed=seed, device=device, model_size=size, **options)  # type: ignore[arg-type]  # checked there


INTERRUPTED = 130
"""The exit code that typer gives a KeyboardInterrupt."""


def main() -> None:
    """Entry point: a user's mistake is one line and exit code 2, never a traceback."""
    # Libraries' deprecations are for developers; worker processes read the variable.
    os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning")
    warnings.simplefilter("ignore", FutureWarning)
    try:
        if not is_main():  # of several processes that do the same, the first speaks
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # as long as the process
        app(standalone_mode=True)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except ForgettingError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except SystemExit as stop:
        if stop.code == INTERRUPTED:
            print("interrupted; what was stored is intact, continue with: forgetting resume FOLDER", file=sys.stderr)
        raise
