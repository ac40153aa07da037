"""Running what is missing of a study, and concluding from what is there."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from forgetting.studies.study import MEASURED_WITH, TUNING, Results, Scale, Study
from forgetting.verdicts import Verdict

if TYPE_CHECKING:
    from forgetting.config import StudyConfig
    from forgetting.launchers import Launch


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
