"""A study and its runs: what is tested, on which grids, and what of them is there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from forgetting.errors import UsageError
from forgetting.verdicts import Claim, Verdict

if TYPE_CHECKING:
    import pandas as pd

    from forgetting.config import StudyConfig
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
            or more grids of a run each (where verdicts count: at scales ``laptop`` and ``gpu``). Grids of a seed each
            that differ in the draw of their examples are named ``<grid>-draw<seed>``, and count as one.
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
