"""``forgetting audit``: what did this fine-tune cost?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from forgetting.errors import UsageError

if TYPE_CHECKING:
    from forgetting.audit.run import Audit
    from forgetting.audit.write import AuditPaths

EXIT_CODES = {"RETAINED": 0, "REGRESSED": 3, "INCONCLUSIVE": 4}
"""Beside 1, an error, and 2, a user's mistake."""


def audit(
    base: Annotated[str | None, typer.Argument(help="The pretrained model: micro, a folder, or a hub id.")] = None,
    tuned: Annotated[str | None, typer.Argument(help="Its fine-tune: the same, or a peft adapter's folder.")] = None,
    from_samples: Annotated[
        tuple[Path, Path] | None,
        typer.Option(help="Two folders of lm-eval's samples_*.jsonl, base and tuned, instead of models."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="JSONL of the own task: what was learned is scored too, on a fifth of it drawn by seed 0: 'forgetting "
            "run --data' of the same file leaves that fifth out, and other training may not have."
        ),
    ] = None,
    suite: Annotated[
        list[str] | None,
        typer.Option(help="Capability suite, lm-eval task, or folder of YAML; repeatable (micro's by default)."),
    ] = None,
    suite_dir: Annotated[Path | None, typer.Option(help="Local folder with the suites' data.")] = None,
    limit: Annotated[int | None, typer.Option(min=2, help="Items per lm-eval task.")] = None,
    margin: Annotated[
        float, typer.Option(help="Largest loss that counts as none: of the mean over capabilities, a share of items.")
    ] = 0.03,
    worst: Annotated[float, typer.Option(help="RETAINED must rule out such a loss of every single capability.")] = 0.10,
    rise: Annotated[
        float, typer.Option(help="RETAINED must rule out such a rise of a perplexity's bits, a share of the base's.")
    ] = 0.03,
    alpha: Annotated[float, typer.Option(help="Rate of false verdicts.")] = 0.05,
    sequential: Annotated[
        bool, typer.Option("--sequential", help="Stop as soon as the verdict is decided, at the same error rate.")
    ] = False,
    cluster: Annotated[
        str | None,
        typer.Option(
            help="Field of the items (the suite's, and --data's) that names the context they share; found by itself if "
            "its text is long."
        ),
    ] = None,
    text: Annotated[
        str | None, typer.Option(help="Text like the base's pretraining, for drift: micro, a file, or a hub data set.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="JSONL of prompts with a kind, harmful or benign: who refuses what?")
    ] = None,
    drift: Annotated[
        bool | None,
        typer.Option(
            "--drift/--no-drift",
            help="Measure drift, the change of the weights, and what both models write too (the default).",
        ),
    ] = None,
    advise: Annotated[
        bool, typer.Option("--advise", help="Score what would have helped (some twenty scorings; needs --data).")
    ] = False,
    diagnose: Annotated[
        bool,
        typer.Option(
            "--diagnose",
            help="Which layers represent text otherwise, and whether a few steps of practice, or a prompt, bring back "
            "what was lost.",
        ),
    ] = False,
    save_best: Annotated[
        Path | None, typer.Option(help="With --advise: write the best interpolation there, as a model folder.")
    ] = None,
    batch_size: Annotated[
        str | None,
        typer.Option(help="Sequences per forward pass (64 by default), or auto: as many as is found to fit."),
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder that keeps scores: a base is scored once for many fine-tunes.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the verdict and the report.")] = Path(
        "audit"
    ),
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Let code that came with a model run. Dangerous.")
    ] = False,
) -> None:
    """Say what a fine-tune lost: REGRESSED (exit code 3), RETAINED (0) or INCONCLUSIVE (4), and write a report."""
    if not 0 < alpha < 0.5:
        raise UsageError(f"--alpha {alpha}: is not between 0 and 0.5")
    for name, value in (("--margin", margin), ("--worst", worst), ("--rise", rise)):
        if not 0 < value < 1:
            raise UsageError(f"{name} {value}: is not between 0 and 1; it is a share, such as 0.03")
    from forgetting.audit.schema import Settings
    from forgetting.audit.write import write_audit

    settings = Settings(
        alpha=alpha, margin=margin, worst=worst, rise=rise, sequential=sequential, limit=limit, cluster=cluster
    )
    if from_samples is not None:
        given = {
            "BASE": base,
            "--data": data,
            "--suite": suite,
            "--suite-dir": suite_dir,
            "--limit": limit,
            "--sequential": sequential or None,
            "--text": text,
            "--prompts": prompts,
            "--advise": advise or None,
            "--diagnose": diagnose or None,
            "--save-best": save_best,
            "--drift" if drift else "--no-drift": drift,
            "--batch-size": batch_size,
            "--cache": cache,
            "--trust-remote-code": trust_remote_code or None,
        }
        if needless := [name for name, value in given.items() if value is not None]:
            raise UsageError(f"--from-samples: compares logs, and {needless[0]} is of models; leave one of them out")
        from forgetting.audit.run import audit_samples

        done = audit_samples(*from_samples, settings)
    else:
        if base is None or tuned is None:
            raise UsageError("audit: give BASE and TUNED, or --from-samples A B")
        from forgetting.audit.load import BATCH_SIZE, load_input, other_base
        from forgetting.audit.run import audit_models

        if save_best is not None and not advise:
            raise UsageError("--save-best: is what --advise chooses; give both")
        if advise and data is None:
            raise UsageError("--advise: needs the own task, to say what a mitigation would have cost; give --data")
        if drift is False and (advise or diagnose or text is not None or prompts is not None):
            raise UsageError("--no-drift: leaves nothing for --text, --prompts, --advise and --diagnose to be used in")
        from forgetting.models import EMBEDDED

        if not suite and base not in EMBEDDED:
            raise UsageError(
                f"--suite: is not given, and what {base!r} could do is not known here; give capabilities that it has, "
                "such as --suite arc_easy --suite piqa"
            )
        from forgetting.audit.advice import check_empty
        from forgetting.audit.behaviour import load_prompts

        if prompts is not None:  # a mistake is told before models are loaded
            load_prompts(prompts)
        if save_best is not None:
            check_empty(save_best)
        loaded = load_input(
            base,
            tuned,
            suite=suite or ("micro",),
            suite_dir=suite_dir,
            data=data,
            limit=limit,
            batch_size=BATCH_SIZE if batch_size is None else batch_size,
            cache=cache,
            trust_remote_code=trust_remote_code,
        )

        def say(doing: str) -> None:
            typer.echo(f"{doing} ...", err=True)

        from forgetting.audit.extras import add_extras, input_digests, prepare_extras

        wanted = None
        if drift is not False:
            wanted = prepare_extras(
                loaded,
                text=text,
                prompts=prompts,
                advise=advise,
                diagnose=diagnose,
                save_best=save_best,
                cluster=cluster,
            )
        done = audit_models(loaded, settings, say)
        done.verdict.inputs_sha256 = input_digests(loaded, wanted)
        done.verdict.notes += other_base(loaded)
        if wanted is not None:
            write_audit(done, output)  # it stands, whatever becomes of the rest
            add_extras(done.verdict, loaded, wanted, say)
    _print(done, write_audit(done, output))
    raise typer.Exit(EXIT_CODES[done.verdict.verdict])


def _print(done: Audit, paths: AuditPaths) -> None:
    """Verdict, table, and where the rest is."""
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    from forgetting.audit.tables import capability_table

    wanted = ("capability", "verdict", "base", "tuned", "difference", "1→0 / 0→1", "decide")
    table = capability_table(done.verdict)
    places = [table.columns.index(name) for name in wanted]
    shown = RichTable(box=None, pad_edge=False, collapse_padding=True)
    for name in wanted:
        left = name in wanted[:2]
        shown.add_column(Text(name), justify="left" if left else "right", no_wrap=name != "capability", overflow="fold")
    for row in table.rows:
        shown.add_row(*(Text(row[place]) for place in places))
    console = Console()
    console.print(shown)
    console.print(Text(f"\n{done.verdict.verdict}: {done.verdict.why}"), soft_wrap=True)
    console.print(Text(f"{paths.page}"), soft_wrap=True)
