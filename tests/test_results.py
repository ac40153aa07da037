"""The store: what is written can be read, another study is refused, a torn file is named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from forgetting.config import StudyConfig
from forgetting.errors import UsageError
from forgetting.results import CapabilityInfo, ResultStore, Row, RunRecord, TaskInfo, write_atomically


@pytest.fixture
def study() -> StudyConfig:
    return StudyConfig(name="s", mitigations=("naive", "lora"))


def _record(study: StudyConfig) -> RunRecord:
    run = study.runs()[0]
    row = Row(R=[0.1 + 0.2], G=[1 / 3], evaluation_seconds=1.0)
    task = TaskInfo(name="a", metric="accuracy", chance=0.5, n_train=2, n_validation=1, n_test=2)
    capability = CapabilityInfo(name="c", metric="acc", chance=0.5, n=1)
    columns = {"tasks": [task], "capabilities": [capability]}
    return RunRecord(run_id=run.run_id, study="s", config=run, config_hash=run.hash, rows=[row], **columns)


def test_record_and_items_round_trip_exactly(tmp_path: Path, study: StudyConfig) -> None:
    store = ResultStore.create(tmp_path / "s", study)
    record = _record(study)
    store.save(record, {"R": [{"a": [1.0, 0.0]}], "G": [{"c": [0.1 + 0.2]}]})
    assert store.load(record.run_id) == record
    assert store.load_items(record.run_id)["G"][0]["c"] == [0.1 + 0.2]
    assert list(store.records()) == [record]
    assert record.R == [[0.1 + 0.2]] and record.G == [[1 / 3]]


def test_writing_leaves_no_temporary_file_and_identical_bytes(tmp_path: Path, study: StudyConfig) -> None:
    store = ResultStore.create(tmp_path / "s", study)
    record = _record(study)
    store.save(record, {"R": [], "G": []})
    first = store.items_path(record.run_id).read_bytes()
    store.save(record, {"R": [], "G": []})
    assert store.items_path(record.run_id).read_bytes() == first
    assert not list((tmp_path / "s").rglob("*.tmp"))


@pytest.mark.parametrize("status", ["running", "finished", "failed"])
def test_what_killed_processes_left_is_deleted_and_what_is_needed_is_not(
    tmp_path: Path, study: StudyConfig, status: str
) -> None:
    """A model is needed until its run has ended: a kill may come between the record's last write and its deletion."""
    store = ResultStore.create(tmp_path / "s", study)
    record = _record(study).model_copy(update={"tasks": [], "rows": [], "status": status, "capabilities": []})
    if status == "finished":
        record.rows.append(Row(R=[], G=[], evaluation_seconds=1.0))
    store.save(record, {"R": [], "G": []})
    (store.checkpoint_path(record.run_id) / "row-1").mkdir(parents=True)
    (store.folder / "cache").mkdir()
    kept = {*store.folder.rglob("*"), store.folder / "cache" / "self-a.json"}
    (store.folder / "cache" / "self-a.json").touch()
    left = ("cache/.self-a.json.7.tmp", ".ray-0123", "runs/.a.json.7.tmp", ".study.yaml.7.tmp", ".studies.json.7.tmp")
    for name in left:
        (store.folder / name).touch()
    store.clean()
    if status != "running":
        kept = {path for path in kept if "checkpoints" not in path.parts}
    assert {*store.folder.rglob("*")} == kept


def test_the_same_study_reopens_and_another_is_refused(tmp_path: Path, study: StudyConfig) -> None:
    ResultStore.create(tmp_path / "s", study)
    ResultStore.create(tmp_path / "s", study)
    other = study.model_copy(update={"seeds": (0, 1)})
    with pytest.raises(UsageError, match=r"holds another study \(seeds: \[0\] there, \[0, 1\] here\)"):
        ResultStore.create(tmp_path / "s", other)
    assert ResultStore(tmp_path / "s").config() == study


def test_a_torn_or_foreign_record_is_named(tmp_path: Path, study: StudyConfig) -> None:
    store = ResultStore.create(tmp_path / "s", study)
    record = _record(study)
    store.save(record)
    path = store.record_path(record.run_id)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UsageError, match="is not a run record of schema 1"):
        store.load(record.run_id)
    store.save(record.model_copy(update={"schema_version": 99}))
    with pytest.raises(UsageError, match="schema_version = 99"):
        store.load(record.run_id)


def test_a_folder_that_is_a_file_or_no_study(tmp_path: Path, study: StudyConfig) -> None:
    (tmp_path / "f").write_text("x")
    with pytest.raises(UsageError, match="is a file"):
        ResultStore.create(tmp_path / "f", study)
    with pytest.raises(UsageError, match=r"has no study\.yaml"):
        ResultStore.existing(tmp_path / "nothing")


def test_a_failing_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_atomically(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match="No space left on device"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
