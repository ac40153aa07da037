"""A study's folder after a bad disk or a bad edit: `report` and `resume` say which file is wrong, in one line."""

from __future__ import annotations

import gzip
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from forgetting.config import StudyConfig
from forgetting.report import contents
from forgetting.report.page import render_page
from forgetting.report.summary import summarise
from forgetting.results import ResultStore, RunRecord
from tests.report.conftest import write_study
from tests.robustness.fuzz import CASES, changed, clean, command, damaged, files, fuzz

__all__ = ["CASES"]

FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-results-")) / "study"
STORE = write_study(FOLDER, mitigations=["naive", "lora:r=8"], tasks=["a", "b"], capabilities=["c", "d"], seeds=[0])
RUN = STORE.config().runs()[1]
RECORD: dict[str, Any] = json.loads(STORE.record_path(RUN.run_id).read_bytes())
ITEMS: dict[str, Any] = json.loads(gzip.decompress(STORE.items_path(RUN.run_id).read_bytes()))
YAML = STORE.config_path.read_bytes()


def look() -> None:
    """All that `forgetting report` makes, but for the drawing."""
    frame = summarise(STORE)
    finished: dict[str, list[RunRecord]] = {}
    for record in STORE.records():
        if record.status == "finished":
            finished.setdefault(record.config.mitigation, []).append(record)
    for table in (contents.headline, contents.costs, contents.differences):
        table(frame)
    render_page(STORE, frame, finished, [])


def put(record: bytes | None = None, items: bytes | None = None, study: bytes = YAML) -> None:
    STORE.record_path(RUN.run_id).write_bytes(json.dumps(RECORD).encode() if record is None else record)
    whole = gzip.compress(json.dumps(ITEMS).encode(), mtime=0)
    STORE.items_path(RUN.run_id).write_bytes(whole if items is None else items)
    STORE.config_path.write_bytes(study)


@fuzz(150, record=changed(RECORD).map(lambda value: json.dumps(value, default=str).encode()))
def test_records_with_changed_values(record: bytes) -> None:
    put(record)
    clean(look)


@fuzz(60, items=changed(ITEMS).map(lambda value: gzip.compress(json.dumps(value, default=str).encode(), mtime=0)))
def test_items_with_changed_values(items: bytes) -> None:
    put(items=items)
    clean(look)


@fuzz(
    60,
    record=damaged(json.dumps(RECORD).encode()),
    items=damaged(gzip.compress(json.dumps(ITEMS).encode(), mtime=0)),
    study=damaged(YAML),
    which=st.integers(0, 2),
)
def test_damaged_files(record: bytes, items: bytes, study: bytes, which: int) -> None:
    put(*((record, None, YAML), (None, items, YAML), (None, None, study))[which])
    clean(look)


@fuzz(25, record=damaged(json.dumps(RECORD).encode()), study=damaged(YAML), which=st.booleans())
def test_resume_and_report_of_damaged_folders(record: bytes, study: bytes, which: bool) -> None:
    """The commands themselves: exit code 2, one line, and not a file more."""
    put(record=record[:-40] + b"x") if which else put(study=study[:40] + b"\n[")
    before = files(FOLDER)
    for name in ("report", "resume"):
        code, said = command(name, str(FOLDER))
        assert code == 2 and said.startswith("error: "), said
    assert files(FOLDER) == before


def test_a_record_under_another_runs_name_is_refused() -> None:
    put()
    other = StudyConfig(name="x").runs()[0]
    shutil.copy(STORE.record_path(RUN.run_id), STORE.record_path(other.run_id))
    try:
        assert clean(lambda: ResultStore(FOLDER).load(other.run_id)) is None
    finally:
        STORE.record_path(other.run_id).unlink()
