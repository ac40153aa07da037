"""The torture itself: what it counts, that it sees a difference, and a study killed in the middle of its writings."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from experiments.torture import kills, registry, study
from experiments.torture.__main__ import cause, markdown, torture
from experiments.torture.registry import Fault, Outcome, all_faults, fault
from forgetting.results import ResultStore


def test_every_kind_is_registered_once() -> None:
    faults = all_faults()
    for phase in study.PHASES:
        assert f"kill -9 in {phase}" in faults
    assert {"power cut", "SIGTERM", "two processes resume one study"} <= faults.keys()
    with pytest.raises(ValueError, match="is registered twice"):
        fault("power cut", "again")(lambda folder: True)
    assert registry.FAULTS["power cut"] is faults["power cut"]


def test_an_exception_is_not_survived_and_a_folder_is_empty_each_time(tmp_path: Path) -> None:
    def raises(folder: Path) -> bool:
        assert not list(folder.iterdir())
        (folder / "left").touch()
        raise OSError("no\nspace")

    for _ in range(2):
        assert cause(Fault("full", "", raises), tmp_path / "f") == Outcome(0, 1, "OSError: no space")
        assert not (tmp_path / "f").exists()
    assert cause(Fault("no", "", lambda folder: False), tmp_path / "f") == Outcome(0, 1)
    assert cause(Fault("yes", "", lambda folder: Outcome(3, 4, "once")), tmp_path / "f") == Outcome(3, 4, "once")


def test_each_is_caused_once_and_those_drawn_at_random_until_the_time_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moment = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: moment[0])

    def minute(folder: Path) -> bool:
        moment[0] += 60
        return True

    faults = {"a": Fault("a", "x", minute), "b": Fault("b", "y", minute, once=True), "c": Fault("c", "z", minute)}
    table = torture(faults, 0, tmp_path / "f")
    assert {name: row["tried"] for name, row in table.items()} == {"a": 1, "b": 1, "c": 1}
    table = torture(faults, 5, tmp_path / "f")
    assert {name: row["tried"] for name, row in table.items()} == {"a": 2, "b": 1, "c": 2}
    assert markdown(table, "command").splitlines()[-1] == "| all | 5 | 5 | |"
    assert "| a | 2 | 2 | x |" in markdown(table, "command")


def test_a_study_killed_while_it_writes_is_the_uninterrupted_one_and_a_difference_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "MITIGATIONS", study.MITIGATIONS[1:])
    monkeypatch.setattr(kills, "KILLS", 2)
    study.reference.cache_clear()
    try:
        outcome = registry.FAULTS["kill -9 in checkpoint writing"].cause(tmp_path)
        assert isinstance(outcome, Outcome) and outcome == Outcome(outcome.tried, outcome.tried)
        assert 1 <= outcome.tried <= 2
        folder = tmp_path / "study"
        assert study.difference(folder) == ""
        (folder / "left over").touch()
        assert "left over" in study.difference(folder)
        (folder / "left over").unlink()
        store = ResultStore(folder)
        (record,) = store.records()
        items = store.load_items(record.run_id)
        first = next(iter(items["R"][1]))
        items["R"][1][first][0] += 1e-9
        store.save(record, items)
        assert study.difference(folder) == f"{record.run_id}: items differ"
    finally:
        study.reference.cache_clear()
