"""What one model did on every item: lm-eval's records, whether a model was scored here or its logs are read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from forgetting.errors import UsageError, did_you_mean
from forgetting.evaluation.suite import item_value

CONTEXT_LENGTH = 80
"""A text of a document of so many characters that others of its task have too is a context that they share."""


@dataclass(frozen=True)
class Item:
    """One item of a capability.

    Attributes:
        task: The lm-eval task that it is of (a capability may be a group of tasks).
        sample: lm-eval's record of it, with the keys of ``samples_*.jsonl``.
        outcome: Its score by the capability's metric.
    """

    task: str
    sample: Mapping[str, Any]
    outcome: float

    @property
    def key(self) -> tuple[str, int]:
        """What identifies it within a capability."""
        return self.task, int(self.sample["doc_id"])

    @property
    def doc_hash(self) -> str:
        """SHA-256 of the document."""
        return str(self.sample.get("doc_hash", ""))

    @property
    def prompt_hash(self) -> str:
        """SHA-256 of the prompt of its first request."""
        return str(self.sample.get("prompt_hash", ""))

    @property
    def prompt(self) -> str:
        """What the model read."""
        first = next(iter(self._arguments.values()), {})
        return str(first.get("arg_0", ""))

    @property
    def choices(self) -> tuple[str, ...]:
        """The continuations that were compared; empty where the model wrote an answer."""
        if len(self._arguments) < 2:
            return ()
        contexts = {str(arguments.get("arg_0", "")) for arguments in self._arguments.values()}
        part = "arg_1" if len(contexts) == 1 else "arg_0"  # of WinoGrande and BLiMP, the beginnings differ
        return tuple(str(arguments.get(part, "")) for arguments in self._arguments.values())

    @property
    def target(self) -> str:
        """The right answer; of choices its text, where the task gives its number."""
        target = str(self.sample.get("target", ""))
        if self.choices and target.isdigit() and int(target) < len(self.choices):
            return self.choices[int(target)]
        return target

    @property
    def log_probs(self) -> tuple[float, ...]:
        """Of each choice, in nats; empty where the model wrote an answer."""
        found = []
        for response in self.sample.get("filtered_resps") or []:
            value = response[0] if isinstance(response, (list, tuple)) and response else None
            try:
                found.append(float(value))  # type: ignore[arg-type]
            except (TypeError, ValueError):
                return ()
        return tuple(found)

    @property
    def answer(self) -> str:
        """What the model chose, or wrote."""
        if self.choices and len(self.log_probs) == len(self.choices):
            return self.choices[int(np.argmax(self.log_probs))]
        written = self.sample.get("filtered_resps") or [""]
        return "" if self.log_probs else str(written[0])

    @property
    def _arguments(self) -> dict[str, dict[str, Any]]:
        given = self.sample.get("arguments") or {}
        return given if isinstance(given, dict) else {}


@dataclass(frozen=True)
class Measured:
    """One capability, as one model has it.

    Attributes:
        name: Of an lm-eval task, or group.
        metric: The one that is compared.
        chance: The score of guessing.
        higher_is_better: False of a perplexity.
        version: lm-eval's, of the task.
        items: In the order of their tasks and numbers.
    """

    name: str
    metric: str
    chance: float
    higher_is_better: bool
    version: str
    items: tuple[Item, ...]

    @cached_property
    def outcomes(self) -> np.ndarray:
        """Shape (n,)."""
        return np.array([item.outcome for item in self.items], dtype=np.float64)

    @property
    def score(self) -> float:
        """Mean over items (lm-eval's own, but for scores that are no means: F1 over a set, correlation)."""
        return float(self.outcomes.mean())


Panel = dict[str, Measured]
"""Capabilities by name."""


def measured(name: str, records: Sequence[tuple[str, Mapping[str, Any]]], metric: str, **about: Any) -> Measured:
    """Make a capability of lm-eval's records.

    Args:
        name: The capability's.
        records: Pairs of the task's name and the record.
        metric: Must be in each.
        about: ``chance``, ``higher_is_better``, ``version``.

    Raises:
        UsageError: if a record has no value of the metric, or an item is there twice.
    """
    items = []
    for task, sample in records:
        try:
            outcome = item_value(metric, sample[metric])
        except (KeyError, TypeError, ValueError, IndexError):
            raise UsageError(
                f"task {task!r}: item {sample.get('doc_id')} has no number as {metric!r}; give lm-eval's own logs"
            ) from None
        items.append(Item(task, sample, outcome))
    items.sort(key=lambda item: item.key)
    keys = [item.key for item in items]
    if len(set(keys)) < len(keys):
        twice = next(key for key, after in pairwise(keys) if key == after)
        raise UsageError(f"task {twice[0]!r}: item {twice[1]} is there twice; give the log of one evaluation")
    return Measured(name, metric, items=tuple(items), **about)


def clusters(items: Sequence[Item], field: str | None = None) -> list[str] | None:
    """Return the context of each item, for intervals that know that items which share one are not independent.

    Args:
        items: Of one capability.
        field: The documents' field that names the context. Where not given, of each task the first field whose text
            has at least 80 characters, is the same in two documents or more, and is not the same in all of the
            task (an instruction, say).

    Returns:
        A label per item (a digest of the context), or ``None`` where no two items share a context.
    """
    given = [item.sample.get("doc") for item in items]
    documents: list[dict[str, Any]] = [doc if isinstance(doc, dict) else {} for doc in given]
    texts = ["" for _ in items]  # of an item that shares no context
    if field is not None:
        values = [str(doc.get(field, "")) for doc in documents]
        if _groups(values, 1):
            texts = values
    else:
        for task in dict.fromkeys(item.task for item in items):
            places = [place for place, item in enumerate(items) if item.task == task]
            for name in dict.fromkeys(name for place in places for name in documents[place]):
                values = [str(documents[place].get(name, "")) for place in places]
                if _groups(values, CONTEXT_LENGTH):
                    for place, value in zip(places, values, strict=True):
                        texts[place] = value
                    break
    labels = [
        hashlib.sha256(f"{item.task}\n{text or item.key}".encode()).hexdigest()[:16]
        for item, text in zip(items, texts, strict=True)
    ]
    return labels if len(set(labels)) < len(labels) else None


def _groups(values: Sequence[str], length: int) -> bool:
    """Whether some texts of this length are the same, and not all."""
    long = [value for value in values if len(value) >= length]
    return len(set(values)) > 1 and len(set(long)) < len(long)


def check_field(panel: Panel, field: str | None) -> None:
    """Raise UsageError if no document of any capability has the field that was named as the context."""
    documents = [item.sample.get("doc") for capability in panel.values() for item in capability.items]
    names = {str(name) for doc in documents if isinstance(doc, dict) for name in doc}
    if field is not None and field not in names:
        raise UsageError(f"cluster {field!r}: no document of any capability has that field{did_you_mean(field, names)}")


def check_apart(tasks: Mapping[str, Iterable[str]]) -> None:
    """Raise UsageError if a task is part of two capabilities: its items would count twice.

    Args:
        tasks: The lm-eval tasks of each capability.
    """
    owner: dict[str, str] = {}
    for name, parts in tasks.items():
        for task in sorted(set(parts)):
            if task in owner:
                raise UsageError(
                    f"capabilities {owner[task]!r} and {name!r}: both hold task {task!r}, whose items would count "
                    "twice; give one of them"
                )
            owner[task] = name


def paired(base: Panel, tuned: Panel) -> list[tuple[Measured, Measured]]:
    """Return the capabilities of two models, item by item the same.

    Raises:
        UsageError: if capabilities, metrics, items or documents differ: what is not the same cannot be paired.
    """
    for name in {**base, **tuned}:
        if name not in base or name not in tuned:
            where = "BASE" if name not in base else "TUNED"
            raise UsageError(f"capability {name!r}: {where} has none; both need the same ({', '.join(base)})")
    pairs = []
    for name, first in base.items():
        second = tuned[name]
        if first.metric != second.metric:
            raise UsageError(
                f"capability {name!r}: BASE has {first.metric!r} and TUNED {second.metric!r}; score both in one way"
            )
        there, here = ({item.key: item for item in side.items} for side in (first, second))
        for key in {**there, **here}:
            if key not in there or key not in here:
                where = "BASE" if key not in there else "TUNED"
                raise UsageError(
                    f"task {key[0]!r}: item {key[1]} is not in {where} ({len(there)} and {len(here)} items); "
                    "score both on the same items, with the same --limit"
                )
            if there[key].doc_hash != here[key].doc_hash:
                raise UsageError(
                    f"task {key[0]!r}: item {key[1]} is another document in TUNED than in BASE; score both on the "
                    "same version of the data"
                )
        pairs.append((first, second))
    return pairs


def prompts_digest(panel: Panel) -> str:
    """SHA-256 of all that a model was asked: every request's text, in order."""
    content = [
        [item.task, item.sample["doc_id"], item.sample.get("arguments")]
        for capability in panel.values()
        for item in capability.items
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
