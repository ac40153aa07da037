"""One launcher at a time: the second is refused and told of the first; what a dead one left is taken over."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from forgetting.errors import UsageError
from forgetting.lock import GUARD, NAME, StudyLock, _start_of


def leave(folder: Path, **changes: object) -> None:
    """A lock as this process would hold it, but for the changes."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "start": _start_of(os.getpid()),
        "since": "2026-01-01 00:00:00",
        "token": "another",
        "beat": 0.02,
        "beats": 7,
    }
    (folder / NAME).write_text(json.dumps(content | changes))


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_second_holder_is_refused_in_one_line_that_names_the_first(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    with StudyLock(folder), StudyLock(tmp_path / "other"):
        for attempt in (StudyLock(folder).check, StudyLock(folder).__enter__):
            with pytest.raises(UsageError) as error:
                attempt()
            message = str(error.value)
            assert str(folder) in message and f"process {os.getpid()} on {socket.gethostname()}" in message
            assert "\n" not in message
        assert [path.name for path in folder.iterdir()] == [NAME]
    assert not folder.exists()  # nothing was put into it


def test_it_is_free_again_afterwards_and_after_an_error(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(RuntimeError, match="within"), StudyLock(tmp_path):
            raise RuntimeError("within")
    assert not list(tmp_path.iterdir())


def test_a_dead_holder_on_this_host_is_taken_over(tmp_path: Path) -> None:
    leave(tmp_path, pid=dead_process())
    with StudyLock(tmp_path):
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()
        assert [path.name for path in tmp_path.iterdir()] == [NAME]
    leave(tmp_path, start="another process of the same id")
    with StudyLock(tmp_path):
        pass


def test_a_holder_on_another_host_is_alive_while_it_beats(tmp_path: Path) -> None:
    over = threading.Event()

    def beat() -> None:
        beats = 0
        while not over.is_set():
            beats += 1
            temporary = tmp_path / "beat"
            leave(tmp_path / "elsewhere", host="another-host", beats=beats)
            os.replace(tmp_path / "elsewhere" / NAME, temporary)
            os.replace(temporary, tmp_path / NAME)
            time.sleep(0.01)

    thread = threading.Thread(target=beat)
    leave(tmp_path, host="another-host")
    thread.start()
    try:
        with pytest.raises(UsageError, match="process [0-9]+ on another-host works on it since 2026"):
            StudyLock(tmp_path).check()
    finally:
        over.set()
        thread.join()
    with StudyLock(tmp_path):  # it beats no more
        assert json.loads((tmp_path / NAME).read_text())["host"] == socket.gethostname()


def test_clocks_are_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that jumps by years neither frees a lock nor keeps it."""
    with StudyLock(tmp_path):
        for moment in (0.0, 4e9):
            monkeypatch.setattr(time, "time", lambda moment=moment: moment)
            os.utime(tmp_path / NAME, (moment, moment))
            with pytest.raises(UsageError, match="works on it"):
                StudyLock(tmp_path).check()


def test_of_several_that_find_a_dead_holder_one_takes_over(tmp_path: Path) -> None:
    for _ in range(20):
        leave(tmp_path, start="dead")
        held, refused, gate = [], [], threading.Barrier(4)

        def attempt(held: list = held, refused: list = refused, gate: threading.Barrier = gate) -> None:
            lock = StudyLock(tmp_path)
            gate.wait()
            try:
                lock._take()
                held.append(lock)
            except UsageError:
                refused.append(lock)

        threads = [threading.Thread(target=attempt) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(held) == 1 and len(refused) == 3
        assert json.loads((tmp_path / NAME).read_text())["token"] == held[0].token
        assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_on_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    with StudyLock(tmp_path), pytest.raises(UsageError, match="works on it"):
        StudyLock(tmp_path).check()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_who_was_taken_for_dead_ends_instead_of_writing_beside_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()

    def end_thread(code: int) -> None:
        assert code == 2
        ended.set()
        raise SystemExit

    monkeypatch.setattr(os, "_exit", end_thread)
    with StudyLock(tmp_path, beat=0.01) as lock:
        leave(tmp_path)
        assert ended.wait(10)
        lock._over.set()
    assert json.loads((tmp_path / NAME).read_text())["token"] == "another"


def test_a_lock_that_was_deleted_is_written_again(tmp_path: Path) -> None:
    with StudyLock(tmp_path, beat=0.01) as lock:
        for _ in range(3):
            lock.path.unlink(missing_ok=True)
            while not lock.path.exists():
                time.sleep(0.005)
            assert lock._mine()
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(("own", "others"), [("a", None), (None, "a")])
def test_a_runs_holder_and_the_whole_studys_tell_each_other_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str | None, others: str | None
) -> None:
    """One was taken for dead by the other, whose lock has another name."""
    ended = threading.Event()

    def end_thread(code: int) -> None:
        ended.set()
        raise SystemExit

    monkeypatch.setattr(os, "_exit", end_thread)
    with StudyLock(tmp_path, run=own, beat=0.01) as lock:
        leave(tmp_path / "elsewhere")
        os.replace(tmp_path / "elsewhere" / NAME, tmp_path / (NAME if others is None else f"{NAME}-{others}"))
        lock.path.unlink(missing_ok=True)
        assert ended.wait(10)
    assert not lock.path.exists()


def test_what_killed_holders_left_is_deleted_by_who_has_the_whole_study(tmp_path: Path) -> None:
    left = tmp_path / f"{NAME}.0123.tmp"
    left.touch()
    (tmp_path / GUARD).touch()
    with StudyLock(tmp_path, run="a"):
        assert left.exists()  # another run's holder may be writing it
    with StudyLock(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_a_lock_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    for content in ("", "{", "[1]", "3", "{}", '{"pid": 1}'):
        (tmp_path / NAME).write_text(content)
        with pytest.raises(UsageError, match="cannot be read; delete it"):
            StudyLock(tmp_path).check()


def test_a_file_in_the_folders_place_holds_nothing_and_cannot_be_held(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    StudyLock(tmp_path / "file").check()
    with pytest.raises(UsageError, match="cannot be written"):
        StudyLock(tmp_path / "file").__enter__()


def test_runs_of_a_study_are_done_beside_each_other_and_never_beside_the_whole(tmp_path: Path) -> None:
    """As the tasks of an array do them; what a dead one left is taken away by the next who does the whole."""
    with StudyLock(tmp_path, run="a"), StudyLock(tmp_path, run="b"):
        for second in (StudyLock(tmp_path, run="a"), StudyLock(tmp_path)):
            for attempt in (second.check, second.__enter__):
                with pytest.raises(UsageError, match=f"process {os.getpid()}"):
                    attempt()
    with StudyLock(tmp_path), pytest.raises(UsageError, match=f"process {os.getpid()}"):
        StudyLock(tmp_path, run="a").check()
    leave(tmp_path, pid=dead_process())
    (tmp_path / NAME).rename(tmp_path / f"{NAME}-a")
    with StudyLock(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [NAME]
