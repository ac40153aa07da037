"""Rows in Arrow files: read back as they were written, at any index, from memory and from a mapping."""

from __future__ import annotations

import io
import random
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from forgetting.errors import UsageError
from forgetting.tasks import rows as module
from forgetting.tasks.lazy import Changed, Selected
from forgetting.tasks.rows import ROWS, Rows, stored_examples, write_rows
from forgetting.tasks.task import Example


def features(count: int) -> list[dict[str, Any]]:
    generator = random.Random(0)
    return [
        {
            "input_ids": [generator.randrange(2**31) for _ in range(i % 5)],
            "labels": [-100, i],
            "source": i,
            "text": "ä" * i,
        }
        for i in range(count)
    ]


def read_back(found: Iterable[dict[str, Any]]) -> Rows[dict[str, Any]]:
    with tempfile.TemporaryFile() as file:
        write_rows(found, file)
        return Rows(file, dict)


@pytest.mark.parametrize("small", [0, 1 << 30])
@pytest.mark.parametrize("count", [1, ROWS, 2 * ROWS + 3])
def test_rows_are_read_as_they_were_written(monkeypatch: pytest.MonkeyPatch, small: int, count: int) -> None:
    monkeypatch.setattr(module, "SMALL", small)
    written = features(count)
    read = read_back(written)
    assert (read._mapped is None) == (small > 0)
    order = list(range(-count, count))
    random.Random(1).shuffle(order)
    assert len(read) == count and list(read) == written == read[:]
    assert [read[i] for i in order] == [written[i] for i in order]
    assert list(read[0]) == list(written[0])  # the keys' order too
    with pytest.raises(IndexError):
        read[count]


def test_a_row_is_made_anew_and_tensors_keep_their_bits() -> None:
    values = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(0))
    read = read_back([{"pixel_values": value, "labels": [i]} for i, value in enumerate(values)])
    read[0]["labels"].append(7)
    read[0]["pixel_values"].zero_()
    assert read[0]["labels"] == [0] and torch.equal(torch.stack([row["pixel_values"] for row in read]), values)
    assert len(read_back([])) == 0


def test_other_values_are_refused_and_a_torn_file_is_found() -> None:
    with pytest.raises(TypeError, match="'x' is float; text"):
        write_rows([{"x": 0.5}], io.BytesIO())
    with pytest.raises(pa.ArrowInvalid):
        write_rows([{"x": [2**31]}], io.BytesIO())
    file = io.BytesIO()
    write_rows(features(10), file)
    with pytest.raises(pa.ArrowInvalid):
        Rows(io.BytesIO(file.getvalue()[:-5]), dict)


def test_examples_come_back_equal_and_share_their_choices() -> None:
    examples = [Example("é?", " a", (" a", " b")), Example("", " free"), Example("q", " b", (" a", " b"))]
    stored = stored_examples(iter(examples))
    assert stored == examples == list(stored) and repr(tuple(stored)) == repr(tuple(examples))
    assert stored != examples[:2] and stored != [*examples[:2], examples[0]] and stored != "abc"
    assert stored[0].choices is stored[2].choices


def test_no_room_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(rows: object, file: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_rows", full)
    with pytest.raises(UsageError, match="temporary folder .*No space left on device; name one .* in TMPDIR"):
        stored_examples([Example("a", " b")])


def test_views_select_and_change_without_a_copy() -> None:
    letters = list("abcdef")
    some = Selected(Selected(letters, np.array([5, 3, 1, 0])), np.array([2, 0]))
    assert some == ["b", "f"] and some.items is letters and some[-1] == "f" and list(some) == ["b", "f"]
    louder = Changed(some, str.upper)
    letters[1] = "z"
    assert louder == ["Z", "F"] and louder[0] == "Z" and louder[1:] == ["F"] and len(louder) == 2


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
def test_a_file_larger_than_what_is_held_leaves_the_peak_of_memory_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS", 16)
    monkeypatch.setattr(module, "KEPT", 16)
    text, count = "x" * 50_000, 1600  # 80 MB

    def peak(key: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])

    read_back([{"text": text}] * 16)[0]  # libraries are loaded
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = peak("VmRSS")
    read = read_back({"text": text} for _ in range(count))
    assert sum(len(row["text"]) for row in read) == len(text) * count
    order = random.Random(0).sample(range(count), count)
    assert all(read[index]["text"] == text for index in order)
    assert peak("VmHWM") - before < 20_000_000
