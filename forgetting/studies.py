"""Named studies: a published claim as a testable sentence, the runs that test it, and the verdict that follows.

A study is one script in ``experiments/``, readable in one sitting. It defines ``STUDY``, and the same call runs it from
its own command line and from ``forgetting study run NAME``. Of a study at a scale is kept, in
``results/<name>/<scale>/``: a folder per grid (see ``results.py``), ``measured`` (what needs weights, which runs do not
keep), ``verdicts.json``, ``summary.csv`` and figures; all but runs and measurements are made again from these alone.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib.util
import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from forgetting import interruption
from forgetting.errors import UsageError, did_you_mean
from forgetting.verdicts import Claim, Verdict

if TYPE_CHECKING:
    import pandas as pd

    from forgetting.config import StudyConfig
    from forgetting.launchers import Launch
    from forgetting.results import ResultStore, RunRecord

Scale = Literal["smoke", "laptop", "gpu"]
"""``smoke``: seconds, shows that the script runs, its verdicts mean nothing; ``laptop``: two cores, hours;
``gpu``: sized for one large GPU, and not timed yet."""

TUNING = "tuning"
"""The name of a grid that only chooses settings."""


MEASURED_WITH = "measured_with_sha256"
"""In a measurement: the digest of the settings that it was made with."""


class Results:
    """The runs of a study at one scale, as far as they are there.

    Args:
        folder: ``results/<name>/<scale>``.
        grids: Those of the scale, by name.
    """

    def __init__(self, folder: Path, grids: Mapping[str, StudyConfig]) -> None:
        self.folder, self.grids = folder, grids

    def store(self, grid: str) -> ResultStore:
        """A grid's store."""
        from forgetting.results import ResultStore

        return ResultStore(self.folder / grid)

    @property
    def begun(self) -> list[str]:
        """The grids of which something was run."""
        return [grid for grid in self.grids if self.store(grid).config_path.exists()]

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row per run and view, as ``report.summarise`` makes them, behind a column ``grid``."""
        import pandas as pd

        from forgetting.report import summarise

        frames = [summarise(self.store(grid)).assign(grid=grid) for grid in self.begun]
        if not frames:
            return pd.DataFrame(columns=["grid", "mitigation", "view", "seed", "status"])
        whole = pd.concat(frames, ignore_index=True)
        return whole[["grid", *(column for column in whole.columns if column != "grid")]]

    @property
    def finished(self) -> pd.DataFrame:
        """The rows of finished runs as they stand (no views)."""
        return self.frame[(self.frame["status"] == "finished") & (self.frame["view"] == "")]

    def records(self, grid: str) -> list[RunRecord]:
        """A grid's finished runs; none where it was not begun."""
        stored = self.store(grid).records() if grid in self.begun else ()
        return [record for record in stored if record.status == "finished"]

    def measured_path(self, name: str) -> Path:
        """The file of a measurement."""
        return self.folder / "measured" / f"{name}.json"

    def measured(self, name: str) -> dict[str, Any]:
        """What was measured under a name.

        Raises:
            UsageError: if its file cannot be read.
        """
        path = self.measured_path(name)
        try:
            content: dict[str, Any] = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(f"{path}: cannot be read ({error}); delete it to measure again") from None
        return content

    @cached_property
    def missing(self) -> list[str]:
        """The planned runs that are not begun or not at their end: ``grid: mitigation, seed s``."""
        return [line for line, status, _ in self._statuses if status not in ("finished", "failed")]

    @cached_property
    def failed(self) -> list[str]:
        """The runs that failed, with the reason; a failed run is a result, and is not run again."""
        return [f"{line} ({reason})" for line, status, reason in self._statuses if status == "failed"]

    @cached_property
    def _statuses(self) -> list[tuple[str, str, str]]:
        found = []
        for grid, config in self.grids.items():
            stored = self.store(grid).records() if grid in self.begun else ()
            records = {record.run_id: record for record in stored}
            for run in config.runs():
                record = records.get(run.run_id)
                status, reason = ("not begun", "") if record is None else (record.status, record.reason or "")
                found.append((f"{grid}: {run.mitigation}, seed {run.seed}", status, reason))
        return found


@dataclass(frozen=True)
class Study:
    """A named study.

    Attributes:
        name: Of the script and of its folder.
        claims: What is tested.
        grids: Runs of a scale, by name; each is a study of the harness, so that one can be added later.
        conclude: Verdicts from the runs; called once every run is finished.
        draw: Figures from the runs, into a folder; called on whatever is finished.
        then: Further grids, which depend on what those of ``grids`` found (settings chosen on a tuning sequence);
            called once every run of those is finished. Until then theirs are not among the runs that are missing.
        measure: Measurements by name, each a function that makes a JSON object; they are made once every run is
            finished, such as what needs the tuned weights, and kept.
        measured_with: The script's settings that measurements depend on; their digest is kept in each, and what was
            measured with others is measured again.
        unit: What was sampled, and so what intervals are over: seeds, three or more in every grid, or settings, forty
            or more grids of a run each (where verdicts count: at scales ``laptop`` and ``gpu``).
    """

    name: str
    claims: tuple[Claim, ...]
    grids: Callable[[Scale], dict[str, StudyConfig]]
    conclude: Callable[[Results], list[Verdict]]
    draw: Callable[[Results, Path], None]
    then: Callable[[Scale, Results], dict[str, StudyConfig]] | None = None
    measure: Callable[[Results], Mapping[str, Callable[[], dict[str, Any]]]] | None = None
    measured_with: Mapping[str, Any] = field(default_factory=dict)
    unit: Literal["seeds", "settings"] = "seeds"

    def results(self, root: Path, scale: Scale) -> Results:
        """What there is in ``root/<name>/<scale>``; the grids of ``then`` only once it can tell them."""
        first = Results(root / self.name / scale, self.grids(scale))
        if self.then is None or first.missing:
            return first
        return Results(first.folder, {**first.grids, **self.then(scale, first)})

    def unmeasured(self, results: Results) -> dict[str, Callable[[], dict[str, Any]]]:
        """The measurements that are still to be made; none before every run is finished."""
        if self.measure is None or results.missing:
            return {}
        return {name: make for name, make in self.measure(results).items() if not self._has(results, name)}

    def _has(self, results: Results, name: str) -> bool:
        if not results.measured_path(name).exists():
            return False
        return bool(results.measured(name).get(MEASURED_WITH) == self.measured_digest)

    @property
    def measured_digest(self) -> str:
        """SHA-256 of :attr:`measured_with`."""
        return hashlib.sha256(json.dumps(self.measured_with, sort_keys=True, default=repr).encode()).hexdigest()


def run_grids(
    grids: Mapping[Path, StudyConfig], workers: int, until: float = math.inf, launch: Launch | None = None
) -> None:
    """Run, or continue, grids by folder, with plans and progress shown; no run begins after ``until`` (monotonic)."""
    from forgetting.display import RunProgress
    from forgetting.study import run_studies

    hours = max(0.0, until - time.monotonic()) / 3600
    with RunProgress() as progress:
        run_studies(
            grids,
            workers=workers,
            launch=launch,
            hours=hours if math.isfinite(hours) else None,
            progress=progress.update,
            on_plan=progress.expect,
        )


def unfinished(study: Study, root: Path, scale: Scale) -> dict[Path, StudyConfig]:
    """The grids, by folder, of which runs are missing; those of ``then`` only once it can tell them."""
    results = study.results(root, scale)
    grids = {line.split(":")[0] for line in results.missing}
    return {results.folder / grid: config for grid, config in results.grids.items() if grid in grids}


def run_named(
    study: Study,
    root: Path,
    scale: Scale,
    *,
    workers: int = 2,
    until: float = math.inf,
    launch: Launch | None = None,
) -> list[Verdict]:
    """Run what is missing of a study, then conclude."""
    tried: set[Path] = set()
    for _ in ("grids", "then"):
        grids = {folder: config for folder, config in unfinished(study, root, scale).items() if folder not in tried}
        if grids and time.monotonic() < until:
            run_grids(grids, workers, until, launch)
            tried |= set(grids)
    measure_missing(study, study.results(root, scale), until)
    return conclude(study, root, scale)


def measure_missing(study: Study, results: Results, until: float = math.inf) -> None:
    """Make what is missing of a study's measurements, one after another; none is begun after ``until`` (monotonic)."""
    from forgetting.results import write_atomically

    for name, make in study.unmeasured(results).items():
        if time.monotonic() >= until:
            return
        content = json.dumps(make() | {MEASURED_WITH: study.measured_digest}, indent=1, ensure_ascii=False) + "\n"
        write_atomically(results.measured_path(name), content.encode())


def conclude(study: Study, root: Path, scale: Scale) -> list[Verdict]:
    """Write verdicts, summary and figures of what is there; trains nothing.

    Verdicts are ``not run`` until every run of the scale has come to its end: which cells are there must not decide.
    They are ``undecided`` where runs failed, but for those of a grid ``tuning``, whose settings are then never chosen.

    Raises:
        UsageError: if runs are stored that are not of the script's grids.
    """
    from forgetting.results import write_atomically

    results = study.results(root, scale)
    for grid in results.begun:
        results.store(grid).check(results.grids[grid])
    failed = [line for line in results.failed if not line.startswith(f"{TUNING}:")]
    unmeasured = [f"measured: {name}" for name in study.unmeasured(results)]
    if results.missing or unmeasured:
        what = f"{len(unmeasured)} measurements" if unmeasured else f"{len(results.missing)} runs"
        verdicts = [Verdict(claim.key, "not run", f"{what} are missing") for claim in study.claims]
    elif failed:
        told_of = f"{len(failed)} runs failed, the first {failed[0]}"
        verdicts = [Verdict(claim.key, "undecided", told_of) for claim in study.claims]
    else:
        verdicts = study.conclude(results)
    known = {claim.key for claim in study.claims}
    assert {verdict.claim for verdict in verdicts} == known, f"{study.name}: a verdict on each of {known}, and no other"
    summary = results.frame.to_csv(index=False, lineterminator="\n")
    write_atomically(results.folder / "summary.csv", summary.encode())
    content = {
        "study": study.name,
        "scale": scale,
        "command": f"forgetting study run {study.name} --scale {scale}",
        "runs": sum(len(config.runs()) for config in results.grids.values()),
        "claims": [asdict(claim) for claim in study.claims],
        "verdicts": [asdict(verdict) for verdict in verdicts],
        "missing": [*results.missing, *unmeasured],
        "failed": results.failed,
    }
    write_atomically(
        results.folder / "verdicts.json", (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()
    )
    if len(results.finished):
        study.draw(results, results.folder / "figures")
    return verdicts


def scripts() -> dict[str, Path]:
    """The studies' scripts by name: files of ``experiments/`` that define ``STUDY``, beside the package or here.

    Raises:
        UsageError: if there is no such folder: the scripts come with the repository, not with the package.
    """
    for folder in (Path.cwd() / "experiments", Path(__file__).resolve().parents[1] / "experiments"):
        found = {path.stem: path for path in sorted(folder.glob("*.py")) if "\nSTUDY = " in path.read_text("utf-8")}
        if found:
            return found
    raise UsageError("studies: no folder experiments/ with studies here; run this in a clone of the repository")


def headline(path: Path) -> str:
    """The first line of a script's docstring, without running it."""
    return (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or path.stem).splitlines()[0]


def load(name: str) -> Study:
    """Import a study's script.

    Raises:
        UsageError: if there is none of that name.
    """
    known = scripts()
    if name not in known:
        raise UsageError(f"study {name!r}: is none{did_you_mean(name, known)}")
    spec = importlib.util.spec_from_file_location(f"experiments.{name}", known[name])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    study = module.STUDY
    assert isinstance(study, Study) and study.name == name, f"{known[name]}: STUDY must be a Study named {name!r}"
    return study


def scale_of(text: str) -> Scale:
    """Check a scale's name.

    Raises:
        UsageError: if it is none.
    """
    if text not in get_args(Scale):
        raise UsageError(f"scale {text!r}: is none of {', '.join(get_args(Scale))}")
    return text  # type: ignore[return-value]


def print_verdicts(study: Study, verdicts: list[Verdict]) -> None:
    """A line per claim."""
    sentences = {claim.key: claim.sentence for claim in study.claims}
    for verdict in verdicts:
        print(f"{study.name}: {sentences[verdict.claim]}: {verdict.outcome.upper()}: {verdict.ours}")


def main(study: Study, description: str | None = None) -> None:
    """The command line of a study's script."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=get_args(Scale), default="laptop")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--hours", type=float, default=math.inf, help="begin no run after so many hours")
    parser.add_argument("--output", type=Path, default=Path("results"), help="folder of all studies' results")
    parser.add_argument("--draw", action="store_true", help="verdicts and figures from results alone")
    options = parser.parse_args()
    try:
        if options.draw:
            verdicts = conclude(study, options.output, options.scale)
        else:
            until = time.monotonic() + 3600 * options.hours
            verdicts = run_named(study, options.output, options.scale, workers=options.workers, until=until)
    except interruption.Interrupted as stop:
        print(f"{stop}; continue with the same command", file=sys.stderr)
        sys.exit(interruption.EXIT_CODE)
    except UsageError as error:
        sys.exit(f"error: {error}")
    print_verdicts(study, verdicts)
