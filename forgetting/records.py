"""RunRecord and what it is made of: the schema of a run's JSON and of its per-item outcomes, and reading them."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from forgetting.config import RunConfig
from forgetting.errors import UsageError

SCHEMA_VERSION = 1


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True, ser_json_inf_nan="constants")


class TaskInfo(_Record):
    """A column of R. ``chance`` is the score of guessing."""

    name: str
    metric: str
    chance: float
    n_train: int
    n_validation: int
    n_test: int
    notes: dict[str, int | str] = {}


class CapabilityInfo(_Record):
    """A column of G. ``n`` counts items; ``version`` is the lm-eval task's."""

    name: str
    metric: str
    chance: float
    n: int
    higher_is_better: bool = True
    version: str = ""


class TextDrift(_Record):
    """Drift on one text after one row's training; per-token means in nats, ``bpb`` in bits per UTF-8 byte.

    ``kl_forward`` is KL(base‖tuned), ``kl_reverse`` KL(tuned‖base), ``total_variation`` ½ Σ|base − tuned|, a
    probability (``None`` in records from before it was measured).
    """

    ce: float
    bpb: float
    kl_forward: float
    kl_reverse: float
    total_variation: float | None = None
    tokens: int


class Row(_Record):
    """One evaluation: row i of R and G is measured after training on the first i tasks; row 0 is the base.

    ``views`` holds the same row scored in another state of the model, such as ``adapter_off``, and ``view_drift`` the
    drift in that state.
    ``weight_change`` maps a layer's name to ‖θ − θ_base‖ / ‖θ_base‖. ``fisher_distance`` is ½ΔθᵀFΔθ, nats per
    token, where the configuration asks for it.
    """

    R: list[float]
    G: list[float]
    views: dict[str, dict[Literal["R", "G"], list[float]]] = {}
    drift: dict[str, TextDrift] = {}
    view_drift: dict[str, dict[str, TextDrift]] = {}
    weight_change: dict[str, float] = {}
    fisher_distance: float | None = None
    evaluation_seconds: float


class TaskCost(_Record):
    """What training on one task took.

    Attributes:
        task: Its name.
        steps: Optimizer steps.
        tokens: Non-padding tokens in forward passes, by source (``task``, ``pretraining``, ``earlier``,
            ``padding`` for control slots without loss).
        examples: The same in examples; the realised replay share is what is not ``task``.
        truncated: Examples that ``max_length`` shortened.
        flops: 6 × parameters without embeddings × tokens with padding, as transformers counts the training
            steps (Kaplan 2020), of vision models 3 × a forward pass as torch counts it; a mitigation's own
            passes (Fisher, validation) are in the seconds alone.
        seconds: Training wall time, and the mitigation's own work before and after it.
        train_loss: Mean training loss over the task's last tenth of steps, nats per token; ``None`` without steps.
        log: (step, loss) as trained.
        split_to: Rows per forward pass at the end, where a batch did not fit in memory and was split with the same
            gradient; ``None`` where none was.
    """

    task: str
    steps: int
    tokens: dict[str, int]
    examples: dict[str, int]
    truncated: int
    flops: float
    seconds: float
    train_loss: float | None
    log: list[tuple[int, float]]
    split_to: int | None = None


class Cost(_Record):
    """What the run took. Peak memory is the process's resident set on CPU, the allocator's peak on CUDA."""

    tasks: list[TaskCost] = []
    setup_seconds: float = 0.0
    peak_memory_bytes: int = 0
    parameters: int = 0
    trainable_parameters: int = 0
    stored_floats: int = 0


class RunRecord(_Record):
    """One run, whole: enough to recompute every number in the report."""

    schema_version: int = SCHEMA_VERSION
    run_id: str
    study: str
    config: RunConfig
    config_hash: str
    status: Literal["running", "finished", "failed"] = "running"
    reason: str | None = None
    provenance: dict[str, Any] = {}
    tasks: list[TaskInfo] = []
    capabilities: list[CapabilityInfo] = []
    rows: list[Row] = []
    cost: Cost = Cost()

    @property
    def R(self) -> list[list[float]]:
        """Task matrix so far, shape (rows, T)."""
        return [row.R for row in self.rows]

    @property
    def G(self) -> list[list[float]]:
        """Capability matrix so far, shape (rows, C)."""
        return [row.G for row in self.rows]


Items = dict[Literal["R", "G"], list[dict[str, list[float]]]]
"""Per-item outcomes: ``items["R"][i][task]`` and ``items["G"][i][capability]`` are row i's, in item order."""


_ITEMS: TypeAdapter[Items] = TypeAdapter(Items)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"result {str(path)!r}: cannot be read: {error.strerror or error}") from None


def _contradiction(record: RunRecord, run_id: str) -> str | None:
    """Say where a record contradicts itself or its name, or return ``None``."""
    if not run_id == record.run_id == record.config.run_id:
        return f"is of run {record.run_id!r} with a configuration of {record.config.run_id!r}, not of {run_id!r}"
    T, C = len(record.tasks), len(record.capabilities)
    for i, row in enumerate(record.rows):
        for where, R, G in (
            ("", row.R, row.G),
            *((f", view {name!r}", view.get("R", []), view.get("G", [])) for name, view in row.views.items()),
        ):
            if (len(R), len(G)) != (T, C):
                return f"row {i}{where} has {len(R)} and {len(G)} scores of {T} tasks and {C} capabilities"
    if len(record.rows) > T + 1 or (record.status == "finished" and len(record.rows) != T + 1):
        return f"is {record.status} with {len(record.rows)} rows of {T} tasks"
    if len(record.cost.tasks) > T:
        return f"has the cost of {len(record.cost.tasks)} tasks of {T}"
    return None


def read_record(path: Path, run_id: str | None = None) -> RunRecord:
    """Read a run's record.

    Args:
        path: A file, under whatever name.
        run_id: The run that it must be of, where that is known.

    Raises:
        UsageError: if the file is not a record of this schema, contradicts itself, or is of another run.
    """
    try:
        record = RunRecord.model_validate_json(_read(path))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        problem = " ".join(f"{'.'.join(map(str, first['loc']))} {first['msg']}".split())
        raise UsageError(
            f"result {str(path)!r}: is not a run record of schema {SCHEMA_VERSION} ({problem}); "
            "delete it to run it again"
        ) from None
    if record.schema_version != SCHEMA_VERSION:
        raise UsageError(
            f"result {str(path)!r}: schema_version = {record.schema_version}; this version reads {SCHEMA_VERSION}"
        )
    if (wrong := _contradiction(record, run_id or record.run_id)) is not None:
        raise UsageError(f"result {str(path)!r}: {wrong}; it was changed, delete it to run it again")
    return record


def read_items(path: Path) -> Items:
    """Read a run's per-item outcomes.

    Raises:
        UsageError: if the file cannot be read, is damaged, or holds something else.
    """
    try:
        items = _ITEMS.validate_json(gzip.decompress(_read(path)))
    except (OSError, EOFError, zlib.error, ValidationError) as error:
        problem = " ".join(str(error).split())[:120]
        raise UsageError(
            f"result {str(path)!r}: is not a run's items, compressed ({problem}); delete it and the run's .json "
            "to run it again"
        ) from None
    if items.keys() != {"R", "G"} or len(items["R"]) != len(items["G"]):
        raise UsageError(f"result {str(path)!r}: does not hold as many rows of R as of G; delete the run's files")
    return items
