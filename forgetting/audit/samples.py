"""lm-eval's logs: read two of them to compare without a model, and write what an audit measured in the same form."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from forgetting.audit.items import Measured, Panel, measured
from forgetting.errors import UsageError
from forgetting.evaluation.suite import PREFERRED_METRICS
from forgetting.results import write_atomically

_NAME = re.compile(r"samples_(?P<task>.+?)_(?P<date>\d{4}-\d\d-\d\dT[\d.:-]+)\.jsonl")


def read_samples(where: Path) -> tuple[Panel, str]:
    """Read one model's per-sample logs, as ``lm_eval --log_samples --output_path`` writes them.

    Of several evaluations of a task, the newest is read (by the date in the files' names); of several filters, the
    first. The metric is ``acc``, else ``exact_match``, else the first. Chance, versions and which tasks make a group
    are taken from ``results_*.json`` beside the logs; where there is none, chance is 1 / choices.

    Args:
        where: The folder (the files may lie in a folder within it), or one ``samples_*.jsonl``.

    Returns:
        The capabilities, a group's tasks as one; and a digest of all files read.

    Raises:
        UsageError: if there are no logs, or a file is not one.
    """
    if not where.exists():
        raise UsageError(f"samples {str(where)!r}: no such file or folder; give lm-eval's --output_path")
    paths = [where] if where.is_file() else sorted(where.rglob("samples_*.jsonl"))
    files: dict[str, Path] = {}
    for path in sorted(paths, key=lambda path: path.name):  # dates sort as text
        match = _NAME.fullmatch(path.name)
        files[match["task"] if match else path.stem.removeprefix("samples_")] = path
    if not files:
        raise UsageError(f"samples {str(where)!r}: has no samples_*.jsonl; run lm_eval with --log_samples")
    folders = {path.parent for path in files.values()}
    if len(folders) > 1:
        names = ", ".join(sorted(folder.name for folder in folders)[:3])
        raise UsageError(f"samples {str(where)!r}: has logs of several models ({names}); give the folder of one")
    about = _results(folders.pop())
    digest = hashlib.sha256()
    tasks: dict[str, list[dict[str, Any]]] = {}
    for task, path in sorted(files.items()):
        digest.update(path.read_bytes())
        tasks[task] = list(_records(path))
    panel = {}
    for name, members in _groups(about, list(tasks)).items():
        panel[name] = _capability(name, {task: tasks[task] for task in members}, about)
    return panel, digest.hexdigest()


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file, of its first filter."""
    first = None
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # not splitlines: a text in JSON may hold U+2028
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"samples {str(path)!r}: cannot be read: {error}") from None
    if not any(line.strip() for line in lines):
        raise UsageError(f"samples {str(path)!r}: is empty")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict) or not isinstance(record.get("doc_id"), int) or "doc_hash" not in record:
            raise UsageError(
                f"samples {str(path)!r}, line {number}: is not lm-eval's record of a sample (doc_id, doc_hash, ...)"
            )
        first = record.get("filter") if first is None else first
        if record.get("filter") == first:
            yield record


def _results(folder: Path) -> dict[str, Any]:
    """The newest ``results_*.json`` of a folder; empty where there is none."""
    paths = sorted(folder.glob("results_*.json"))
    if not paths:
        return {}
    try:
        found = json.loads(paths[-1].read_text(encoding="utf-8"))
    except (ValueError, OSError):
        found = None
    if not isinstance(found, dict):
        raise UsageError(f"samples {str(paths[-1])!r}: is not JSON; delete it, or evaluate again")
    members = {"group_subtasks": list, "configs": dict, "higher_is_better": dict, "versions": object}
    for key, kind in members.items():
        value = found.get(key, {})
        if not isinstance(value, dict) or not all(isinstance(one or kind(), kind) for one in value.values()):
            raise UsageError(f"samples {str(paths[-1])!r}: {key!r} is not what lm-eval writes; evaluate again")
    return found


def _groups(about: Mapping[str, Any], tasks: list[str]) -> dict[str, list[str]]:
    """Capabilities and their tasks: the outermost groups, and the tasks that are in none."""
    groups = {
        name: [str(member) for member in members or ()] for name, members in about.get("group_subtasks", {}).items()
    }

    def leaves(name: str, within: tuple[str, ...] = ()) -> list[str]:
        if name in within:
            raise UsageError(f"samples: group_subtasks has {name!r} within itself; evaluate again")
        return [leaf for one in groups[name] for leaf in leaves(one, (*within, name))] if groups.get(name) else [name]

    inner = {member for members in groups.values() for member in members}
    found = {}
    for name in groups:
        members = [task for task in dict.fromkeys(leaves(name)) if task in tasks]
        if name not in inner and members:
            found[name] = members
    grouped = {task for members in found.values() for task in members}
    return found | {task: [task] for task in tasks if task not in grouped}


def _capability(name: str, tasks: Mapping[str, list[dict[str, Any]]], about: Mapping[str, Any]) -> Measured:
    task, records = next(iter(tasks.items()))
    named = records[0].get("metrics") or []
    names = [str(metric) for metric in named] if isinstance(named, list) else []
    metric = next((metric for metric in PREFERRED_METRICS if metric in names), names[0] if names else "acc")
    directions = about.get("higher_is_better", {}).get(task) or {}
    rows = [(member, record) for member, found in tasks.items() for record in found]
    chances = [_chance(about, member, record) for member, record in rows]
    found = measured(
        name,
        rows,
        metric,
        chance=sum(chances) / len(chances),
        higher_is_better=bool(directions.get(metric, not metric.endswith(("perplexity", "bits_per_byte")))),
        version=str(about.get("versions", {}).get(name, about.get("versions", {}).get(task, ""))),
    )
    for item in found.items:
        if not math.isfinite(item.outcome):
            raise UsageError(f"task {item.task!r}: item {item.key[1]} has {metric!r} = {item.outcome}; evaluate again")
    return found


def _chance(about: Mapping[str, Any], task: str, record: Mapping[str, Any]) -> float:
    metadata = (about.get("configs", {}).get(task) or {}).get("metadata")
    declared = metadata.get("chance") if isinstance(metadata, dict) else None
    if isinstance(declared, (int, float)) and math.isfinite(declared):
        return float(declared)
    choices = len(record.get("arguments") or ())
    return 1 / choices if choices > 1 else 0.0


def file_name(task: str) -> str:
    """A task's name as a part of a file's name: a name from a suite's YAML must not lead out of the folder.

    Where a character is replaced, or the name cut, a digest of the name keeps two tasks apart.
    """
    safe = re.sub(r"[^\w.-]", "_", task, flags=re.ASCII)[:100]
    return safe if safe == task else f"{safe}-{hashlib.sha256(task.encode()).hexdigest()[:8]}"


def write_samples(panel: Panel, folder: Path, model: str, date: str) -> None:
    """Write ``results_<date>.json`` and a ``samples_<task>_<date>.jsonl`` per task, as lm-eval does.

    In both, a task has the name that :func:`file_name` gives it; the capability's own is kept as that of a group.

    Args:
        panel: What a model did.
        folder: Of this model alone.
        model: Its name.
        date: ``2026-01-31T12-00-00.000000``.
    """
    results, configs, versions, directions, groups, counts = {}, {}, {}, {}, {}, {}
    for capability in panel.values():
        rows: dict[str, list[tuple[float, Mapping[str, Any]]]] = {}
        for item in capability.items:
            rows.setdefault(file_name(item.task), []).append((item.outcome, item.sample))
        if list(rows) != [capability.name]:
            groups[capability.name] = list(rows)
        for task, found in rows.items():
            filter_name = found[0][1].get("filter", "none")
            results[task] = {
                "alias": task,
                f"{capability.metric},{filter_name}": sum(outcome for outcome, _ in found) / len(found),
                "sample_len": len(found),
            }
            configs[task] = {"task": task, "metadata": {"version": capability.version, "chance": capability.chance}}
            versions[task] = capability.version
            directions[task] = {capability.metric: capability.higher_is_better}
            counts[task] = {"original": len(found), "effective": len(found)}
            lines = "".join(json.dumps(sample, ensure_ascii=False) + "\n" for _, sample in found)
            write_atomically(folder / f"samples_{task}_{date}.jsonl", lines.encode())
    content = {
        "results": results,
        "group_subtasks": groups,
        "configs": configs,
        "versions": versions,
        "n-samples": counts,
        "higher_is_better": directions,
        "model_name": model,
        "date": date,
    }
    write_atomically(folder / f"results_{date}.json", json.dumps(content, indent=2).encode())
