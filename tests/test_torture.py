"""The torture itself: what it counts, that each of its faults is survived, and that it sees a difference."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

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


MITIGATION = (
    "lora:r=2,dropout=0.2,merge=false+replay:fraction=0.3,source=both+ewc:strength=100,examples=8"
    "+early_stopping:every=2,patience=2"
)
"""One run with every phase in it: a process for each fault costs the less."""


def test_every_fault_is_survived_and_a_difference_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of ``make torture``: each fault in turn, with two kills in a study at the most."""
    monkeypatch.setattr(study, "MITIGATIONS", (MITIGATION,))
    monkeypatch.setattr(kills, "KILLS", 2)
    study.reference.cache_clear()
    folder = tmp_path / "fault"
    try:
        faults = all_faults()
        table: dict[str, dict[str, Any]] = {}
        for _ in range(10):  # a moment that was drawn can lie behind the study's end
            missed = {name: fault for name, fault in faults.items() if name not in table}
            table |= {name: row for name, row in torture(missed, 0, folder).items() if row["tried"]}
        assert table.keys() == faults.keys()
        assert [name for name, row in table.items() if row["survived"] < row["tried"] or row["notes"]] == []

        folder.mkdir()
        outcome = kills.kill_at_any_moment(folder)
        assert outcome.survived == outcome.tried
        assert study.difference(folder / "study") == ""
        (folder / "study" / "left over").touch()
        assert "left over" in study.difference(folder / "study")
        (folder / "study" / "left over").unlink()
        store = ResultStore(folder / "study")
        (record,) = store.records()
        items = store.load_items(record.run_id)
        first = next(iter(items["R"][1]))
        items["R"][1][first][0] += 1e-9
        store.save(record, items)
        assert study.difference(folder / "study") == f"{record.run_id}: items differ"
    finally:
        study.reference.cache_clear()
