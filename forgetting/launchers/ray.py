"""Launching runs on a Ray cluster: a task per run with its resources, begun again where its worker died.

Where the workers see the study's folder (one machine, a network file system), a run writes there as it does in a local
process, and one that died goes on from its last finished task. Elsewhere a run works in a folder of its own machine,
its record and items come back as objects after every row, and the driver writes them into the one store; one whose
worker died, or whose study was stopped, goes on where the machine still has its checkpoint, and begins again elsewhere.
Either way the numbers are those of one process.

Every machine needs the package, and what a study names: models, data files. Text that was sampled from the base model
is sent along, since another processor could sample another one.
"""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forgetting import interruption
from forgetting.checkpoint import EVERY
from forgetting.config import RunConfig
from forgetting.errors import UsageError
from forgetting.launchers.ray_worker import Inbox, Job, mark_of, sweep, work, work_name
from forgetting.results import ResultStore, RunRecord

if TYPE_CHECKING:
    from forgetting.run import Progress

RETRIES = 3
"""How often a run is begun again whose worker died."""

GRACE_SECONDS = 300.0
"""How long workers that are told to stop have to finish their step and save; then they are killed."""

SWEEP_SECONDS = 30.0
"""How long machines have to delete what they worked in, once all is done."""


def require_ray() -> None:
    """Raise UsageError where Ray is not installed."""
    try:
        import ray  # noqa: F401
    except ImportError:
        raise UsageError("launcher 'ray': Ray is not installed; pip install 'forgetting[ray]'") from None


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
        marks = {mark_of(store.folder, token) for _, store in runs}
        try:
            self._check_room()
            for mark in marks:
                mark.touch()
            with interruption.held():  # Ray makes a plain KeyboardInterrupt of what a handler raises in its calls
                self._drive(runs, token, workers, progress, wandb_project, deadline, checkpoint_every)
        finally:
            for mark in marks:
                mark.unlink(missing_ok=True)
            if begun_here:
                ray.shutdown()

    def _check_room(self) -> None:
        """Raise UsageError where no machine could ever take a run; one that may grow is waited for, with a note."""
        import ray

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if any(node.get("CPU", 0) >= self.cpus and node.get("GPU", 0) >= self.gpus for node in nodes):
            return
        none = (
            f"--cpus-per-run {self.cpus} --gpus-per-run {self.gpus}: no machine of the Ray cluster has as many "
            f"(most cores: {max((node.get('CPU', 0) for node in nodes), default=0):g}, "
            f"most GPUs: {max((node.get('GPU', 0) for node in nodes), default=0):g})"
        )
        if self.address is None:
            raise UsageError(none)
        print(f"note: {none}; runs wait until one joins", file=sys.stderr)

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
        task: Any = ray.remote(work).options(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=self.retries)
        caches = {store.folder: ray.put(_cache(store)) for _, store in runs}
        works = {store.folder: work_name(store) for _, store in runs}
        post = _Post(runs, progress)
        submitted = ended = 0
        waiting: dict[Any, int] = {}
        try:
            while waiting or (submitted < len(runs) and time.monotonic() < deadline):
                interruption.check()
                while submitted < len(runs) and (not workers or len(waiting) < workers):
                    if time.monotonic() >= deadline:
                        break
                    run, store = runs[submitted]
                    job = Job(
                        number=submitted,
                        run=run.model_dump(mode="json"),
                        folder=str(store.folder.absolute()),
                        token=token,
                        work=works[store.folder],
                        begun=store.record_path(run.run_id).exists(),
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
                    ended += 1
            if ended == len(runs) and post.apart:
                _sweep_all(sorted(works.values()))
        except BaseException:
            _stop(list(waiting), inbox, post)
            raise
        finally:
            ray.kill(inbox)


def _stop(waiting: list[Any], inbox: Any, post: _Post) -> None:
    """Have every worker finish its step and save, and take what they still send; kill what does not end in time."""
    import ray

    for reference in waiting:
        ray.cancel(reference)
    if waiting:
        _, left = ray.wait(waiting, num_returns=len(waiting), timeout=GRACE_SECONDS)
        for reference in left:
            ray.cancel(reference, force=True)
    for message in ray.get(inbox.take.remote()):
        post.deliver(message)


def _sweep_all(names: list[str]) -> None:
    """Delete on every machine what runs worked in."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task: Any = ray.remote(sweep)
    machines = [
        task.options(
            num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(names)
        for node in ray.nodes()
        if node["Alive"]
    ]
    ray.wait(machines, num_returns=len(machines), timeout=SWEEP_SECONDS)


class _Post:
    """What the driver does with messages.

    Attributes:
        attempts: By the number of a job, its latest attempt; what an earlier one still sends is passed over.
        apart: Whether a run works in a folder of its own machine.
    """

    def __init__(self, runs: list[tuple[RunConfig, ResultStore]], progress: Progress | None) -> None:
        self.runs = runs
        self.progress: Progress = progress or (lambda run_id, share, doing: None)
        self.attempts: dict[int, str] = {}
        self.apart = False
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
            self.apart = True
            record = RunRecord.model_validate_json(content[0])
            self._check_data(record, run, store)
            stored = store.load(run.run_id)
            if stored is None or not _is_behind(record, stored):
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


def _is_behind(record: RunRecord, stored: RunRecord) -> bool:
    """Whether a run that was begun again has not yet come to where it was."""
    return stored.status != "running" or (record.status == "running" and len(record.rows) < len(stored.rows))


def _cache(store: ResultStore) -> dict[str, bytes]:
    folder = store.folder / "cache"
    return {path.name: path.read_bytes() for path in folder.glob("*") if path.is_file()} if folder.is_dir() else {}


def _connect(address: str | None) -> None:
    """Connect to a cluster, or begin one of this machine."""
    import ray

    ours = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        problem = " ".join(str(error).split())[:200]
        raise UsageError(f"--address {address}: no Ray cluster can be reached there: {problem}") from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, ours)  # Ray's own would end this process without a word to the workers


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
