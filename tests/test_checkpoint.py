"""Checkpoints are whole or not used: torn, half-renamed, spoiled and killed writings; what is kept; intervals."""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from forgetting.checkpoint import (
    MANIFEST,
    Interval,
    drop_newer,
    drop_older,
    latest_row,
    latest_step,
    row_path,
    step_path,
    steps_of,
    torn,
    write_checkpoint,
)
from forgetting.errors import UsageError


def write(path: Path, content: bytes = b"content" * 100) -> None:
    write_checkpoint(path, {"state": lambda file: file.write_bytes(content), "other": lambda file: file.touch()})


def cut(folder: Path) -> None:
    file = folder / "state"
    file.write_bytes(file.read_bytes()[:-1])


def turn_a_bit(folder: Path) -> None:
    content = bytearray((folder / "state").read_bytes())
    content[50] ^= 1
    (folder / "state").write_bytes(content)


def exchange(folder: Path) -> None:
    """A file of another checkpoint, as whole as any."""
    (folder / "state").write_bytes(b"CONTENT" * 100)


SPOILS: dict[str, Callable[[Path], object]] = {
    "cut": cut,
    "bit": turn_a_bit,
    "exchanged": exchange,
    "file lost": lambda folder: (folder / "state").unlink(),
    "empty file lost": lambda folder: (folder / "other").unlink(),
    "manifest lost": lambda folder: (folder / MANIFEST).unlink(),
    "manifest empty": lambda folder: (folder / MANIFEST).write_text(""),
    "manifest cut": lambda folder: (folder / MANIFEST).write_text((folder / MANIFEST).read_text()[:-20]),
    "manifest of another kind": lambda folder: (folder / MANIFEST).write_text("[1]"),
}


@pytest.mark.parametrize("how", SPOILS)
def test_a_torn_checkpoint_is_passed_over_for_the_one_before_it(
    how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for path in (row_path(tmp_path, 1), row_path(tmp_path, 2), step_path(tmp_path, 2, 9), step_path(tmp_path, 2, 10)):
        write(path)
        assert torn(path) is None
    assert latest_row(tmp_path, 2) == 2 and latest_step(tmp_path, 2) == step_path(tmp_path, 2, 10)
    for path in (row_path(tmp_path, 2), step_path(tmp_path, 2, 10)):
        SPOILS[how](path)
        assert torn(path) is not None
    with caplog.at_level(logging.WARNING):
        assert latest_row(tmp_path, 2) == 1 and latest_step(tmp_path, 2) == step_path(tmp_path, 2, 9)
    assert [record.message.count("\n") for record in caplog.records] == [0, 0]
    assert all("is torn" in record.message for record in caplog.records)
    SPOILS[how](step_path(tmp_path, 2, 9))
    SPOILS[how](row_path(tmp_path, 1))
    assert latest_row(tmp_path, 2) == 0 and latest_step(tmp_path, 2) is None


class Killed(BaseException):
    pass


CALLS = ("fsync", "replace", "mkdir", "rmdir", "unlink")


def test_killed_at_every_call_that_writes_it_is_whole_or_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 2 replaces an older one of that name; row 1 is never touched, and what is left over does not stay."""
    made = 0

    def killed_at(moment: int, after: bool) -> bool:
        nonlocal made
        made = 0
        with monkeypatch.context() as patch:
            for name in CALLS:
                patch.setattr(os, name, counted(getattr(os, name), moment, after))
            try:
                write(row_path(folder, 2), b"new")
            except Killed:
                return True
        return False

    def counted(inner: Callable, moment: int, after: bool) -> Callable:
        def call(*arguments: object, **keywords: object) -> object:
            nonlocal made
            made += 1
            if made == moment and not after:
                raise Killed
            result = inner(*arguments, **keywords)
            if made == moment:
                raise Killed
            return result

        return call

    tried = 0
    for moment in range(1, 100):
        for after in (False, True):
            folder = tmp_path / f"{moment}{after}"
            write(row_path(folder, 1), b"first")
            write(row_path(folder, 2), b"old")
            killed = killed_at(moment, after)
            tried += killed
            assert torn(row_path(folder, 1)) is None
            if row_path(folder, 2).exists() and torn(row_path(folder, 2)) is None:
                assert (row_path(folder, 2) / "state").read_bytes() in (b"old", b"new")
            assert latest_row(folder, 2) >= 1
            write(row_path(folder, 2), b"again")
            drop_older(folder, 2)
            assert (row_path(folder, 2) / "state").read_bytes() == b"again" and latest_row(folder, 2) == 2
            assert sorted(path.name for path in folder.iterdir()) == ["row-1", "row-2"]
        if not killed:
            break
    assert tried >= 16  # 3 files and 2 folders flushed, 1 rename, 1 folder made, and the old one's files unlinked


def test_a_full_disk_is_one_line_and_leaves_the_older_ones(tmp_path: Path) -> None:
    def full(file: Path) -> None:
        file.write_bytes(b"part")
        raise OSError(errno.ENOSPC, "No space left on device")

    write(row_path(tmp_path, 1))
    with pytest.raises(UsageError, match="No space left on device; what was finished before is intact") as error:
        write_checkpoint(row_path(tmp_path, 2), {"state": full})
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["row-1"] and latest_row(tmp_path, 2) == 1


def test_the_last_two_rows_and_the_present_tasks_steps_are_kept(tmp_path: Path) -> None:
    for row in range(1, 5):
        write(row_path(tmp_path, row))
        write(step_path(tmp_path, row - 1, 7))
    (tmp_path / ".row-9.tmp").mkdir()
    write(step_path(tmp_path, 4, 3))
    drop_older(tmp_path, 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["row-3", "row-4", "row-4-step-3"]
    assert steps_of(tmp_path, 4) == [3] and steps_of(tmp_path, 3) == []
    write(step_path(tmp_path, 3, 5))
    drop_newer(tmp_path, 3)  # row 4 was torn, say
    assert sorted(path.name for path in tmp_path.iterdir()) == ["row-3", "row-3-step-5"]


def test_steps_are_numbers_and_row_1_is_not_row_10(tmp_path: Path) -> None:
    for row, step in ((1, 9), (1, 10), (10, 11)):
        write(step_path(tmp_path, row, step))
    assert steps_of(tmp_path, 1) == [9, 10] and steps_of(tmp_path, 10) == [11]
    assert latest_step(tmp_path, 1) == step_path(tmp_path, 1, 10)


def test_a_manifest_lists_every_file(tmp_path: Path) -> None:
    write(row_path(tmp_path, 1))
    listed = json.loads((row_path(tmp_path, 1) / MANIFEST).read_text())["files"]
    assert listed.keys() | {MANIFEST} == {path.name for path in row_path(tmp_path, 1).iterdir()}
    assert listed["state"]["bytes"] == 700 and len(listed["state"]["sha256"]) == 64


def test_intervals() -> None:
    assert (Interval("50 steps").steps, Interval("50 steps").seconds) == (50, None)
    assert Interval("1 step").steps == 1 and Interval("90 seconds").seconds == 90
    assert Interval("10 minutes").seconds == 600 and Interval("0.5 hours").seconds == 1800
    assert (Interval("never").steps, Interval("never").seconds) == (None, None)
    for text in ("", "10", "0 steps", "-1 steps", "2.5 steps", "10 days", "nan minutes", "often"):
        with pytest.raises(UsageError, match="checkpoint_every = "):
            Interval(text)
