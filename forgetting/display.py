"""What the terminal shows: plan, progress, outcome, lists (rich)."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from forgetting.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from forgetting.mitigations import Mitigation
    from forgetting.report import ReportPaths
    from forgetting.study import Plan

console = Console()

REFERENCE = "(a bound to compare with, no method)"
TASK_ORACLE = "(told which task is tested)"
LISTS = ("mitigations", "sequences", "suites", "models")


def duration(seconds: float) -> str:
    """Write seconds as a person would: ``40 s``, ``12 min``, ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def print_plan(plan: Plan, folder: Path) -> None:
    """Print what a study will do: runs, steps, estimated time."""
    table = Table(title=f"Plan of {folder}", title_justify="left")
    table.add_column("mitigation", overflow="fold")
    table.add_column("seeds")
    table.add_column("steps per run", justify="right")
    table.add_column("state", justify="right")
    by_mitigation: dict[str, list] = {}
    for run in plan.runs:
        by_mitigation.setdefault(run.config.mitigation, []).append(run)
    for mitigation, runs in by_mitigation.items():
        finished = sum(run.finished for run in runs)
        begun = sum(not run.finished and run.rows_done > 0 for run in runs)
        state = f"{finished}/{len(runs)} done" + (f", {begun} begun" if begun else "")
        table.add_row(mitigation, ", ".join(str(run.config.seed) for run in runs), str(runs[0].steps), state)
    console.print(table)
    for warning in plan.warnings:
        console.print(f"note: {warning}", markup=False, highlight=False)
    left = plan.left
    console.print(
        f"{len(left)} of {len(plan.runs)} runs to do over {len(plan.tasks)} tasks ({', '.join(plan.tasks)}), "
        f"{sum(run.steps for run in left)} steps, about {duration(plan.seconds)} in one process",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


class RunProgress:
    """A bar over all runs with an estimate; where there is no terminal, a line per finished task."""

    def __init__(self) -> None:
        self._shares: dict[str, float] = {}
        self._bar = Progress(
            SpinnerColumn(),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.description}", markup=False),
            console=console,
        )
        self._id: TaskID | None = None

    def __enter__(self) -> RunProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def expect(self, plan: Plan, folder: Path) -> None:
        """Show a plan, and start the bar over the runs that are left, of this plan and of those before it."""
        print_plan(plan, folder)
        if not plan.left:
            return
        self._shares |= {run.config.run_id: 0.0 for run in plan.left}
        if self._id is not None:
            self._bar.update(self._id, total=float(len(self._shares)))
            return
        self._id = self._bar.add_task("starting", total=float(len(plan.left)))
        if console.is_terminal:
            self._bar.start()

    def update(self, run_id: str, share: float, doing: str) -> None:
        """Take one report of a run; see ``forgetting.run.Progress``."""
        if self._id is None:
            return
        self._shares[run_id] = share
        finished = sum(value >= 1 for value in self._shares.values())
        description = f"{finished}/{len(self._shares)} runs · {run_id}: {doing}"
        self._bar.update(self._id, completed=sum(self._shares.values()), description=description)
        if not console.is_terminal and doing.endswith((", done", "finished", "failed")):
            left = self._bar.tasks[0].time_remaining
            estimate = "" if left is None else f", about {duration(left)} left"
            console.print(f"{description}{estimate}", markup=False, highlight=False, soft_wrap=True)


def print_outcome(folder: Path, paths: ReportPaths) -> None:
    """Print the table, the failures, and where the files are."""
    from forgetting.report import terminal_table
    from forgetting.report.style import plain
    from forgetting.results import ResultStore

    console.print(terminal_table(paths.frame))
    for record in ResultStore(folder).records():
        if record.status != "finished":
            reason = plain(record.reason or "not finished")  # it may quote what a model or a file says
            console.print(f"{record.run_id}: {record.status}: {reason}", markup=False, highlight=False)
    for path in [*paths.figures, paths.summary, paths.page]:
        console.print(str(path), markup=False, highlight=False, soft_wrap=True)


def print_list(what: str) -> None:
    """Print a registry.

    Raises:
        UsageError: if there is no such list.
    """
    if what not in LISTS:
        raise UsageError(f"list {what!r}: is none of {', '.join(LISTS)}{did_you_mean(what, LISTS)}")
    table = Table(show_lines=what == "mitigations")
    if what == "mitigations":
        from forgetting.mitigations import get_mitigation, mitigation_names

        table.add_column("name", overflow="fold", no_wrap=True)
        for column in ("what it does", "cost"):
            table.add_column(column, overflow="fold")
        for name in mitigation_names():
            cls = get_mitigation(name)
            table.add_row(name, cls.summary, _cost(cls))
    else:
        table.add_column("name", overflow="fold", no_wrap=True)
        table.add_column("what it is", overflow="fold")
        for name, description in _described(what).items():
            table.add_row(name, description)
    console.print(table)
    if what == "mitigations":
        console.print("equation, paper and options of one: forgetting list mitigations NAME", highlight=False)


def print_mitigation(name: str) -> None:
    """Print one mitigation's equation, paper, cost and options.

    Raises:
        UsageError: if there is none of that name.
    """
    from forgetting.mitigations import get_mitigation

    cls = get_mitigation(name)
    for line in (
        f"{name}: {cls.summary}",
        cls.equation,
        cls.paper,
        f"cost: {_cost(cls)}",
        f"works on: {', '.join(cls.families)}",
        "a killed task "
        + ("goes on from its middle" if cls.resumes_within_task else "starts again from its beginning"),
    ):
        console.print(line, markup=False, highlight=False)
    table = Table()
    for column in ("option", "default", "meaning"):
        table.add_column(column, overflow="fold")
    for key, field in cls.Options.model_fields.items():
        default = (
            "|".join(f"{value:g}" for value in field.default)
            if isinstance(field.default, tuple)
            else str(field.default)
        )
        table.add_row(key, default, field.description)
    if cls.Options.model_fields:
        console.print(table)


def _cost(cls: type[Mitigation]) -> str:
    marks = [text for is_so, text in ((cls.reference, REFERENCE), (cls.task_oracle, TASK_ORACLE)) if is_so]
    return "\n".join([cls.cost, *marks])


def _described(what: str) -> dict[str, str]:
    if what == "sequences":
        from forgetting.tasks.sequence import SEQUENCES

        return {name: SEQUENCES.get(name).description for name in SEQUENCES}
    if what == "suites":
        from forgetting.evaluation.suite import SUITES

        return {name: SUITES.get(name).description for name in SUITES}
    from forgetting.models import EMBEDDED

    local = {
        "FOLDER": "a local transformers folder with safetensors",
        "OWNER/NAME": "a model of the hub: causal or masked language model, text-to-text, image classifier",
    }
    return {**EMBEDDED, **local}
