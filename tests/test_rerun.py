"""A record is enough to run again; what differs is found, said, and an exit code of its own."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from forgetting.cli import main
from forgetting.errors import UsageError
from forgetting.rerun import DIFFERENT, _threads, compare, rerun
from forgetting.results import ResultStore, read_record


def test_a_record_is_reproduced_from_itself(
    tmp_path: Path,
    one_process: ResultStore,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The same bits; and where a number, an item and a version were changed, each is named."""
    path = next((one_process.folder / "runs").glob("low_lr*[0-9a-f].json"))
    again, difference = rerun(path, tmp_path / "again")
    assert difference.numbers == difference.surroundings == [] and difference.items
    assert again.config == read_record(path).config and (tmp_path / "again" / "runs" / path.name).exists()

    changed = json.loads(path.read_text())
    changed["rows"][1]["R"][0] += 0.125
    changed["provenance"]["libraries"]["torch"] = "1.0"
    (tmp_path / path.name).write_text(json.dumps(changed))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["forgetting", "rerun", path.name, "--output", "again"])
    with pytest.raises(SystemExit) as stop:
        main()  # a repetition that is there already is no repetition
    assert stop.value.code == 2 and "finished there already" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["forgetting", "rerun", path.name, "--output", "once more"])
    monkeypatch.setattr("forgetting.rerun.run_study", lambda study, folder: [again])  # what it would run: seen above
    with pytest.raises(SystemExit) as stop:
        main()
    told = capsys.readouterr().out
    assert stop.value.code == DIFFERENT
    assert "R: 1 of 6 differ, by 0.125 at most; first R[1, new_facts]" in told
    assert "surroundings: libraries.torch: '1.0' there" in told and "were not compared" in told


def test_items_that_flip_are_counted(one_process: ResultStore) -> None:
    record = next(one_process.records())
    there, here = one_process.load_items(record.run_id), one_process.load_items(record.run_id)
    here["G"][1][record.capabilities[0].name][0] += 1
    told = compare(record, record, there, here).numbers
    assert len(told) == 1 and told[0].startswith("items: 1 of ") and f"G.1.{record.capabilities[0].name}.0" in told[0]


def test_what_an_older_record_does_not_have_is_no_difference_and_is_told(one_process: ResultStore) -> None:
    here = next(one_process.records())
    there = here.model_copy(deep=True)
    text = next(iter(there.rows[1].drift))
    there.rows[1].drift[text] = there.rows[1].drift[text].model_copy(update={"total_variation": None})
    told = compare(there, here)
    assert len(told.numbers) == 1 and "total_variation: None there" in told.numbers[0], "of the same code it is one"
    there.provenance["git"] = {"commit": "0" * 40, "dirty": False}
    told = compare(there, here)
    assert told.numbers == []
    assert told.surroundings[0] == (
        f"drift: 1 numbers that the record does not have, such as drift.1.{text}.total_variation"
    )
    there.rows[1].drift[text] = there.rows[1].drift[text].model_copy(update={"total_variation": 0.5})
    assert len(compare(there, here).numbers) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"status": "running"}, "did not end"),
        ({"config": {"seed": 1}}, "it was changed, delete it"),
        ({"config_hash": "0" * 12}, "was changed by hand"),
        ({"rows": 3}, "is not a run record"),
    ],
)
def test_a_record_that_cannot_be_run_again_is_refused(
    tmp_path: Path,
    one_process: ResultStore,
    change: dict,
    message: str,
) -> None:
    record = json.loads(one_process.record_path(next(one_process.records()).run_id).read_text())
    for key, value in change.items():
        record[key] = {**record[key], **value} if isinstance(value, dict) else value
    (tmp_path / "record.json").write_text(json.dumps(record))
    with pytest.raises(UsageError, match=message):
        rerun(tmp_path / "record.json", tmp_path / "again")
    with pytest.raises(UsageError, match="No such file"):
        rerun(tmp_path / "none.json", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_damaged_items_are_refused_before_anything_is_run(tmp_path: Path, one_process: ResultStore) -> None:
    record = one_process.record_path(next(one_process.records()).run_id)
    (tmp_path / "record.json").write_text(record.read_text())
    (tmp_path / "record.items.json.gz").write_bytes(b"torn")
    with pytest.raises(UsageError, match=r"record\.items\.json\.gz': is not a run's items"):
        rerun(tmp_path / "record.json", tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("hardware", "threads"),
    [({"threads": 3}, 3), *(({"threads": bad}, None) for bad in ("x", -1, 0, [2], True, 2.0, 2**40)), ([], None)],
)
def test_threads_are_those_of_the_record_where_they_can_be(
    one_process: ResultStore, hardware: object, threads: int | None
) -> None:
    record = next(one_process.records())
    record.provenance["hardware"] = hardware
    assert _threads(record) == threads
