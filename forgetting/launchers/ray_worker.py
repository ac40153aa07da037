"""What a Ray worker does: a run, in the study's folder where it sees it, else in one of its own machine."""

from __future__ import annotations

import hashlib
import math
import os
import platform
import shutil
import tempfile
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forgetting import interruption
from forgetting.config import RunConfig
from forgetting.errors import UsageError
from forgetting.results import Items, ResultStore, RunRecord, write_atomically

if TYPE_CHECKING:
    from forgetting.tracking import Tracker


class Inbox:
    """An actor beside the driver: what workers send, until the driver takes it."""

    def __init__(self) -> None:
        self._messages: list[tuple[Any, ...]] = []

    def put(self, message: tuple[Any, ...]) -> None:
        """Leave a message: (number of the job, attempt, kind, ...)."""
        self._messages.append(message)

    def take(self) -> list[tuple[Any, ...]]:
        """Return what came since the last time, in its order."""
        taken, self._messages = self._messages, []
        return taken


@dataclass(frozen=True)
class Job:
    """What a worker is told of a run.

    Attributes:
        number: Its place among the launcher's runs.
        token: Of the launch; see :func:`mark_of`.
        work: Name of the folder of a worker that does not, the same at the study's next launch.
        begun: Whether the driver has a record of the run.
        directory: Where relative paths start.
    """

    number: int
    run: dict[str, Any]
    folder: str
    token: str
    work: str
    begun: bool
    cpus: int
    directory: str
    wandb_project: str | None
    checkpoint_every: str


class _SendingStore(ResultStore):
    """A store on a machine that does not see the study's: what is written here is sent to the driver too."""

    def __init__(self, folder: Path, send: Any) -> None:
        super().__init__(folder)
        self._send = send

    def save(self, record: RunRecord, items: Items | None = None) -> None:
        """Write, and return once the driver's inbox has it."""
        super().save(record, items)
        self._send(("record", record.model_dump_json(), items), wait=True)


def mark_of(folder: Path, token: str) -> Path:
    """Return the file that tells a worker that it sees the driver's disk."""
    return folder / f".ray-{token}"


def work_name(store: ResultStore) -> str:
    """Of a study's folder on machines that do not see it: of this machine, path and configuration."""
    name = hashlib.sha256(f"{platform.node()}:{store.folder.absolute()}\n".encode())
    name.update(store.config_path.read_bytes())
    return name.hexdigest()[:16]


def _work_root() -> Path:
    """The folder of this machine in which runs work; nobody else can put anything into it.

    Raises:
        UsageError: if another user made it.
    """
    root = Path(tempfile.gettempdir()) / f"forgetting-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    found = root.lstat()
    if root.is_symlink() or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise UsageError(f"folder {str(root)!r}: on a Ray worker's machine, others can write there; delete it")
    return root


def sweep(names: list[str]) -> None:
    """Delete what is left of studies on a worker's machine."""
    for name in names:
        shutil.rmtree(_work_root() / name, ignore_errors=True)


def _forget(store: ResultStore, run_id: str) -> None:
    """Delete all of a run."""
    for path in (store.record_path(run_id), store.items_path(run_id)):
        path.unlink(missing_ok=True)
    store.drop_checkpoint(run_id)


def work(job: Job, cache: dict[str, bytes], inbox: Any) -> None:
    """Do a run, in a worker; ``cache`` holds the files of the study's cache, by name.

    Told to stop, it finishes its step and saves. The driver tells it with SIGINT; SIGTERM comes from its own machine,
    and it ends as if it had died, for Ray to begin it again elsewhere.
    """
    with interruption.graceful():
        try:
            _attempt(job, cache, inbox)
        except KeyboardInterrupt:  # Interrupted, or what Ray makes of it in a call of its own
            if interruption.requested() == "SIGTERM":
                os._exit(1)
            raise


def _attempt(job: Job, cache: dict[str, bytes], inbox: Any) -> None:
    import ray
    import torch

    from forgetting.run import run_sequence

    attempt = uuid.uuid4().hex

    def send(message: tuple[Any, ...], wait: bool = False) -> None:
        sent = inbox.put.remote((job.number, attempt, *message))
        if wait:
            ray.get(sent)

    last_sent = -math.inf

    def progress(run_id: str, share: float, doing: str) -> None:
        nonlocal last_sent
        ended = doing.endswith((", done", "finished", "failed"))
        if ended or time.monotonic() - last_sent > 0.5:
            send(("progress", share, doing), wait=ended)  # else the driver may leave before the last one comes
            last_sent = time.monotonic()

    send(("begun",))
    torch.set_num_threads(job.cpus)
    if Path(job.directory).is_dir():
        os.chdir(job.directory)
    folder = Path(job.folder)
    run = RunConfig(**job.run)
    if mark_of(folder, job.token).exists():
        store, tracker = ResultStore(folder), _tracker(job, folder)
        run_sequence(run, store, progress=progress, tracker=tracker, checkpoint_every=job.checkpoint_every)
        return
    folder = _work_root() / job.work / folder.name
    for file, content in cache.items():
        path = folder / "cache" / file
        if not path.exists() or path.read_bytes() != content:
            write_atomically(path, content)
    store, tracker = _SendingStore(folder, send), _tracker(job, folder)
    ours = folder / f".{run.run_id}.{job.token}"
    if not job.begun and not ours.exists():  # of an earlier launch, whose record the user has deleted since
        _forget(store, run.run_id)
    ours.parent.mkdir(parents=True, exist_ok=True)
    ours.touch()
    record = run_sequence(run, store, progress=progress, tracker=tracker, checkpoint_every=job.checkpoint_every)
    # It may have ended in an attempt that died before it said so.
    send(("record", record.model_dump_json(), store.load_items(record.run_id)), wait=True)
    _forget(store, run.run_id)


def _tracker(job: Job, folder: Path) -> Tracker:
    from forgetting.tracking import Tracker

    return Tracker(job.wandb_project, str(folder))
