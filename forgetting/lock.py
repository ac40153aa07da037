"""A lock file: one launcher at a time writes into a study's folder.

The file has the holder's host, process id and start, and a count that the holder raises every few seconds. On the
holder's own host, a holder is alive while a process of that id and start is; on another, while the count rises. Clocks
are compared nowhere: they differ between hosts, and jump.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from forgetting.errors import UsageError

NAME = ".lock"
GUARD = ".lock.guard"
BEAT = 5.0
"""Seconds between two beats; a holder on another host that misses ``MISSED`` is dead."""
MISSED = 4
KEYS = {"host", "pid", "start", "since", "token", "beat", "beats"}
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)
"""Of a file system without hard links."""


def _start_of(pid: int) -> str | None:
    """What tells a process from a later one of the same id; ``None`` where there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        return stat.rsplit(")", 1)[1].split()[19]  # clock ticks since boot: no wall clock is in it
    except FileNotFoundError:
        if sys.platform == "linux":
            return None
    import psutil

    try:
        return str(psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return None


def _zombie(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    return False


def _is_at(descriptor: int, path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Of several processes that look at a dead holder's lock, one after the other does; the kernel frees a dead one's.

    A file is locked, not the folder: NFS locks what is opened for writing alone. On a file system without such locks
    two could take over in the same instant; the next beats then end one of them or both, see ``StudyLock._keep``.
    """
    path = folder / GUARD
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if not _is_at(descriptor, path):
                continue  # the one before deleted it: others lock a new one by now
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return
        finally:
            os.close(descriptor)


class StudyLock:
    """Held within a ``with``; the folder is made, and removed again where nothing was put into it.

    Args:
        folder: Of the study.
        run: The id of the one run that will be done: other processes may do others of the study, none all of it.
        beat: Seconds between two beats.

    Raises:
        UsageError: on entry, in one line that names the holder, if another process holds it.
    """

    def __init__(self, folder: Path | str, *, run: str | None = None, beat: float = BEAT) -> None:
        self.folder, self.beat = Path(folder), beat
        self.path = self.folder / (NAME if run is None else f"{NAME}-{run}")
        self.token = uuid.uuid4().hex
        self._beats = 0
        self._made = False
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def check(self) -> None:
        """Raise UsageError if another process holds the folder; nothing is written."""
        for path in self._excluding():
            holder = self._read(path)
            if holder is not None and self._alive(holder, path):
                raise UsageError(
                    f"study {str(self.folder)!r}: process {holder['pid']} on {holder['host']} works on it since "
                    f"{holder['since']}; wait for it or stop it, or give another --output"
                )

    def _excluding(self) -> list[Path]:
        """Locks that this one cannot be held beside: a run's is beside those of other runs."""
        whole = self.folder / NAME
        return [self.path, whole] if self.path != whole else [whole, *self.folder.glob(f"{NAME}-*")]

    def __enter__(self) -> StudyLock:
        self._made = not self.folder.exists()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._take()
        except OSError as error:
            if self._made:
                with suppress(OSError):
                    self.folder.rmdir()
            raise UsageError(
                f"output {str(self.folder)!r}: cannot be written: {error.strerror or error}; give a writable folder "
                "with free space"
            ) from None
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        assert self._thread is not None
        self._thread.join()
        with suppress(OSError, UsageError):
            if self._mine():
                self.path.unlink()
            if self._made:
                self.folder.rmdir()  # fails where anything was put into it

    def _take(self) -> None:
        with _one_at_a_time(self.folder):
            while True:
                self.check()
                if self.path.name == NAME:  # a run's lock is beside others, which may write now
                    for path in self.folder.glob(f"{NAME}.*.tmp"):
                        path.unlink(missing_ok=True)
                temporary = self._write()
                try:
                    for path in self._excluding():
                        path.unlink(missing_ok=True)  # its holder is dead
                    os.link(temporary, self.path)  # fails where there is one, also over NFS
                    return
                except FileExistsError:
                    continue
                except OSError as error:
                    if error.errno not in NO_LINKS:
                        raise
                    os.replace(temporary, self.path)
                    return
                finally:
                    temporary.unlink(missing_ok=True)

    def _write(self) -> Path:
        """Write what the lock says, to a file of another name."""
        temporary = self.path.with_name(f"{NAME}.{self.token}.tmp")
        content = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "start": _start_of(os.getpid()),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
            "token": self.token,
            "beat": self.beat,
            "beats": self._beats,
        }
        try:
            with open(temporary, "w") as file:
                json.dump(content, file)
                file.flush()
                os.fsync(file.fileno())
        except OSError:  # a full disk: nothing is left behind
            temporary.unlink(missing_ok=True)
            raise
        return temporary

    def _read(self, path: Path | None = None) -> dict[str, Any] | None:
        path = path or self.path
        try:
            content = json.loads(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):  # what stands in the folder's place is said elsewhere
            return None
        except (OSError, ValueError):
            content = None
        if not isinstance(content, dict) or not content.keys() >= KEYS:
            raise UsageError(f"lock {str(path)!r}: cannot be read; delete it if no process works there")
        return content

    def _mine(self) -> bool:
        holder = self._read()
        return holder is not None and holder["token"] == self.token

    def _alive(self, holder: dict[str, Any], path: Path) -> bool:
        if holder["host"] == socket.gethostname():
            start = _start_of(holder["pid"])
            return start is not None and start == holder["start"] and not _zombie(holder["pid"])
        for _ in range(MISSED):
            time.sleep(holder["beat"])
            now = self._read(path)
            if now is None:
                return False
            if (now["token"], now["beats"]) != (holder["token"], holder["beats"]):
                return True
        return False

    def _taken_over(self) -> bool:
        """Whether there is another's lock that this one cannot be held beside; those of dead ones were deleted."""
        holders = [self._read(path) for path in self._excluding()]
        return any(holder is not None and holder["token"] != self.token for holder in holders)

    def _keep(self) -> None:
        """Beat; a process whose lock was taken for dead (it was suspended, say) must not write beside the other.

        A lock that was deleted, and that nobody took, is written again.
        """
        while not self._over.wait(self.beat):
            try:
                if self._taken_over():
                    os.write(
                        2, f"error: study {str(self.folder)!r}: another process took over; this one ends\n".encode()
                    )
                    os._exit(2)
                # A beat must not wait for who looks whether there are any.
                with nullcontext() if self.path.exists() else _one_at_a_time(self.folder):
                    if not self._taken_over():
                        self._beats += 1
                        os.replace(self._write(), self.path)
            except (OSError, UsageError):  # a full disk: the next beat may do better
                continue
