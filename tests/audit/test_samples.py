"""lm-eval's logs: what is read of them, what is refused, and that an audit's own files are such logs."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forgetting.audit.items import paired
from forgetting.audit.run import audit_samples
from forgetting.audit.samples import read_samples, write_samples
from forgetting.audit.schema import Settings
from forgetting.errors import UsageError
from tests.audit.panels import flipped, panel, record

DATE = "2026-01-31T12-00-00.000000"


def write(folder: Path, **outcomes: Any) -> Path:
    write_samples(panel(**outcomes), folder, folder.name, DATE)
    return folder


def log(folder: Path, name: str, records: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(json.dumps(one) + "\n" for one in records))


def test_what_is_written_is_read_again_the_same(tmp_path: Path) -> None:
    base, _ = flipped(40, right=30, lost=0, gained=0)
    before = panel(a=base, b=np.ones(5))
    again, digest = read_samples(write(tmp_path / "m", a=base, b=np.ones(5)))
    assert again == before and len(paired(before, again)) == 2 and len(digest) == 64
    assert (again["a"].chance, again["a"].version, again["a"].higher_is_better) == (0.5, "1.0", True)
    assert again["a"].items[3].choices == (" yes", " no") and again["a"].items[3].target == " yes"
    assert again["a"].items[3].answer == " yes" and again["a"].items[39].answer == " no"


def test_lm_evals_own_layout_newest_file_first_filter_and_groups(tmp_path: Path) -> None:
    """As ``lm_eval --output_path`` writes it: a folder of the model's name, dates in the names, a line per filter."""
    folder = tmp_path / "out" / "org__model"
    filters = [
        {**record(k, 1.0, metric="exact_match"), "filter": name, "exact_match": float(name == "strict")}
        for name in ("strict", "flexible")
        for k in range(3)
    ]
    log(folder, f"samples_gsm8k_{DATE}.jsonl", filters)
    log(folder, "samples_gsm8k_2025-01-31T12-00-00.000000.jsonl", [record(9, 0.0)])  # an older evaluation
    log(folder, f"samples_mmlu_anatomy_{DATE}.jsonl", [record(k, 1.0) for k in range(2)])
    log(folder, f"samples_mmlu_virology_{DATE}.jsonl", [record(k, 0.0) for k in range(4)])
    groups = {"mmlu": ["mmlu_stem", "mmlu_virology"], "mmlu_stem": ["mmlu_anatomy"]}
    (folder / f"results_{DATE}.json").write_text(json.dumps({"group_subtasks": groups, "versions": {"mmlu": 2}}))
    found, _ = read_samples(tmp_path / "out")
    assert set(found) == {"gsm8k", "mmlu"}
    assert found["gsm8k"].metric == "exact_match" and found["gsm8k"].outcomes.tolist() == [1, 1, 1]
    assert found["mmlu"].outcomes.tolist() == [1, 1, 0, 0, 0, 0] and found["mmlu"].version == "2"
    assert found["mmlu"].chance == 0.5


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("samples_a.jsonl", "", "is empty"),
        ("samples_a.jsonl", "{", "line 1: is not lm-eval's record"),
        ("samples_a.jsonl", '{"doc_id": 0}\n', "line 1: is not lm-eval's record"),
        ("samples_a.jsonl", '{"doc_id": 0, "doc_hash": "x", "metrics": ["acc"]}\n', "item 0 has no number as 'acc'"),
        ("other.jsonl", "{}", r"has no samples_\*\.jsonl"),
    ],
)
def test_what_is_no_log_is_refused(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=said):
        read_samples(tmp_path)


def test_line_separators_within_texts_end_no_line(tmp_path: Path) -> None:
    records = [record(k, 1.0, prompt=f"one\u2028two\u2029three\x85four {k}") for k in range(3)]
    lines = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records)
    (tmp_path / "samples_a.jsonl").write_bytes(lines.replace("\n", "\r\n").encode())
    assert len(read_samples(tmp_path)[0]["a"].items) == 3


@pytest.mark.parametrize(
    ("about", "outcome", "said"),
    [
        ({}, math.nan, "item 0 has 'acc' = nan"),
        ({"group_subtasks": {"g": ["g"]}}, 1.0, "group_subtasks has 'g' within itself"),
        ({"group_subtasks": {"g": ["h"], "h": ["g"]}}, 1.0, "within itself"),
        ({"group_subtasks": {"g": "a"}}, 1.0, "'group_subtasks' is not what lm-eval writes"),
        ({"configs": []}, 1.0, "'configs' is not what lm-eval writes"),
        ({"higher_is_better": {"a": [1]}}, 1.0, "'higher_is_better' is not what lm-eval writes"),
    ],
)
def test_spoiled_results_are_one_line(tmp_path: Path, about: dict[str, Any], outcome: float, said: str) -> None:
    log(tmp_path, "samples_a.jsonl", [record(0, outcome)])
    (tmp_path / f"results_{DATE}.json").write_text(json.dumps(about))
    with pytest.raises(UsageError, match=said):
        read_samples(tmp_path)


def test_a_tasks_name_leads_to_no_other_folder(tmp_path: Path) -> None:
    names = ("x/../../../escaped", "x/..\\../../escaped", "a" * 300, "plain-1.0")
    made = panel(**{name: np.ones(3) for name in names})
    write_samples(made, tmp_path / "within" / "m", "m", DATE)
    files = {path.name for path in (tmp_path / "within" / "m").iterdir()}
    assert len(files) == 5 and f"samples_plain-1.0_{DATE}.jsonl" in files
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == files
    again = read_samples(tmp_path / "within")[0]
    assert set(again) == set(names) and all(len(again[name].items) == 3 for name in names)


def test_logs_of_two_models_in_one_folder_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "one", a=[1, 1])
    write(tmp_path / "two", b=[1, 1])
    with pytest.raises(UsageError, match=r"several models \(one, two\)"):
        read_samples(tmp_path)
    with pytest.raises(UsageError, match="no such file or folder"):
        read_samples(tmp_path / "three")


def test_other_prompts_are_said(tmp_path: Path) -> None:
    base = write(tmp_path / "a", c=np.ones(30))
    records = [{**record(k, 1.0), "prompt_hash": "another"} for k in range(30)]
    log(tmp_path / "b", f"samples_c_{DATE}.jsonl", records)
    notes = audit_samples(base, tmp_path / "b", Settings()).verdict.notes
    assert any("prompts of 30 items differ" in note for note in notes)


def test_the_command_compares_logs_without_torch(tmp_path: Path) -> None:
    base, tuned = flipped(60, right=50, lost=30, gained=0)
    write(tmp_path / "base", a=base)
    write(tmp_path / "tuned", a=tuned)
    code = (
        "import sys\n"
        "sys.argv = ['forgetting', 'audit', '--from-samples', 'base', 'tuned', '-o', 'out']\n"
        "from forgetting.cli import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    code = stop.code\n"
        "heavy = {'torch', 'transformers', 'lm_eval', 'datasets', 'peft'} & set(sys.modules)\n"
        "assert not heavy, heavy\nsys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    assert "REGRESSED: Lost beyond chance: a (−50.0)" in done.stdout
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"verdict.json", "items.parquet", "samples", "report.html", "model_card.md", "table.tex"}
