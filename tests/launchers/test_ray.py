"""A local Ray cluster of two workers, one of which is killed: the numbers of one process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from forgetting.errors import UsageError
from forgetting.launchers import ray as launcher
from forgetting.launchers.ray import Inbox, RayLauncher
from forgetting.rerun import compare
from forgetting.results import ResultStore
from forgetting.study import run_study
from tests.tiny_study import tiny_study

ray = pytest.importorskip("ray", reason="Ray is not installed (pip install 'forgetting[ray]')")

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
        patch.setattr(launcher, "_mark", lambda folder, token: tmp_path / f".ray-{token}")
        run_study(config, apart, workers=0, launch=RayLauncher())
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
def test_a_run_that_no_machine_has_room_for_is_refused(tmp_path: Path) -> None:
    config = tiny_study()
    runs = [(run, ResultStore.create(tmp_path / "tiny", config)) for run in config.runs()]
    with pytest.raises(UsageError, match="--cpus-per-run 64 --gpus-per-run 0: no machine .*most cores: 2"):
        RayLauncher(cpus=64)(runs)
    assert [path.name for path in (tmp_path / "tiny").iterdir()] == ["study.yaml"]
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

    elsewhere = record.model_copy(deep=True)
    elsewhere.provenance["sources"]["data"] = "0" * 64
    with pytest.raises(UsageError, match="other data than this one"):
        post.deliver((0, "c", "record", elsewhere.model_dump_json(), None))
