"""The command line; each command is a few lines that call the package, imported when it runs."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from forgetting.cli_audit import audit
from forgetting.cli_plan import plan
from forgetting.cli_run import demo, resume, run
from forgetting.cli_studies import studies
from forgetting.distributed import is_main
from forgetting.errors import ForgettingError, UsageError

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
app.command()(demo)
app.command()(run)
app.command()(resume)
app.command()(plan)
app.command()(audit)


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
            audited = sys.argv[1:2] == ["audit"]  # is no study: there is nothing to resume
            what = "start it again" if audited else "what was stored is intact, continue with: forgetting resume FOLDER"
            print(f"interrupted; {what}", file=sys.stderr)
        raise
