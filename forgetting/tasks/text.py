"""Rows to examples, and the JSONL format.

The text that a model sees is ``prompt + completion``: the separator belongs to the completion. Where a prompt
does not end in white space and a completion (or choice) does not begin with it, the readers put one space
before the completion.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from forgetting.config import TaskConfig
from forgetting.errors import UsageError, did_you_mean
from forgetting.tasks.files import json_lines, kind, own_path, shown
from forgetting.tasks.rows import stored_examples
from forgetting.tasks.task import Example

Notes = dict[str, int | str]


@dataclass
class RawSplits:
    """What a reader found, before anything is cut or drawn; ``None`` where there is no such split."""

    train: Sequence[Example]
    validation: Sequence[Example] | None = None
    test: Sequence[Example] | None = None
    notes: Notes = field(default_factory=dict)


def separated(prompt: str, completion: str) -> str:
    """Return the completion with one leading space where neither side has white space at the seam."""
    if prompt and not prompt[-1].isspace() and not completion[:1].isspace():
        return " " + completion
    return completion


def example(prompt: str, completion: str, choices: Iterable[str] | None, place: str) -> Example:
    """Build an example under the separator convention.

    Raises:
        UsageError: naming ``place``, if the completion is not among the choices.
    """
    if choices is None:
        return Example(prompt, separated(prompt, completion))
    options = tuple(choices)
    if completion not in options:
        raise UsageError(
            f"{place}: completion {shown(completion)} is not among the choices {shown(list(options), 120)}"
        )
    return Example(prompt, separated(prompt, completion), tuple(separated(prompt, option) for option in options))


def checked_choices(value: object, place: str) -> tuple[str, ...]:
    """Return choices as a tuple of at least two different, non-empty texts.

    Raises:
        UsageError: if they are not.
    """
    if not isinstance(value, list | tuple) or not all(isinstance(option, str) for option in value):
        raise UsageError(f"{place}: choices {shown(value)} is not a list of texts")
    if len(value) < 2 or len(set(value)) < len(value) or not all(option.strip() for option in value):
        raise UsageError(f"{place}: choices {shown(list(value))} needs two or more different, non-empty texts")
    return tuple(value)


def _column(row: Mapping[str, Any], column: str, place: str, role: str, taken: Iterable[str] = ()) -> Any:
    """The value of a column; where it is missing, the hint leaves out the columns ``taken`` by other roles."""
    if column not in row:
        others = [str(key) for key in row if key not in taken]
        raise UsageError(f"{place}: no column {column!r} for the {role}{did_you_mean(column, others)}")
    return row[column]


def _text(value: Any, column: str, place: str) -> str:
    if isinstance(value, float) and value != value:
        raise UsageError(f"{place}: column {column!r} is NaN; it needs text")
    if not isinstance(value, str):
        raise UsageError(f"{place}: column {column!r} is {kind(value)} ({shown(value)}), not text")
    if not value.strip():
        raise UsageError(f"{place}: column {column!r} is empty; it needs text")
    return value


class Template:
    """A prompt template: ``{column}`` stands for a column's text; ``{{`` and ``}}`` for braces.

    Raises:
        UsageError: if it does not parse, has no column, or asks for more than a column's name.
    """

    def __init__(self, template: str, where: str) -> None:
        self.place = f"{where}: template {shown(template)}"
        try:
            self.parts = list(string.Formatter().parse(template))
        except ValueError as error:
            raise UsageError(f"{self.place}: {error}; write {{column}}, and {{{{ }}}} for braces") from None
        columns = [part[1] for part in self.parts if part[1] is not None]
        if not columns:
            raise UsageError(f"{self.place}: has no {{column}}; write the column's name in braces")
        for _, column, specification, conversion in self.parts:
            if column is not None and (specification or conversion or not column or set(column) & set(".[]")):
                raise UsageError(f"{self.place}: field {column!r} is not a plain column name in braces")

    def fill(self, row: Mapping[str, Any], place: str) -> str:
        """Return the prompt of a row."""
        text = ""
        for literal, column, _, _ in self.parts:
            text += literal
            if column is not None:
                value = _column(row, column, place, "template")
                if value is None or isinstance(value, list | dict) or value != value:
                    raise UsageError(f"{place}: column {column!r} is {shown(value)}, which a template cannot show")
                text += str(value)
        return text


def rows_to_examples(
    rows: Iterable[tuple[str, Mapping[str, Any]]],
    config: TaskConfig,
    *,
    labels: tuple[str, ...] | None = None,
) -> Iterator[Example]:
    """Turn rows of columns into examples by a task's column mapping, one by one.

    Args:
        rows: ``(place, row)``; the place names file and line in messages.
        config: For ``columns``, ``template``, ``choices`` and the task's name.
        labels: Names of integer labels in the completion column; they become the choices.

    Raises:
        UsageError: for the first row that cannot be used: a missing, empty or wrongly typed column, NaN, a
            label out of range, a completion that is not among its choices.
    """
    where = f"task {config.name!r}"
    template = Template(config.template, where) if config.template is not None else None
    fixed = checked_choices(config.choices, where) if config.choices is not None else None
    names = checked_choices(labels, f"{where}: labels") if labels is not None else None
    columns = config.columns
    for place, row in rows:
        if template is not None:
            prompt = template.fill(row, place)
        else:
            value = _column(row, columns.prompt, place, "prompt", (columns.completion, columns.choices))
            prompt = _text(value, columns.prompt, place)
        answer = _column(row, columns.completion, place, "completion", (columns.prompt, columns.choices))
        choices = fixed
        if names is not None:
            if not isinstance(answer, int) or not 0 <= answer < len(names):
                hint = "; -1 marks an unlabelled split, choose a labelled one" if answer == -1 else ""
                raise UsageError(
                    f"{place}: column {columns.completion!r} is {shown(answer)}, "
                    f"not a label 0 to {len(names) - 1}{hint}"
                )
            answer, choices = names[answer], fixed or names
        elif fixed is None and row.get(columns.choices) is not None:
            choices = checked_choices(row[columns.choices], place)
        completion = _text(answer, columns.completion, place)
        yield example(prompt, completion, choices, place)


def read_jsonl(config: TaskConfig) -> RawSplits:
    """Read a task of JSONL files: an object per line with prompt, completion and, optionally, choices.

    Raises:
        UsageError: for the first thing that cannot be used, naming file and line.
    """

    def read(split: str, path: str | None) -> Sequence[Example] | None:
        if path is None:
            return None
        where = f"task {config.name!r}, {split}"
        rows = json_lines(own_path(path, where), where)
        return stored_examples(rows_to_examples(rows, config, labels=config.labels))

    train = read("train", config.train)
    assert train is not None
    return RawSplits(train, read("validation", config.validation), read("test", config.test))
