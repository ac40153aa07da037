"""GPUs are divided among local workers, none given twice; a launcher's options are read or refused."""

from __future__ import annotations

import os
import queue
import signal
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import nullcontext
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from forgetting import interruption
from forgetting import launch as local
from forgetting.errors import UsageError
from forgetting.interruption import EXIT_CODE
from forgetting.launchers import choose
from forgetting.launchers.devices import shares, visible_gpus
from forgetting.results import ResultStore, RunRecord
from forgetting.study import run_studies
from tests.launchers import dummies
from tests.tiny_study import tiny_study


@pytest.mark.parametrize(
    ("listed", "found"),
    [("0,1,2", ["0", "1", "2"]), ("3, GPU-5f", ["3", "GPU-5f"]), ("", []), ("-1", []), ("0,-1,2", ["0"])],
)
def test_visible_gpus_are_read_as_cuda_reads_them(
    monkeypatch: pytest.MonkeyPatch, listed: str, found: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    assert visible_gpus() == found


def test_shares_are_disjoint_whole_and_even() -> None:
    for count in range(1, 9):
        gpus = [f"GPU-{i}" for i in range(count)]
        for workers in range(1, count + 1):
            parts = [share.split(",") for share in shares(gpus, workers)]
            assert sorted(gpu for part in parts for gpu in part) == gpus
            assert max(map(len, parts)) - min(map(len, parts)) <= 1
        with pytest.raises(ValueError, match=f"workers = {count + 1}: needs 1 to {count}"):
            shares(gpus, count + 1)


def test_each_worker_sees_its_own_gpus_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    monkeypatch.setattr(local, "_events", None)
    monkeypatch.setattr(local, "_end_with_parent", lambda: None)
    monkeypatch.setattr(interruption, "begin_worker", lambda: None)  # it is for the rest of a process's life
    waiting: queue.Queue[str] = queue.Queue()
    for share in shares(visible_gpus(), 2):
        waiting.put(share)
    seen = []
    for _ in range(2):
        local._begin_worker(queue.Queue(), waiting)  # type: ignore[arg-type]
        seen.append(os.environ["CUDA_VISIBLE_DEVICES"])
    assert seen == ["4,6", "5"]


def test_one_gpu_is_never_given_to_two_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers were asked for; both runs are done here, one after the other."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    done = []
    monkeypatch.setattr("forgetting.run.run_sequence", lambda run, store, **_: done.append((run.run_id, os.getpid())))
    config = tiny_study()
    runs = [(run, ResultStore(tmp_path)) for run in config.runs()]
    local.launch(runs, workers=2)
    assert done == [(run.run_id, os.getpid()) for run in config.runs()]


@pytest.mark.parametrize(
    ("work", "message", "killed"),
    [
        (dummies.killed_beside_an_idle_one, "a worker process was killed", 1),
        (dummies.refused_beside_a_step, "no room", 0),
        (dummies.refused_beside_one_that_hangs, "no room", 1),
    ],
)
def test_no_worker_is_left_when_one_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: Callable[..., None], message: str, killed: int
) -> None:
    """Whoever holds the study's lock next writes alone. The dummies stand for runs; pool and processes are real."""
    processes: list[BaseProcess] = []
    wait_for_end = local._wait_for_end

    def seen(pool: list[BaseProcess], *, told: bool) -> None:
        processes[:] = pool
        wait_for_end(pool, told=told)

    monkeypatch.setattr(local, "_run_in_worker", work)
    monkeypatch.setattr(local, "_wait_for_end", seen)
    monkeypatch.setattr(local, "PATIENCE", 3.0 if work is dummies.refused_beside_one_that_hangs else 60.0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    runs = [(run, ResultStore(tmp_path)) for run in tiny_study().runs()]
    with pytest.raises(UsageError, match=message):
        local.launch(runs, workers=2)
    while None in (codes := [process.exitcode for process in processes]):
        time.sleep(0.01)  # the pool's thread has their codes, and will tell
    assert codes.count(-signal.SIGKILL) == killed and codes.count(EXIT_CODE) + codes.count(0) == 2 - killed
    assert (tmp_path / "saved").exists() == (work is dummies.refused_beside_a_step)


def test_threads_are_those_of_the_begun_run_where_the_machine_has_them() -> None:
    assert local.threads_of(2, 8, None) == 2
    assert [local.threads_of(2, 8, begun) for begun in (1, 4, 8, 9)] == [1, 4, 8, 2]


@pytest.mark.parametrize(("workers", "left", "expected"), [(4, 1, 2), (4, 2, 2), (1, 2, None), (16, 1, 1)])
def test_threads_do_not_depend_on_how_many_runs_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, left: int, expected: int | None
) -> None:
    shares: list[object] = []

    class Pool:
        def __init__(self, *_: object, **__: object) -> None:
            self._processes: dict[int, BaseProcess] = {}

        def submit(self, work: object, content: object, folder: object, threads: object, *_: object) -> Future[None]:
            shares.append(threads)
            done: Future[None] = Future()
            done.set_result(None)
            return done

        def shutdown(self, **_: object) -> None:
            pass

    def threads(run: object, store: object, share: object) -> nullcontext[None]:
        shares.append(share)
        return nullcontext()

    monkeypatch.setattr(local, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(local, "_threads", threads)
    monkeypatch.setattr(local, "_cores", lambda: 8)
    monkeypatch.setattr("forgetting.run.run_sequence", lambda run, store, **_: None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    local.launch([(run, ResultStore(tmp_path)) for run in tiny_study().runs()][:left], workers=workers)
    assert shares == [expected] * left


def test_a_begun_run_gets_its_threads_again_and_the_process_its_own_back(tmp_path: Path) -> None:
    import torch

    (run, *_), store, before = tiny_study().runs(), ResultStore(tmp_path), torch.get_num_threads()
    with local._threads(run, store, 1):
        assert torch.get_num_threads() == 1
    provenance = {"hardware": {"threads": 1}}
    store.save(RunRecord(run_id=run.run_id, study="s", config=run, config_hash=run.hash, provenance=provenance))
    with local._threads(run, store, 2):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("first_is_late", [True, False])
def test_of_several_processes_the_first_ones_clock_decides(
    monkeypatch: pytest.MonkeyPatch, first_is_late: bool
) -> None:
    monkeypatch.setattr(local, "world_size", lambda: 2)
    monkeypatch.setattr(local, "begin", lambda: None)
    flags = []
    for main, late in ((True, first_is_late), (False, not first_is_late)):
        monkeypatch.setattr(local, "is_main", lambda main=main: main)
        monkeypatch.setattr(local, "total", lambda tensor: tensor)
        flags.append(local._time_is_up(-1.0 if late else 1e12))
    monkeypatch.setattr(local, "total", lambda tensor: tensor * 0 + sum(flags))
    for main in (True, False):
        monkeypatch.setattr(local, "is_main", lambda main=main: main)
        assert [local._time_is_up(deadline) for deadline in (-1.0, 1e12)] == [first_is_late] * 2


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("rays", {}, "did you mean 'ray'"),
        ("local", {"cpus": 2}, "--cpus-per-run: is for --launcher ray and slurm, not for local"),
        ("local", {"gpus": 0}, "--gpus-per-run"),
        ("slurm", {"address": "auto", "dry_run": True}, "--address: is for --launcher ray, not"),
        ("ray", {"directives": ("--time=1",)}, "--sbatch: is for --launcher slurm"),
        ("slurm", {}, "add --dry-run, and pipe it into sbatch"),
    ],
)
def test_an_option_that_nothing_reads_is_refused(name: str, options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        choose(name, **options)


def test_a_run_that_is_not_in_the_grid_is_refused(tmp_path: Path) -> None:
    run_id = tiny_study().runs()[0].run_id
    with pytest.raises(UsageError, match=f"is no run of the study; did you mean '{run_id}'"):
        run_studies({tmp_path / "s": tiny_study()}, only=run_id[:-1] + "_")
    assert not (tmp_path / "s").exists()
