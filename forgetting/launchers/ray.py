"""Launching runs on a Ray cluster: a task per run with its resources, begun again where its worker died.

Where the workers see the study's folder (one machine, a network file system), a run writes there as it does in a local
process, and one that died goes on from its last finished task. Elsewhere a run works in a folder of its own machine,
its record and items come back as objects after every row, and the driver writes them into the one store; one whose
worker died goes on where the machine still has its checkpoint, and begins again elsewhere. Either way the numbers are
those of one process.

Every machine needs the package, and what a study names: models, data files. Text that was sampled from the base model
is sent along, since another processor could sample another one.
"""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forgetting.checkpoint import EVERY
from forgetting.config import RunConfig
from forgetting.errors import UsageError
from forgetting.results import Items, ResultStore, RunRecord, write_atomically

if TYPE_CHECKING:
    from forgetting.run import Progress
    from forgetting.tracking import Tracker

RETRIES = 3
"""How often a run is begun again whose worker died."""


def require_ray() -> None:
    """Raise UsageError where Ray is not installed."""
    try:
        import ray  # noqa: F401
    except ImportError:
        raise UsageError("launcher 'ray': Ray is not installed; pip install 'forgetting[ray]'") from None


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
        token: Of the launcher; a file of this name in ``folder`` tells a worker that it sees the driver's disk.
        directory: Where relative paths start.
    """

    number: int
    run: dict[str, Any]
    folder: str
    token: str
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


def _mark(folder: Path, token: str) -> Path:
    return folder / f".ray-{token}"


def _work(job: Job, cache: dict[str, bytes], inbox: Any) -> None:
    """Do a run, in a worker; ``cache`` holds the files of the study's cache, by name."""
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
        if time.monotonic() - last_sent > 0.5 or doing.endswith((", done", "finished", "failed")):
            send(("progress", share, doing))
            last_sent = time.monotonic()

    send(("begun",))
    torch.set_num_threads(job.cpus)
    if Path(job.directory).is_dir():
        os.chdir(job.directory)
    folder = Path(job.folder)
    run = RunConfig(**job.run)
    if _mark(folder, job.token).exists():
        store, tracker = ResultStore(folder), _tracker(job, folder)
        run_sequence(run, store, progress=progress, tracker=tracker, checkpoint_every=job.checkpoint_every)
        return
    name = hashlib.sha256(job.folder.encode()).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()) / f"forgetting-{job.token}" / name / folder.name
    for file, content in cache.items():
        if not (folder / "cache" / file).exists():
            write_atomically(folder / "cache" / file, content)
    store, tracker = _SendingStore(folder, send), _tracker(job, folder)
    record = run_sequence(run, store, progress=progress, tracker=tracker, checkpoint_every=job.checkpoint_every)
    for path in (store.record_path(record.run_id), store.items_path(record.run_id)):
        path.unlink(missing_ok=True)


def _tracker(job: Job, folder: Path) -> Tracker:
    from forgetting.tracking import Tracker

    return Tracker(job.wandb_project, str(folder))


@dataclass(frozen=True)
class RayLauncher:
    """A :class:`forgetting.launchers.Launch` on a Ray cluster.

    Attributes:
        cpus, gpus: Of each run; ``cpus`` is its number of threads too.
        address: Of the cluster (``auto``, ``host:port``); where not given, the one this process is connected to, or a
            new one of this machine, which ends with the launch.
        retries: How often a run is begun again whose worker died.
    """

    cpus: int = 1
    gpus: int = 0
    address: str | None = None
    retries: int = RETRIES

    def __call__(
        self,
        runs: list[tuple[RunConfig, ResultStore]],
        *,
        workers: int = 0,
        progress: Progress | None = None,
        wandb_project: str | None = None,
        hours: float | None = None,
        checkpoint_every: str = EVERY,
    ) -> None:
        """Run all.

        Args:
            runs: What to run, and where its results go.
            workers: Runs at once, at most; 0: as many as the cluster has room for.
            progress: Called in this process.
            wandb_project: Log there too; offline logs stay on the worker's machine.
            hours: After so many, what has not begun is not begun; what has begun is finished.
            checkpoint_every: How often a task's training is saved, see :class:`forgetting.checkpoint.Interval`.

        Raises:
            UsageError: if the cluster cannot be reached or has no room for a run, if a run's worker died more often
                than ``retries``, or if a worker finds other data than the driver.
        """
        deadline = math.inf if hours is None else time.monotonic() + 3600 * hours
        if not runs or time.monotonic() >= deadline:
            return
        import ray

        begun_here = not ray.is_initialized()
        if begun_here:
            _connect(self.address)
        token = uuid.uuid4().hex
        marks = {_mark(store.folder, token) for _, store in runs}
        try:
            self._check_room()
            for mark in marks:
                mark.touch()
            self._drive(runs, token, workers, progress, wandb_project, deadline, checkpoint_every)
        finally:
            for mark in marks:
                mark.unlink(missing_ok=True)
            if begun_here:
                ray.shutdown()

    def _check_room(self) -> None:
        """Raise UsageError where no machine could ever take a run; a cluster that grows is not known to be one."""
        import ray

        if self.address is not None:
            return
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not any(node.get("CPU", 0) >= self.cpus and node.get("GPU", 0) >= self.gpus for node in nodes):
            raise UsageError(
                f"--cpus-per-run {self.cpus} --gpus-per-run {self.gpus}: no machine of the Ray cluster has as many "
                f"(most cores: {max(node.get('CPU', 0) for node in nodes):g}, "
                f"most GPUs: {max(node.get('GPU', 0) for node in nodes):g})"
            )

    def _drive(
        self,
        runs: list[tuple[RunConfig, ResultStore]],
        token: str,
        workers: int,
        progress: Progress | None,
        wandb_project: str | None,
        deadline: float,
        checkpoint_every: str,
    ) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor: Any = ray.remote(num_cpus=0)(Inbox)
        inbox = actor.options(scheduling_strategy=here).remote()
        task: Any = ray.remote(_work).options(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=self.retries)
        caches = {store.folder: ray.put(_cache(store)) for _, store in runs}
        post = _Post(runs, progress)
        submitted = 0
        waiting: dict[Any, int] = {}
        try:
            while waiting or (submitted < len(runs) and time.monotonic() < deadline):
                while submitted < len(runs) and (not workers or len(waiting) < workers):
                    if time.monotonic() >= deadline:
                        break
                    run, store = runs[submitted]
                    job = Job(
                        number=submitted,
                        run=run.model_dump(mode="json"),
                        folder=str(store.folder.absolute()),
                        token=token,
                        cpus=self.cpus,
                        directory=str(Path.cwd()),
                        wandb_project=wandb_project,
                        checkpoint_every=checkpoint_every,
                    )
                    waiting[task.remote(job, caches[store.folder], inbox)] = submitted
                    submitted += 1
                if time.monotonic() >= deadline:
                    for reference in [one for one, number in waiting.items() if number not in post.attempts]:
                        ray.cancel(reference)
                        del waiting[reference]
                done, _ = ray.wait(list(waiting), timeout=0.2) if waiting else ([], [])
                for message in ray.get(inbox.take.remote()):
                    post.deliver(message)
                for reference in done:
                    _collect(reference, runs[waiting.pop(reference)])
        except BaseException:
            for reference in waiting:
                ray.cancel(reference, force=True)
            raise
        finally:
            ray.kill(inbox)


class _Post:
    """What the driver does with messages.

    Attributes:
        attempts: By the number of a job, its latest attempt; what an earlier one still sends is passed over.
    """

    def __init__(self, runs: list[tuple[RunConfig, ResultStore]], progress: Progress | None) -> None:
        self.runs = runs
        self.progress: Progress = progress or (lambda run_id, share, doing: None)
        self.attempts: dict[int, str] = {}
        self._given_up: set[str] = set()
        self._digests: dict[Path, str] = {}

    def deliver(self, message: tuple[Any, ...]) -> None:
        """Show progress, store a record."""
        number, attempt, kind, *content = message
        latest = self.attempts.get(number)
        if attempt in self._given_up:
            return
        if latest is not None and latest != attempt:
            self._given_up.add(latest)
        self.attempts[number] = attempt
        run, store = self.runs[number]
        if kind == "progress":
            self.progress(run.run_id, *content)
        elif kind == "record":
            record = RunRecord.model_validate_json(content[0])
            self._check_data(record, run, store)
            store.save(record, content[1])

    def _check_data(self, record: RunRecord, run: RunConfig, store: ResultStore) -> None:
        """Raise UsageError if a worker that has its own disk read other data than the driver."""
        from forgetting.run import prepare

        if store.folder not in self._digests:
            self._digests[store.folder] = prepare(run, store).digest
        if record.provenance["sources"]["data"] != self._digests[store.folder]:
            raise UsageError(
                f"run {run.run_id!r}: the Ray worker's machine has other data than this one; "
                "give every machine the same files, or a folder that all of them see"
            )


def _cache(store: ResultStore) -> dict[str, bytes]:
    folder = store.folder / "cache"
    return {path.name: path.read_bytes() for path in folder.glob("*") if path.is_file()} if folder.is_dir() else {}


def _connect(address: str | None) -> None:
    """Connect to a cluster, or begin one of this machine."""
    import ray

    try:
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        problem = " ".join(str(error).split())[:200]
        raise UsageError(f"--address {address}: no Ray cluster can be reached there: {problem}") from None


def _collect(reference: Any, run: tuple[RunConfig, ResultStore]) -> None:
    """Raise what a run's task raised, as it was; a run that failed by itself is a record, and raises nothing."""
    import ray

    config, store = run
    try:
        ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, Exception) else error) from None
    except ray.exceptions.RayError as error:
        raise UsageError(
            f"run {config.run_id!r}: its Ray worker died too often ({type(error).__name__}; out of memory?); finished "
            f"rows are stored, continue with: forgetting resume {store.folder} --launcher ray"
        ) from None
