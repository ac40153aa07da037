"""What goes wrong around a run: a full disk, a clock that jumps, a log server that is away. Each is caused."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import forgetting.run as run_module
from forgetting.config import StudyConfig
from forgetting.errors import UsageError
from forgetting.results import ResultStore, RunRecord
from forgetting.study import run_study
from forgetting.tracking import Tracker
from tests.test_run import small_study


def study() -> StudyConfig:
    """Two short tasks of the embedded world."""
    return small_study(
        sequence={"name": "micro-5", "tasks": ["sorting", "new_facts"], "train_size": 16, "test_size": 8},
        training={"steps": 2, "batch_size": 4, "max_length": 64},
        evaluation={"suite": "micro_facts", "limit": 4, "drift_tokens": 100},
        pretraining={"documents": 10, "held_out_documents": 2},
    )


def numbers(record: RunRecord) -> list[Any]:
    """All that a run measured."""
    return [record.status, *((row.R, row.G, row.drift) for row in record.rows), [c.log for c in record.cost.tasks]]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    (record,) = run_study(study(), tmp_path_factory.mktemp("reference") / "small")
    return record


@pytest.fixture(autouse=True)
def one_setting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The model and the data, which no fault here is about, are loaded once."""
    real = run_module._setting
    monkeypatch.setattr(run_module, "_setting", lambda shared, cache_dir: real(shared, Path("unused")))
    yield


def full_at(call: int) -> Callable[[int], None]:
    """An ``os.fsync`` that finds the disk full at its n-th call and the two after it."""
    real, calls = os.fsync, itertools.count(1)

    def fsync(descriptor: int) -> None:
        if call <= next(calls) < call + 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    return fsync


@pytest.mark.parametrize("call", [1, 4, 5])
def test_a_full_disk_leaves_what_was_finished_and_the_study_goes_on(
    call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: RunRecord
) -> None:
    folder = tmp_path / "small"
    with monkeypatch.context() as full:
        full.setattr(os, "fsync", full_at(call))
        with pytest.raises(UsageError, match="No space left on device") as error:
            run_study(study(), folder)
    assert "\n" not in str(error.value)
    store = ResultStore(folder)
    if store.config_path.exists():
        for record in store.records():
            assert record.status == "running"
            assert numbers(record)[1:-1] == numbers(reference)[1:-1][: len(record.rows)]
            assert len(store.load_items(record.run_id)["R"]) >= len(record.rows)
    assert not [path for path in folder.rglob("*.tmp") if path.is_file()]
    (resumed,) = run_study(study(), folder)
    assert numbers(resumed) == numbers(reference)


def test_an_accelerator_that_fails_is_no_failure_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: RunRecord
) -> None:
    """The second task's training meets a driver that was reset; the run goes on from the first task's end."""
    folder, real = tmp_path / "small", run_module.train_task

    def reset(*arguments: Any, **keywords: Any) -> Any:
        if arguments[4] == 1:
            raise RuntimeError("CUDA error: unspecified launch failure\nCompile with `TORCH_USE_CUDA_DSA`")
        return real(*arguments, **keywords)

    with monkeypatch.context() as broken:
        broken.setattr(run_module, "train_task", reset)
        with pytest.raises(UsageError, match="the accelerator failed: CUDA error: unspecified launch failure") as error:
            run_study(study(), folder)
    assert "\n" not in str(error.value) and "rows up to 1 are stored, resume" in str(error.value)
    (resumed,) = run_study(study(), folder)
    assert numbers(resumed) == numbers(reference)


def test_a_clock_that_jumps_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: RunRecord
) -> None:
    """Back to 1938, on to the year 33658: nothing but the time at which a run was begun comes from that clock."""
    jumps = itertools.cycle([-1e9, 1e12, 0.0, 1.7e9, 1.6e9])
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    monkeypatch.setattr(time, "time_ns", lambda: int(1e9 * next(jumps)))
    (record,) = run_study(study(), tmp_path / "small")
    assert numbers(record) == numbers(reference)
    durations = [cost.seconds for cost in record.cost.tasks] + [row.evaluation_seconds for row in record.rows]
    assert all(0 <= seconds < 600 for seconds in durations)


class _Broken:
    """A wandb run whose server has gone away after ``calls`` calls."""

    def __init__(self, calls: int) -> None:
        self.summary: dict[str, str] = {}
        self.calls = calls

    def log(self, values: object, step: int) -> None:
        self._use()

    def finish(self, exit_code: int) -> None:
        self._use()

    def _use(self) -> None:
        self.calls -= 1
        if self.calls < 0:
            raise ConnectionError("the server\nis gone")


@pytest.mark.parametrize("calls", [None, 0, 3])
def test_a_log_server_that_goes_away_is_one_warning(
    calls: int | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    reference: RunRecord,
) -> None:
    """When the run begins (``None``), at its first row, and when it ends."""

    def begin(self: Tracker, record: RunRecord) -> Any:
        if calls is None:
            raise TimeoutError("no answer")
        return _Broken(calls)

    monkeypatch.setattr(Tracker, "_begin", begin)
    with caplog.at_level(logging.WARNING):
        (record,) = run_study(study(), tmp_path / "small", wandb_project="p")
    assert numbers(record) == numbers(reference)
    warned = [message for message in caplog.messages if message.startswith("wandb: ")]
    assert len(warned) == 1 and "\n" not in warned[0] and "going on without it" in warned[0]
