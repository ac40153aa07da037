"""GPUs are divided among local workers, none given twice; a launcher's options are read or refused."""

from __future__ import annotations

import os
import queue
from pathlib import Path

import pytest

from forgetting import launch as local
from forgetting.errors import UsageError
from forgetting.launchers import choose
from forgetting.launchers.devices import shares, visible_gpus
from forgetting.results import ResultStore
from forgetting.study import run_studies
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
    monkeypatch.setattr(local.interruption, "begin_worker", lambda: None)  # it is for the rest of a process's life
    waiting: queue.Queue[str] = queue.Queue()
    for share in shares(visible_gpus(), 2):
        waiting.put(share)
    seen = []
    for _ in range(2):
        local._begin_worker(queue.Queue(), 1, waiting)  # type: ignore[arg-type]
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
