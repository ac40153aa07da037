"""Launching runs: in this process, or in several local ones."""

from __future__ import annotations

import math
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from pathlib import Path
from queue import Empty
from typing import TYPE_CHECKING, Any

from forgetting import interruption
from forgetting.checkpoint import EVERY
from forgetting.config import RunConfig
from forgetting.distributed import begin, is_main, total, world_size
from forgetting.errors import UsageError
from forgetting.launchers.devices import shares, visible_gpus
from forgetting.results import ResultStore

if TYPE_CHECKING:
    from forgetting.run import Progress

PATIENCE = 120.0
"""Seconds that the workers have to finish their step and save, once one of them has failed."""

_events: Queue[tuple[str, float, str]] | None = None


def _cores() -> int:
    """Cores that this process may use; macOS cannot tell, and has them all."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _end_with_parent() -> None:
    """A worker whose parent was killed must stop at once: a resumed study would write beside it."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def threads_of(share: int, cores: int, begun: int | None) -> int:
    """Threads that a run is computed with, on which its last bits depend.

    Args:
        share: Of each worker.
        cores: That this process may use.
        begun: With which the run was begun, if it was; that number holds where there are as many cores.
    """
    return begun if begun is not None and begun <= cores else share


@contextmanager
def _threads(run: RunConfig, store: ResultStore, share: int | None) -> Iterator[None]:
    """Within, torch has the run's threads; ``share`` is this worker's, or ``None`` for what torch has."""
    import torch

    before = torch.get_num_threads()
    record = store.load(run.run_id)
    begun = record.provenance.get("hardware", {}).get("threads") if record is not None else None
    threads = threads_of(share or before, _cores(), begun)
    if share is None and threads == before:  # to set even the same number would have MKL choose other threads
        yield
        return
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _begin_worker(events: Queue[tuple[str, float, str]], gpus: Queue[str] | None) -> None:
    global _events
    _events = events
    interruption.begin_worker()
    _end_with_parent()
    if gpus is not None:  # before torch is imported: it reads the variable once
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus.get()


def _report(run_id: str, share: float, doing: str) -> None:
    assert _events is not None
    _events.put((run_id, share, doing))


def _run_in_worker(
    content: dict[str, Any], folder: str, threads: int, wandb_project: str | None, checkpoint_every: str
) -> None:
    from forgetting.run import run_sequence
    from forgetting.tracking import Tracker

    run, store, tracker = RunConfig(**content), ResultStore(folder), Tracker(wandb_project, folder)
    with interruption.released(), _threads(run, store, threads):
        run_sequence(run, store, progress=_report, tracker=tracker, checkpoint_every=checkpoint_every)


def _time_is_up(deadline: float) -> bool:
    """Whether the deadline passed; of several processes that train one model, by the clock of the first."""
    here = time.monotonic() >= deadline
    if world_size() == 1 or deadline == math.inf:
        return here
    import torch

    begin()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return bool(int(total(torch.tensor(int(here and is_main()), device=device))))


def _wait_for_end(processes: list[BaseProcess], *, told: bool) -> None:
    """Wait until processes have ended, and kill those that do not in time: none may write once the lock is free.

    Their pool is not asked: while one of its processes goes on, a broken pool holds the lock that its ``shutdown``
    needs.

    Args:
        processes: Of a pool.
        told: Tell them to end, again and again: one that waits for work ends at a second signal alone.
    """
    alive = {process.sentinel: process for process in processes}
    deadline = time.monotonic() + PATIENCE
    while alive and time.monotonic() < deadline:
        for process in alive.values() if told else ():
            process.terminate()
        for sentinel in connection.wait(list(alive), timeout=0.5):
            del alive[sentinel]  # type: ignore[arg-type]
    for process in alive.values():
        process.kill()
    while alive:
        for sentinel in connection.wait(list(alive)):
            del alive[sentinel]  # type: ignore[arg-type]


def launch(
    runs: list[tuple[RunConfig, ResultStore]],
    *,
    workers: int = 1,
    progress: Progress | None = None,
    wandb_project: str | None = None,
    hours: float | None = None,
    checkpoint_every: str = EVERY,
) -> None:
    """Run all, in order; what is finished is in the store whatever happens to the rest.

    Args:
        runs: What to run, and where its results go.
        workers: Processes, each with an equal part of the cores and of the GPUs; where there are GPUs, never more than
            those. Where fewer runs are left, each has the same part of the cores: its numbers depend on that.
        progress: Called in this process.
        wandb_project: Log there too.
        hours: No run is begun after so many, but for one that a pool was already given; what has begun is finished.
        checkpoint_every: How often a task's training is saved, see :class:`forgetting.checkpoint.Interval`.

    Raises:
        Interrupted: on a signal, once every process has finished its step and saved.
        UsageError: if a worker was killed (out of memory, say); what it was doing can be resumed.
    """
    report: Progress = progress or (lambda run_id, share, doing: None)
    gpus = visible_gpus() if workers > 1 else []
    workers = min(workers, len(gpus) or workers)
    threads = max(1, _cores() // workers) if workers > 1 else None
    workers = min(workers, len(runs))
    deadline = math.inf if hours is None else time.monotonic() + 3600 * hours
    if workers <= 1 or threads is None:
        from forgetting.run import run_sequence
        from forgetting.tracking import Tracker

        for run, store in runs:
            if _time_is_up(deadline):
                return
            tracker = Tracker(wandb_project, str(store.folder))
            with _threads(run, store, threads):
                run_sequence(run, store, progress=report, tracker=tracker, checkpoint_every=checkpoint_every)
        return
    if time.monotonic() >= deadline:
        return
    context = multiprocessing.get_context("spawn")  # a forked torch with threads can deadlock
    events: Queue[tuple[str, float, str]] = context.Queue()
    gpu_shares: Queue[str] | None = None
    if gpus:
        from forgetting.run import release

        release()  # the plan's model is on a GPU that a worker now has for itself
        gpu_shares = context.Queue()
        for share in shares(gpus, workers):
            gpu_shares.put(share)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker, initargs=(events, gpu_shares))
    processes: list[BaseProcess] = []
    failed = True
    try:
        with interruption.blocked():  # in a process that is begun here, until it handles them
            waiting: set[Future[None]] = {
                pool.submit(
                    _run_in_worker,
                    run.model_dump(mode="json"),
                    str(Path(store.folder).absolute()),
                    threads,
                    wandb_project,
                    checkpoint_every,
                )
                for run, store in runs
            }
            processes = list(pool._processes.values())  # none is begun later
        told = False
        with interruption.held():
            while waiting:
                if interruption.requested() and not told:
                    told = True
                    for process in processes:
                        process.terminate()  # SIGTERM: it finishes its step, and saves
                if told or time.monotonic() >= deadline:
                    waiting = {future for future in waiting if not future.cancel()}
                done, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
                _drain(events, report)
                for future in done:
                    try:
                        future.result()
                    except interruption.Interrupted as signalled:
                        interruption.request(*signalled.args)  # a worker alone was told: all end
        failed = False
    except BrokenProcessPool:
        interruption.check()  # a worker that did not end in time, say
        folders = " ".join(sorted({str(store.folder) for _, store in runs}))
        raise UsageError(
            f"study {folders}: a worker process was killed (out of memory?); finished rows are stored, "
            "continue with `forgetting resume`, or the same command"
        ) from None
    finally:
        with interruption.noted():
            processes = processes or list(pool._processes.values())
            if failed:
                _wait_for_end(processes, told=True)
            pool.shutdown(wait=False, cancel_futures=True)
            _wait_for_end(processes, told=False)
    interruption.check()


def _drain(events: Queue[tuple[str, float, str]], report: Progress) -> None:
    while True:
        try:
            report(*events.get_nowait())
        except Empty:
            return
