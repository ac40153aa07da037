"""Run a record again from what it holds alone, and say what is different.

Compared bit for bit: status, R, G, other states' scores, drift, weight changes, what was trained on (steps, tokens,
loss of every step) and, where they lie beside the record, per-item outcomes. Beside that stands what could explain a
difference: data, versions, hardware. Times and memory are measurements of a machine, and are no part of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forgetting.errors import UsageError
from forgetting.results import Items, ResultStore, RunRecord, read_items, read_record
from forgetting.study import run_study

DIFFERENT = 3
"""Exit code of ``forgetting rerun`` where a number differs."""


@dataclass(frozen=True)
class Difference:
    """What is different between a record and its repetition.

    Attributes:
        numbers: A line per kind of number that differs; none where both are equal bit for bit.
        surroundings: A line per version, piece of hardware or file that differs, or kind of number that is new.
        compared: How many numbers were compared.
        items: Whether per-item outcomes were among them.
    """

    numbers: list[str]
    surroundings: list[str]
    compared: int
    items: bool


def rerun(path: Path, output: Path, *, trust_remote_code: bool = False) -> tuple[RunRecord, Difference]:
    """Run what a record says in this process, with as many threads as then, and compare.

    Args:
        path: ``runs/<run id>.json``; its per-item outcomes are looked for beside it.
        output: A new folder; one in which this very repetition was interrupted is continued.
        trust_remote_code: Must be given again where the record says that the model's own code ran.

    Raises:
        UsageError: if the file is no record of a run that ended, its configuration is not the one that its hash
            names, its items are damaged, it asks for code of a model's own, or ``output`` holds something else.
    """
    import torch

    from forgetting.config import StudyConfig

    record = read_record(path)
    config = record.config
    if record.status == "running":
        raise UsageError(f"record {str(path)!r}: is of a run that did not end; continue that with forgetting resume")
    if config.hash != record.config_hash:
        raise UsageError(
            f"record {str(path)!r}: its configuration has the hash {config.hash}, and its name says "
            f"{record.config_hash}; it was changed by hand, or comes from another version of the package"
        )
    if config.trust_remote_code and not trust_remote_code:
        raise UsageError(
            f"record {str(path)!r}: model {config.model!r} ran code of its own; give --trust-remote-code to let it"
        )
    beside = path.with_name(f"{path.stem}.items.json.gz")
    items = read_items(beside) if beside.exists() else None
    shared = config.model_dump(exclude={"mitigation", "seed"})
    study = StudyConfig(name="rerun", mitigations=(config.mitigation,), seeds=(config.seed,), **shared)
    store = ResultStore(output)
    store.check(study)
    earlier = store.load(config.run_id)
    if earlier is not None and earlier.status != "running":
        raise UsageError(f"output {str(output)!r}: this run is finished there already; give a new folder")
    threads = torch.get_num_threads()
    torch.set_num_threads(_threads(record) or threads)
    try:
        (again,) = run_study(study, output)
    finally:
        torch.set_num_threads(threads)
    return again, compare(record, again, items, store.load_items(again.run_id))


def _threads(record: RunRecord) -> int | None:
    """The threads that a record says it was made with, where it says something that can be."""
    hardware = record.provenance.get("hardware")
    found = hardware.get("threads") if isinstance(hardware, dict) else None
    return found if type(found) is int and 0 < found <= 1024 else None


def compare(
    there: RunRecord, here: RunRecord, items_there: Items | None = None, items_here: Items | None = None
) -> Difference:
    """Compare two records of one configuration, bit for bit; items where both are given.

    What a record of other code does not have, since it was not measured yet, is no difference of numbers.
    """
    numbers: list[str] = []
    added: list[str] = []
    compared = 0
    other_code = there.provenance.get("git") != here.provenance.get("git")
    for kind, old, new in _sections(there, here):
        later = {name for name, value in new.items() if old.get(name) is None and value is not None and other_code}
        if later:
            added.append(f"{kind}: {len(later)} numbers that the record does not have, such as {min(later)}")
        old = {name: value for name, value in old.items() if name not in later}
        new = {name: value for name, value in new.items() if name not in later}
        compared += len(old)
        if line := _told(kind, old, new):
            numbers.append(line)
    both = items_there is not None and items_here is not None
    if items_there is not None and items_here is not None:
        old, new = dict(_flat(items_there, "")), dict(_flat(items_here, ""))
        compared += len(old)
        if line := _told("items", old, new):
            numbers.append(line)
    old, new = (dict(_flat(_surroundings(record), "")) for record in (there, here))
    surroundings = [
        f"{key}: {_shown(old.get(key))} there, {_shown(new.get(key))} here"
        for key in sorted(old.keys() | new.keys())
        if not _same(old.get(key), new.get(key))
    ]
    return Difference(numbers, added + surroundings, compared, both)


def _sections(there: RunRecord, here: RunRecord) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Numbers by name, of both records, a kind at a time."""
    old, new = _named(there), _named(here)
    for kind in old:
        yield kind, old[kind], new[kind]


def _named(record: RunRecord) -> dict[str, dict[str, Any]]:
    rows = [row.model_dump(mode="json") for row in record.rows]
    tasks, capabilities = [task.name for task in record.tasks], [one.name for one in record.capabilities]
    found = {
        "status": {"status": record.status, "reason": record.reason},
        "R": {f"R[{i}, {name}]": v for i, row in enumerate(rows) for name, v in zip(tasks, row["R"], strict=True)},
        "G": {f"G[{i}, {n}]": v for i, row in enumerate(rows) for n, v in zip(capabilities, row["G"], strict=True)},
    }
    for kind in ("views", "drift", "view_drift", "weight_change"):
        found[kind] = dict(_flat([row[kind] for row in rows], kind))
    cost = record.cost.model_dump(mode="json", exclude={"setup_seconds": True, "peak_memory_bytes": True})
    cost["tasks"] = [{key: value for key, value in task.items() if key != "seconds"} for task in cost["tasks"]]
    found["training"] = dict(_flat(cost, ""))
    return found


def _surroundings(record: RunRecord) -> dict[str, Any]:
    return {key: value for key, value in record.provenance.items() if key not in ("command", "started")}


def _flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Every leaf with its dotted name."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if pairs is None:
        yield name, value
        return
    for key, part in pairs:
        yield from _flat(part, f"{name}.{key}" if name else str(key))


def _same(one: Any, other: Any) -> bool:
    return one == other or (one != one and other != other)  # a perplexity may be NaN in both


def _told(kind: str, old: dict[str, Any], new: dict[str, Any]) -> str | None:
    """One line on a kind of number, or ``None`` where nothing differs."""
    names = [*old, *(name for name in new if name not in old)]
    differ = [name for name in names if not _same(old.get(name), new.get(name))]
    if not differ:
        return None
    first = differ[0]
    gaps = [
        abs(old[name] - new[name])
        for name in differ
        if isinstance(old.get(name), (int, float)) and isinstance(new.get(name), (int, float))
    ]
    largest = f", by {max(gaps):.3g} at most" if gaps else ""
    return (
        f"{kind}: {len(differ)} of {len(names)} differ{largest}; "
        f"first {first}: {_shown(old.get(first))} there, {_shown(new.get(first))} here"
    )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def print_difference(difference: Difference) -> None:
    """Say what is equal and what is not."""
    from forgetting.report.style import plain

    for line in difference.numbers:
        print(plain(line))
    for line in difference.surroundings:
        print(f"surroundings: {plain(line)}")
    if not difference.items:
        print("items: the record's per-item outcomes do not lie beside it, and were not compared")
    verdict = "different" if difference.numbers else "equal bit for bit"
    print(f"{verdict}: {difference.compared} numbers compared")
