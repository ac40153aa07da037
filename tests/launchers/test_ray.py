"""A local Ray cluster of two workers, one of which is killed: the numbers of one process."""

from __future__ import annotations

import os
import signal
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import ray

from forgetting.config import RunConfig
from forgetting.errors import UsageError
from forgetting.interruption import Interrupted
from forgetting.launchers import ray as launcher
from forgetting.launchers import ray_worker
from forgetting.launchers.ray import RayLauncher
from forgetting.launchers.ray_worker import Inbox, Job
from forgetting.rerun import compare
from forgetting.results import ResultStore, RunRecord
from forgetting.study import run_study
from tests.tiny_study import tiny_study

DYING = '''
import os, signal
from pathlib import Path
from forgetting import Mitigation


class Dying(Mitigation):
    """Naive fine-tuning whose process is killed before its second task, once per machine folder."""

    summary, paper, equation, cost = "dies once", "none", "none", "a process"
    begun = 0

    def before_task(self, model, task):
        self.begun += 1
        killed = Path(__file__).with_suffix(".killed")
        if task.name == "sorting" and not killed.exists():
            killed.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        Path(__file__).with_suffix(".begun").open("a").write(task.name + "\\n")
        return model
'''

WAITING = '''
import time
from pathlib import Path
from forgetting import Mitigation, interruption


class Waiting(Mitigation):
    """Naive fine-tuning that waits in its third step to be told to stop, where a file asks for that."""

    summary, paper, equation, cost = "waits", "none", "none", "time"
    resumes_within_task = True

    def before_task(self, model, task):
        self.task = task.name
        return model

    def after_step(self, model, learning_rate):
        file = Path(__file__)
        with file.with_suffix(".steps").open("a") as steps:
            steps.write(self.task + "\\n")
        if len(file.with_suffix(".steps").read_text().split()) == 3 and file.with_suffix(".wait").exists():
            file.with_suffix(".waits").touch()
            until = time.monotonic() + 120
            while not interruption.requested() and time.monotonic() < until:
                time.sleep(0.01)
'''


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    # By default its workers let any other process go first.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  # its name
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.mark.usefixtures("cluster")
def test_a_killed_worker_changes_no_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_process: ResultStore
) -> None:
    """On one disk it goes on from its last task; without a disk in common, what comes back is the same.

    The mitigation's file stays where it is, and so the runs are the same in all three.
    """
    file = tmp_path / "dying.py"
    file.write_text(DYING)
    config = tiny_study(mitigations=[str(file), "low_lr:factor=0.5"])
    shared = tmp_path / "shared" / "tiny"
    told: list[tuple[str, str]] = []
    run_study(
        config, shared, workers=2, launch=RayLauncher(), progress=lambda run, share, doing: told.append((run, doing))
    )
    assert file.with_suffix(".killed").exists()
    assert file.with_suffix(".begun").read_text().split() == ["new_facts", "sorting"]  # the first task was not lost

    file.with_suffix(".killed").unlink()
    apart = tmp_path / "apart" / "tiny"
    with monkeypatch.context() as patch:  # as on machines that do not see the study's folder: the mark is elsewhere
        patch.setattr(launcher, "mark_of", lambda folder, token: tmp_path / f".ray-{token}")
        run_study(config, apart, workers=0, launch=RayLauncher())
    assert not (ray_worker._work_root() / ray_worker.work_name(ResultStore(apart))).exists()
    assert file.with_suffix(".killed").exists()

    here = tmp_path / "here" / "tiny"
    expected = run_study(config.model_copy(update={"mitigations": (str(file),)}), here)
    expected.append(list(one_process.records())[1])
    stores = (ResultStore(here), one_process)
    for folder in (shared, apart):
        store = ResultStore(folder)
        records = list(store.records())
        assert [record.status for record in records] == ["finished", "finished"]
        for there, known, record in zip(stores, expected, records, strict=True):
            items = there.load_items(known.run_id), store.load_items(record.run_id)
            difference = compare(known, record, *items)
            assert not difference.numbers and difference.items and difference.compared > 100
        assert not list(folder.glob(".ray-*")) and not (folder / "checkpoints").exists()
    assert {run for run, doing in told if doing == "finished"} == {record.run_id for record in expected}


@pytest.mark.usefixtures("cluster")
def test_told_to_stop_workers_finish_their_step_and_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a disk in common; the driver is sent SIGTERM, and the next launch goes on within the task."""
    monkeypatch.setattr(launcher, "mark_of", lambda folder, token: tmp_path / f".ray-{token}")
    file = tmp_path / "waiting.py"
    file.write_text(WAITING)
    wait, waits = file.with_suffix(".wait"), file.with_suffix(".waits")
    wait.touch()
    config = tiny_study(mitigations=[str(file)], training={"steps": 6, "batch_size": 4, "max_length": 96})
    run_id = config.runs()[0].run_id
    store = ResultStore(tmp_path / "tiny")

    def stop() -> None:
        until = time.monotonic() + 120
        while not waits.exists() and time.monotonic() < until:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(Interrupted, match="SIGTERM"):
        run_study(config, store.folder, launch=RayLauncher(), workers=0, checkpoint_every="never")
    wait.unlink()
    work = ray_worker._work_root() / ray_worker.work_name(store) / "tiny"
    checkpoints = ResultStore(work).checkpoint_path(run_id)
    assert [path.name for path in checkpoints.iterdir()] == ["row-0-step-3"]
    begun = store.load(run_id)
    assert begun is not None and begun.status == "running"

    (record,) = run_study(config, store.folder, launch=RayLauncher(), workers=0)
    assert record.status == "finished" and file.with_suffix(".steps").read_text().split().count("new_facts") == 6
    assert not checkpoints.exists() and not work.parent.exists()
    (whole,) = run_study(config, tmp_path / "whole" / "tiny")
    assert not compare(whole, record).numbers


def test_a_run_that_ended_in_a_worker_that_died_is_sent_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_process: ResultStore
) -> None:
    """Its record is finished on the worker's machine; the driver had its rows, and not its end."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(ray, "get", lambda sent: sent)
    monkeypatch.chdir(tmp_path)
    record = next(one_process.records())
    here = ResultStore.create(tmp_path / "tiny", one_process.config())
    there = ResultStore(ray_worker._work_root() / ray_worker.work_name(here) / "tiny")
    assert stat.S_IMODE(ray_worker._work_root().stat().st_mode) == 0o700
    there.save(record, one_process.load_items(record.run_id))
    sent: list[tuple] = []

    class Sending:
        class put:
            remote = staticmethod(sent.append)

    job = Job(
        number=0,
        run=record.config.model_dump(mode="json"),
        folder=str(here.folder),
        token="a",
        work=ray_worker.work_name(here),
        begun=True,
        cpus=1,
        directory=str(tmp_path),
        wandb_project=None,
        checkpoint_every="never",
    )
    ray_worker.work(job, {}, Sending)
    (number, _, kind, *content) = sent[-1]
    assert (number, kind) == (0, "record") and RunRecord.model_validate_json(content[0]) == record
    assert content[1] == one_process.load_items(record.run_id) and there.load(record.run_id) is None

    # Where the driver has no record, one of an earlier launch is of a run that the user began anew.
    there.save(record)
    found: list[RunRecord | None] = []

    def again(run: RunConfig, store: ResultStore, **_: object) -> RunRecord:
        found.append(store.load(run.run_id))
        store.save(record)
        return record

    monkeypatch.setattr("forgetting.run.run_sequence", again)
    ray_worker.work(replace(job, begun=False, token="b"), {}, Sending)
    assert found == [None]
    (ray_worker._work_root()).chmod(0o777)
    with pytest.raises(UsageError, match="others can write there"):
        ray_worker.work(job, {}, Sending)


@pytest.mark.usefixtures("cluster")
def test_a_run_that_no_machine_has_room_for_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny_study()
    runs = [(run, ResultStore.create(tmp_path / "tiny", config)) for run in config.runs()]
    with pytest.raises(UsageError, match="--cpus-per-run 64 --gpus-per-run 0: no machine .*most cores: 2"):
        RayLauncher(cpus=64)(runs)
    assert [path.name for path in (tmp_path / "tiny").iterdir()] == ["study.yaml"]
    RayLauncher(gpus=8, address="auto")._check_room()  # that cluster may grow
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("note: --cpus-per-run 1 --gpus-per-run 8: no machine") and "wait until one joins" in line
    RayLauncher()(runs, hours=0)
    assert not (tmp_path / "tiny" / "runs").exists()


def test_what_a_lost_attempt_still_sends_is_passed_over(tmp_path: Path, one_process: ResultStore) -> None:
    """A machine that was cut off, and taken for dead, must not write over the attempt that took its place."""
    config = one_process.config()
    store = ResultStore.create(tmp_path / "tiny", config)
    record = next(one_process.records())
    seen: list[str] = []
    post = launcher._Post([(record.config, store)], lambda run, share, doing: seen.append(doing))
    old = record.model_copy(update={"rows": record.rows[:1], "status": "running"})
    inbox = Inbox()
    for attempt, sent in (("a", old), ("b", record), ("a", old)):
        inbox.put((0, attempt, "begun"))
        inbox.put((0, attempt, "record", sent.model_dump_json(), one_process.load_items(record.run_id)))
        inbox.put((0, attempt, "progress", 0.5, f"attempt {attempt}"))
    for message in inbox.take():
        post.deliver(message)
    assert inbox.take() == [] and seen == ["attempt a", "attempt b"]
    assert store.load(record.run_id) == record

    half = record.model_copy(update={"rows": record.rows[:2], "status": "running"})
    for before, after in ((half, old), (record, half), (record, old)):  # begun again, not yet where it was
        store.save(before)
        post.deliver((0, "b", "record", after.model_dump_json(), None))
        assert store.load(record.run_id) == before
    store.save(half)
    failed = old.model_copy(update={"status": "failed", "reason": "x"})
    post.deliver((0, "b", "record", failed.model_dump_json(), None))
    assert store.load(record.run_id) == failed

    elsewhere = record.model_copy(deep=True)
    elsewhere.provenance["sources"]["data"] = "0" * 64
    with pytest.raises(UsageError, match="other data than this one"):
        post.deliver((0, "c", "record", elsewhere.model_dump_json(), None))
