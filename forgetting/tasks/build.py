"""From a TaskConfig to a Task: read, cut, draw, and say in the notes all that was left out."""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Sequence as Items
from typing import TYPE_CHECKING

import numpy as np

from forgetting.config import TaskConfig
from forgetting.errors import UsageError
from forgetting.tasks.benchmarks import read_superni, read_trace
from forgetting.tasks.files import own_path
from forgetting.tasks.hub import read_hub
from forgetting.tasks.images import read_images
from forgetting.tasks.lazy import Selected
from forgetting.tasks.task import Example, Task
from forgetting.tasks.text import Notes, read_jsonl

if TYPE_CHECKING:
    from numpy.typing import NDArray

TEST_SHARE = 0.2
"""Share of train that becomes the test split where there is none."""
VALIDATION_SHARE = 0.1
VALIDATION_LIMIT = 200

READERS = {"jsonl": read_jsonl, "hub": read_hub, "superni": read_superni, "trace": read_trace, "images": read_images}

_OPTIONS = {
    "columns": ("jsonl", "hub"),
    "template": ("jsonl", "hub"),
    "labels": ("jsonl", "hub", "images"),
    "subset": ("hub",),
    "train_split": ("hub",),
}
"""Fields that only some formats use."""


def load_task(config: TaskConfig) -> Task:
    """Load a task; relative paths start at the working directory.

    Where there is no test split, a fifth of train (at least one example) is cut off for it; where there is no
    validation split, a tenth of what then remains of train (at least one, at most 200 examples). Validation is
    never cut from test. Each split then keeps ``*_size`` examples, drawn by ``split_seed``: a smaller size is a
    subset of a larger one, and the test split depends on its own size only. The metric is by default accuracy
    where there are choices, else exact_match; chance is the mean of 1 / len(choices) over the test split.

    ``notes`` count what was dropped, and, where there are any, ``duplicates_train_test``: test examples whose
    prompt and completion are in train, ``duplicate_prompts_train_test``: those whose prompt is.

    Raises:
        UsageError: one line naming the field, or file and line, the value, and what would be valid.
    """
    where = f"task {config.name!r}"
    _check_options(config, where)
    raw = READERS[config.format](config)
    notes = raw.notes
    train, validation, test = raw.train, raw.validation, raw.test
    if test is None:
        count = max(1, round(TEST_SHARE * len(train)))
        train, test = _cut(train, count, f"test-{config.split_seed}", f"{where}: test")
        notes["test_cut_from_train"] = count
    if validation is None:
        count = config.validation_size or min(VALIDATION_LIMIT, max(1, round(VALIDATION_SHARE * len(train))))
        train, validation = _cut(train, count, f"validation-{config.split_seed}", f"{where}: validation")
    kept = {
        split: _draw(examples, size, f"{split}-size-{config.split_seed}", split, notes)
        for split, examples, size in (
            ("train", train, config.train_size),
            ("validation", validation, config.validation_size),
            ("test", test, config.test_size),
        )
    }
    _note_duplicates(kept["train"], kept["test"], "train_test", notes)
    _note_duplicates(kept["validation"], kept["test"], "validation_test", notes)
    multiple_choice = all(item.choices for examples in kept.values() for item in examples)
    metric = config.metric or ("accuracy" if multiple_choice else "exact_match")
    chance = 0.0
    if metric == "accuracy" and multiple_choice:
        chance = math.fsum(1 / len(item.choices or ()) for item in kept["test"]) / len(kept["test"])
    return Task(
        name=config.name,
        train=kept["train"],
        validation=tuple(kept["validation"]),
        test=tuple(kept["test"]),
        metric=metric,
        chance=chance,
        max_new_tokens=config.max_new_tokens,
        notes=notes,
    )


def _check_options(config: TaskConfig, where: str) -> None:
    """Refuse an option that the format would ignore, and a validation split that is the test split."""
    for field, formats in _OPTIONS.items():
        value = getattr(config, field)
        if config.format not in formats and value != TaskConfig.model_fields[field].default:
            raise UsageError(
                f"{where}: {field} is given, but format {config.format!r} does not use it; "
                f"it is for {' and '.join(formats)}"
            )
    splits = {"train": config.train, "validation": config.validation, "test": config.test}
    if config.format == "hub":
        splits["train"] = config.train_split
    same = (lambda a, b: a == b) if config.format == "hub" else _same_file
    for first, second in (("validation", "test"), ("test", "train"), ("validation", "train")):
        a, b = splits[first], splits[second]
        if a is not None and b is not None and same(a, b):
            raise UsageError(
                f"{where}: {first} {a!r} is the same as {second}; leave {first} out, and it is cut from train"
            )


def _same_file(first: str, second: str) -> bool:
    return own_path(first, "file").resolve() == own_path(second, "file").resolve()


def _cut(examples: Items[Example], count: int, seed: str, where: str) -> tuple[Items[Example], Items[Example]]:
    """Split ``count`` examples off, both parts in the file's order."""
    if count >= len(examples):
        raise UsageError(
            f"{where}: {count} to be cut from {len(examples)} training examples leaves none to train on; "
            f"give more examples, or a {where.rsplit(' ', 1)[1]} file"
        )
    chosen = np.zeros(len(examples), dtype=bool)
    chosen[_permutation(len(examples), seed)[:count]] = True
    return Selected(examples, np.flatnonzero(~chosen)), Selected(examples, np.flatnonzero(chosen))


def _draw(examples: Items[Example], size: int | None, seed: str, split: str, notes: Notes) -> Items[Example]:
    """Keep ``size`` examples, or all where there are fewer; either is noted."""
    if size is None or size == len(examples):
        return examples
    if size > len(examples):
        notes[f"{split}_smaller_than_asked"] = f"{len(examples)} of {size}"
        return examples
    notes[f"{split}_left_out_by_size"] = len(examples) - size
    return Selected(examples, np.sort(_permutation(len(examples), seed)[:size]))


def _permutation(count: int, seed: str) -> NDArray[np.int64]:
    order = array("q", range(count))  # eight bytes for an example, where a list has five times as many
    random.Random(seed).shuffle(order)
    return np.frombuffer(order, np.int64)


def _note_duplicates(first: Items[Example], test: Items[Example], name: str, notes: Notes) -> None:
    looked_for = {item.prompt for item in test}
    same = [(item.prompt, item.completion) for item in first if item.prompt in looked_for]
    pairs, prompts = set(same), {prompt for prompt, _ in same}
    for key, count in (
        (f"duplicates_{name}", sum((item.prompt, item.completion) in pairs for item in test)),
        (f"duplicate_prompts_{name}", sum(item.prompt in prompts for item in test)),
    ):
        if count:
            notes[key] = count
