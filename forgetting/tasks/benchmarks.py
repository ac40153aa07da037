"""The JSON formats of published continual-learning benchmarks: SuperNI-style and TRACE-style.

SuperNI style (Wang et al. 2022; as in the repositories of O-LoRA and SAPT)::

    {"Definition": ["What to do."], "Instances": [{"input": "...", "output": "..." or ["...", ...]}]}

The prompt is the definition, the input and ``Output:``, one after the other on lines of their own (SAPT's
zero-shot instruction). Of several outputs the first is taken. ``labels.json`` beside the file lists the answers.

TRACE style (Wang et al. 2023, arXiv 2310.06762)::

    [{"prompt": "...", "answer": "..."}]

The prompt is taken as it stands. ``train`` may be a file, or a folder with train.json, test.json and, for TRACE,
eval.json (its validation split). A folder's dev.json is not read: in the published folders it equals test.json.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from forgetting.config import TaskConfig
from forgetting.errors import UsageError, did_you_mean
from forgetting.tasks.files import kind, own_path, parse_json, read_utf8, shown
from forgetting.tasks.task import Example
from forgetting.tasks.text import Notes, RawSplits, checked_choices, example

Pairs = list[tuple[str, str]]
"""(prompt, answer), in the file's order."""


def _paths(config: TaskConfig, validation_file: str | None) -> dict[str, Path]:
    """Where the splits lie; a split that is not there is left out, an unreadable one is found when it is read."""
    train = own_path(config.train, f"task {config.name!r}, train")
    paths = {"train": train}
    if train.is_dir():
        paths["train"] = train / "train.json"
        if not paths["train"].is_file():
            raise UsageError(f"task {config.name!r}, train {config.train!r}: the folder has no train.json")
        if (train / "test.json").is_file():
            paths["test"] = train / "test.json"
        if validation_file is not None and (train / validation_file).is_file():
            paths["validation"] = train / validation_file
    for split, given in (("validation", config.validation), ("test", config.test)):
        if given is not None:
            paths[split] = own_path(given, f"task {config.name!r}, {split}")
    return paths


def _items(value: Any, place: str, keys: tuple[str, str]) -> list[tuple[str, Any, Any]]:
    """(place, first, second) of every object of a list."""
    if not isinstance(value, list):
        raise UsageError(f"{place}: is {kind(value)}, not a list of {{{keys[0]}, {keys[1]}}}")
    if not value:
        raise UsageError(f"{place}: is empty; it needs at least one example")
    items = []
    for number, item in enumerate(value, start=1):
        at = f"{place}, item {number}"
        if not isinstance(item, dict):
            raise UsageError(f"{at}: is {kind(item)}, not an object with {keys[0]!r} and {keys[1]!r}")
        for key in keys:
            if key not in item:
                raise UsageError(f"{at}: no {key!r}{did_you_mean(key, item)}")
        if not isinstance(item[keys[0]], str):
            raise UsageError(f"{at}: {keys[0]!r} is {kind(item[keys[0]])}, not text")
        items.append((at, item[keys[0]], item[keys[1]]))
    return items


def _superni_pairs(path: Path, where: str, split: str, notes: Notes) -> Pairs:
    place = f"{where} {str(path)!r}"
    value = parse_json(read_utf8(path, where), place)
    if not isinstance(value, dict) or "Instances" not in value:
        found = f"; its keys are {', '.join(map(str, value))}" if isinstance(value, dict) else f"; it is {kind(value)}"
        raise UsageError(f"{place}: has no 'Instances'{found}")
    parts = value.get("Definition") or []
    parts = [parts] if isinstance(parts, str) else parts
    if not isinstance(parts, list) or not all(isinstance(part, str | None) for part in parts):
        raise UsageError(f"{place}: 'Definition' is {shown(parts)}, not text or a list of texts")
    definition = " ".join(part for part in parts if part)
    pairs: Pairs = []
    empty = several = 0
    for at, text, output in _items(value["Instances"], place, ("input", "output")):
        outputs = output if isinstance(output, list) else [output]
        if not all(isinstance(one, str) for one in outputs):
            raise UsageError(f"{at}: 'output' is {kind(output)}, not text or a list of texts")
        if not outputs or not outputs[0].strip():
            empty += 1
            continue
        several += len(outputs) > 1
        pairs.append(("\n".join(p for p in (definition.strip(), text.strip(), "Output:") if p), outputs[0].strip()))
    _count(notes, f"{split}_without_output_dropped", empty)
    _count(notes, f"{split}_with_several_outputs_first_taken", several)
    return pairs


def _trace_pairs(path: Path, where: str, split: str, notes: Notes) -> Pairs:
    place = f"{where} {str(path)!r}"
    pairs: Pairs = []
    empty = 0
    for at, prompt, answer in _items(parse_json(read_utf8(path, where), place), place, ("prompt", "answer")):
        if not isinstance(answer, str):
            raise UsageError(f"{at}: 'answer' is {kind(answer)}, not text")
        if answer.strip() and prompt.strip():
            pairs.append((prompt, answer.strip()))
        else:
            empty += 1
    _count(notes, f"{split}_without_answer_dropped", empty)
    return pairs


def _count(notes: Notes, key: str, count: int) -> None:
    if count:
        notes[key] = count


def _labels(train: Path, config: TaskConfig) -> tuple[str, ...] | None:
    """The answers in ``labels.json`` beside the training file."""
    path = train.parent / "labels.json"
    if not path.is_file():
        return None
    where = f"task {config.name!r}, labels"
    return checked_choices(parse_json(read_utf8(path, where), f"{where} {str(path)!r}"), f"{where} {str(path)!r}")


def _fitting(labels: tuple[str, ...] | None, pairs: Pairs, notes: Notes) -> tuple[str, ...] | None:
    """The labels, or, where fewer than half of the training answers are among them, the answers themselves."""
    if labels is None:
        return None
    known = {label.casefold() for label in labels}
    if 2 * sum(answer.casefold() in known for _, answer in pairs) >= len(pairs):
        return labels
    answers = tuple(sorted({answer for _, answer in pairs}))
    notes["labels_replaced"] = f"labels.json says {', '.join(labels)}; the answers are {', '.join(answers)[:200]}"
    return answers if len(answers) > 1 else None


def _examples(pairs: Pairs, choices: tuple[str, ...] | None, split: str, notes: Notes, where: str) -> list[Example]:
    """Examples in the choices' own spelling; items whose answer is none of them are dropped and counted."""
    if choices is None:
        return [example(prompt, answer, None, where) for prompt, answer in pairs]
    exact = {choice: choice for choice in choices}
    folded = {choice.casefold(): choice for choice in choices}
    found, dropped = [], Counter[str]()
    respelled = 0
    for prompt, answer in pairs:
        choice = exact.get(answer) or folded.get(answer.casefold())
        if choice is None:
            dropped[answer] += 1
            continue
        respelled += choice != answer
        found.append(example(prompt, choice, choices, where))
    _count(notes, f"{split}_labels_matched_ignoring_case", respelled)
    if dropped:
        named = ", ".join(repr(answer) for answer, _ in dropped.most_common(3))
        notes[f"{split}_not_in_choices_dropped"] = f"{dropped.total()} ({named[:80]})"
    if not found:
        raise UsageError(
            f"{where}: no answer is among the choices {', '.join(choices)[:120]}; "
            f"the first answer is {next(iter(dropped), '')[:60]!r}"
        )
    return found


def _read(config: TaskConfig, validation_file: str | None, pairs_of: Any, labels_of: Any) -> RawSplits:
    notes: Notes = {}
    places = {split: f"task {config.name!r}, {split}" for split in ("train", "validation", "test")}
    paths = _paths(config, validation_file)
    pairs = {split: pairs_of(path, places[split], split, notes) for split, path in paths.items()}
    for split, found in pairs.items():
        if not found:
            raise UsageError(f"{places[split]} {str(paths[split])!r}: no item has an answer; it needs at least one")
    if config.choices is not None:
        choices: tuple[str, ...] | None = checked_choices(config.choices, f"task {config.name!r}")
    else:
        choices = labels_of(paths["train"], pairs["train"], notes)
    splits = {
        split: _examples(found, choices, split, notes, f"{places[split]} {str(paths[split])!r}")
        for split, found in pairs.items()
    }
    return RawSplits(splits["train"], splits.get("validation"), splits.get("test"), notes)


def read_superni(config: TaskConfig) -> RawSplits:
    """Read a task in SuperNI style; the choices are the config's, else those of ``labels.json``, else none.

    Raises:
        UsageError: for the first thing that cannot be used, naming file and item.
    """

    def labels(train: Path, pairs: Pairs, notes: Notes) -> tuple[str, ...] | None:
        return _fitting(_labels(train, config), pairs, notes)

    return _read(config, None, _superni_pairs, labels)


def read_trace(config: TaskConfig) -> RawSplits:
    """Read a task in TRACE style; few different answers (2 to 10, each five times on average) are the choices.

    Raises:
        UsageError: for the first thing that cannot be used, naming file and item.
    """

    def labels(train: Path, pairs: Pairs, notes: Notes) -> tuple[str, ...] | None:
        answers = tuple(sorted({answer for _, answer in pairs}))
        if config.metric in (None, "accuracy") and 2 <= len(answers) <= 10 and len(pairs) >= 5 * len(answers):
            notes["choices_are_the_training_answers"] = ", ".join(answers)[:200]
            return answers
        return None

    return _read(config, "eval.json", _trace_pairs, labels)
