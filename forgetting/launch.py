"""Launching runs: in this process, or in several local ones."""

from __future__ import annotations

import math
import multiprocessing
import os
import threading
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.queues import Queue
from pathlib import Path
from queue import Empty
from typing import TYPE_CHECKING, Any

from forgetting import interruption
from forgetting.checkpoint import EVERY
from forgetting.config import RunConfig
from forgetting.errors import UsageError
from forgetting.launchers.devices import shares, visible_gpus
from forgetting.results import ResultStore

if TYPE_CHECKING:
    from forgetting.run import Progress

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


def _begin_worker(events: Queue[tuple[str, float, str]], threads: int, gpus: Queue[str] | None) -> None:
    global _events
    _events = events
    interruption.begin_worker()
    _end_with_parent()
    if gpus is not None:  # before torch is imported: it reads the variable once
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus.get()
    import torch

    torch.set_num_threads(threads)


def _report(run_id: str, share: float, doing: str) -> None:
    assert _events is not None
    _events.put((run_id, share, doing))


def _run_in_worker(run: dict[str, Any], folder: str, wandb_project: str | None, checkpoint_every: str) -> None:
    from forgetting.run import run_sequence
    from forgetting.tracking import Tracker

    store, tracker = ResultStore(folder), Tracker(wandb_project, folder)
    with interruption.released():
        run_sequence(RunConfig(**run), store, progress=_report, tracker=tracker, checkpoint_every=checkpoint_every)


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
        workers: Processes, each with an equal part of the cores and of the GPUs; never more than there are runs, nor,
            where there are GPUs, more than those.
        progress: Called in this process.
        wandb_project: Log there too.
        hours: No run is begun after so many, but for one that a pool was already given; what has begun is finished.
        checkpoint_every: How often a task's training is saved, see :class:`forgetting.checkpoint.Interval`.

    Raises:
        Interrupted: on a signal, once every process has finished its step and saved.
        UsageError: if a worker was killed (out of memory, say); what it was doing can be resumed.
    """
    report: Progress = progress or (lambda run_id, share, doing: None)
    workers = min(workers, len(runs))
    gpus = visible_gpus() if workers > 1 else []
    workers = min(workers, len(gpus) or workers)
    deadline = math.inf if hours is None else time.monotonic() + 3600 * hours
    if workers <= 1:
        from forgetting.run import run_sequence
        from forgetting.tracking import Tracker

        for run, store in runs:
            if time.monotonic() >= deadline:
                return
            tracker = Tracker(wandb_project, str(store.folder))
            run_sequence(run, store, progress=report, tracker=tracker, checkpoint_every=checkpoint_every)
        return
    if time.monotonic() >= deadline:
        return
    context = multiprocessing.get_context("spawn")  # a forked torch with threads can deadlock
    events: Queue[tuple[str, float, str]] = context.Queue()
    threads = max(1, _cores() // workers)
    gpu_shares: Queue[str] | None = None
    if gpus:
        from forgetting.run import release

        release()  # the plan's model is on a GPU that a worker now has for itself
        gpu_shares = context.Queue()
        for share in shares(gpus, workers):
            gpu_shares.put(share)
    pool = ProcessPoolExecutor(
        workers, mp_context=context, initializer=_begin_worker, initargs=(events, threads, gpu_shares)
    )
    try:
        with interruption.blocked():
            waiting: set[Future[None]] = {
                pool.submit(
                    _run_in_worker,
                    run.model_dump(mode="json"),
                    str(Path(store.folder).absolute()),
                    wandb_project,
                    checkpoint_every,
                )
                for run, store in runs
            }
        told = False
        with interruption.held():
            while waiting:
                if interruption.requested() and not told:
                    told = True
                    for process in list(getattr(pool, "_processes", {}).values()):
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
    except BrokenProcessPool:
        interruption.check()  # a worker that did not end in time, say
        folders = " ".join(sorted({str(store.folder) for _, store in runs}))
        raise UsageError(
            f"study {folders}: a worker process was killed (out of memory?); finished rows are stored, "
            "continue with `forgetting resume`, or the same command"
        ) from None
    except BaseException:
        for process in list(getattr(pool, "_processes", {}).values()):
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _drain(events: Queue[tuple[str, float, str]], report: Progress) -> None:
    while True:
        try:
            report(*events.get_nowait())
        except Empty:
            return
