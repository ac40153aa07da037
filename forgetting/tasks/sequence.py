"""Named sequences, and sequences of one's own.

Where the orders come from:

- ``standard-cl-order1`` to ``3``: O-LoRA (Wang et al. 2023, arXiv 2310.14152), scripts/order_1.sh to order_3.sh of
  cmnfriend/O-LoRA.
- ``long-sequence-order4`` to ``6``: the same paper's 15 tasks, which are orders 8 to 10 of Progressive Prompts
  (Razdaibiedina et al. 2023, arXiv 2301.12314). gen_script_long_t5.py of circle-hit/SAPT gives orders 4 and 6
  alike (it calls them 5 and 4).
- ``trace``: TRACE (Wang et al. 2023, arXiv 2310.06762), scripts/train_seq_naive.sh of BeyonderXX/TRACE.
- ``superni-15`` (order 1) and ``superni-15-order2``: SAPT (Zhao et al. 2024, arXiv 2401.08295),
  gen_script_superni_t5.py of circle-hit/SAPT.

Prompts from the hub are O-LoRA's: instruction, ``Option:`` and the answers, the text, ``Answer:``; sizes are those
of its published files. The hub has another set of five-star Amazon reviews than the one used there. What differs
from a paper's metric is in the task's notes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from forgetting.config import SequenceConfig, TaskConfig
from forgetting.errors import UsageError, did_you_mean
from forgetting.registry import Registry
from forgetting.tasks.build import load_task
from forgetting.tasks.task import Sequence

FAMILIES = ("olora", "trace", "superni")
"""The JSON files beside this module: orders, tasks, their other names, metrics and hub data sets."""


@dataclass(frozen=True)
class NamedSequence:
    """A sequence that a name stands for.

    Attributes:
        description: One line: the tasks, and the paper.
        build: Loads it.
    """

    description: str
    build: Callable[[SequenceConfig], Sequence]


def load_sequence(config: SequenceConfig) -> Sequence:
    """Load a named sequence, or one of one's own where ``config.tasks`` are task configurations.

    Raises:
        UsageError: one line naming the field, the value and what would be valid; where a local folder lacks
            tasks, all of them and how to select the ones that it has.
    """
    if config.tasks and isinstance(config.tasks[0], TaskConfig):
        if config.data_dir is not None:
            raise UsageError(
                f"sequence {config.name!r}: data_dir {config.data_dir!r} is for named sequences; "
                "tasks of one's own give their files in train, validation and test"
            )
        return Sequence(config.name, tuple(load_task(_sized(task, config)) for task in _own(config)))
    if config.tasks is not None and not config.tasks:
        raise UsageError(f"sequence {config.name!r}: tasks is an empty list; leave it out for all tasks")
    if config.name not in SEQUENCES:
        raise UsageError(
            f"sequence: {config.name!r} is not a named sequence{did_you_mean(config.name, SEQUENCES)}; "
            "or give tasks of your own, each with name and train"
        )
    return SEQUENCES.get(config.name).build(config)


def _own(config: SequenceConfig) -> list[TaskConfig]:
    return [task for task in config.tasks or () if isinstance(task, TaskConfig)]


def _sized(task: TaskConfig, config: SequenceConfig) -> TaskConfig:
    """Fill in the sequence's sizes and seed where the task has none of its own."""
    sizes = {
        field: getattr(config, field)
        for field in ("train_size", "validation_size", "test_size")
        if getattr(task, field) is None
    }
    return task.model_copy(update={**sizes, "split_seed": task.split_seed or config.split_seed})


def _plain(name: str) -> str:
    return name.casefold().replace("-", "").replace("_", "")


def _select(config: SequenceConfig, order: list[str], aliases: dict[str, str]) -> list[str]:
    """The tasks asked for, in the order asked for; all in published order where none are."""
    if config.tasks is None:
        return order
    known = {alias: name for alias, name in aliases.items() if name in order}
    chosen = []
    for task in config.tasks:
        name = known.get(_plain(str(task)))
        if name is None:
            hint = did_you_mean(str(task), order)
            raise UsageError(f"sequence {config.name!r}: tasks: {task!r} is not one of its tasks{hint}")
        chosen.append(name)
    return chosen


def _micro(config: SequenceConfig) -> Sequence:
    """Build a sequence of the embedded world, of text or images; ``split_seed`` is its seed."""
    from forgetting.micro.digits import load_digits_sequence
    from forgetting.micro.sequences import load_micro_sequence

    if config.data_dir is not None:
        raise UsageError(f"sequence {config.name!r}: data_dir {config.data_dir!r} is given, but it is generated")
    sizes = {field: getattr(config, field) for field in ("train_size", "validation_size", "test_size")}
    given = {field: size for field, size in sizes.items() if size is not None}
    load = load_digits_sequence if config.name.startswith("digits-") else load_micro_sequence
    sequence = load(config.name, seed=config.split_seed, **given)
    tasks = {task.name: task for task in sequence.tasks}
    names = _select(config, list(tasks), {_plain(name): name for name in tasks})
    return Sequence(config.name, tuple(tasks[name] for name in names))


@cache
def _family(name: str) -> dict[str, Any]:
    return json.loads((Path(__file__).parent / f"{name}.json").read_text(encoding="utf-8"))


def _aliases(tasks: dict[str, Any]) -> dict[str, str]:
    return {_plain(alias): name for name, task in tasks.items() for alias in (name, *task["aliases"])}


def _benchmark(config: SequenceConfig, *, family: str) -> Sequence:
    """Build a published benchmark from a local folder, or from the hub where it is there."""
    benchmark = _family(family)
    tasks = benchmark["tasks"]
    names = _select(config, benchmark["orders"][config.name], _aliases(tasks))
    if config.data_dir is None:
        lacking = [name for name in names if "hub" not in tasks[name]]
        if lacking:
            raise UsageError(
                f"sequence {config.name!r}: has no data set on the hub; give data_dir, a local folder with "
                f"{benchmark['layout']} ({benchmark['paper']})"
            )
        configs = [TaskConfig(name=name, format="hub", **_hub(tasks[name]["hub"], config)) for name in names]
    else:
        folders = _folders(config, benchmark, names)
        configs = [_local(name, benchmark, folders[name]) for name in names]
    loaded = []
    for task_config in configs:
        task = load_task(_sized(task_config, config))
        if "note" in tasks[task.name]:
            task.notes["metric"] = tasks[task.name]["note"]
        loaded.append(task)
    return Sequence(config.name, tuple(loaded))


def _hub(hub: dict[str, Any], config: SequenceConfig) -> dict[str, Any]:
    """The published sizes, unless the sequence gives its own."""
    return {key: value for key, value in hub.items() if not key.endswith("_size") or getattr(config, key) is None}


def _local(name: str, benchmark: dict[str, Any], folder: Path) -> TaskConfig:
    task = benchmark["tasks"][name]
    options = {key: task[key] for key in ("metric", "choices", "max_new_tokens") if key in task}
    return TaskConfig(name=name, format=benchmark["format"], train=str(folder), **options)


def _folders(config: SequenceConfig, benchmark: dict[str, Any], names: list[str]) -> dict[str, Path]:
    """Find each task's folder, under any of its names; raise one line with all that are missing."""
    root = Path(config.data_dir or "").expanduser()
    where = f"sequence {config.name!r}: data_dir {config.data_dir!r}"
    if not root.is_dir():
        raise UsageError(f"{where} is not a folder; give one with {benchmark['layout']}")
    aliases = _aliases(benchmark["tasks"])
    found = {}
    for folder in sorted(root.iterdir()):
        name = aliases.get(_plain(folder.name))
        if name is not None and (folder / "train.json").is_file():
            found[name] = folder
    missing = [name for name in names if name not in found]
    if not missing:
        return found
    there = [name for name in benchmark["orders"][config.name] if name in found]
    if there:
        hint = f"it has the others, select them: tasks: [{', '.join(there)}]"
    elif (root / "train.json").is_file():
        hint = f"it is the folder of one task: name that as a task of your own, format: {benchmark['format']}"
    else:
        hint = f"give a folder with {benchmark['layout']}"
    raise UsageError(f"{where} lacks {', '.join(missing)}; {hint}")


def _registry() -> Registry[NamedSequence]:
    registry: Registry[NamedSequence] = Registry("sequence")
    for name, what in (
        ("micro-5", "five new domains"),
        ("micro-tuning", "two other new domains, to tune on what is reported on micro-5"),
        ("micro-similar", "three domains close to what was pretrained"),
        ("micro-conflict", "three domains that contradict what was pretrained"),
        ("micro-labels", "three domains of few labels, for encoders too,"),
        ("micro-relearn", "a new domain, then facts as in pretraining of half of the known people, and of new ones,"),
    ):
        registry.add(name, NamedSequence(f"{what} of the embedded world, generated", _micro))
    registry.add("digits-split", NamedSequence("three pairs of scikit-learn's digits, for vision models", _micro))
    registry.add(
        "digits-transformed", NamedSequence("the digits 0 to 3 rotated, inverted, permuted, for vision models", _micro)
    )
    for family in FAMILIES:
        benchmark = _family(family)
        for name, order in benchmark["orders"].items():
            origin = "hub or data_dir" if any("hub" in task for task in benchmark["tasks"].values()) else "data_dir"
            first = ", ".join(order[:2])
            description = f"{len(order)} tasks ({first}, ...), {benchmark['summary']}, {origin}; {benchmark['paper']}"
            registry.add(name, NamedSequence(description, partial(_benchmark, family=family)))
    return registry


SEQUENCES = _registry()
"""Name to NamedSequence, for ``forgetting list sequences``."""
