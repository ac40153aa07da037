"""The own task: its items' contexts come from the file, and its difference knows of them."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forgetting.analysis.paired_shares import paired_shares
from forgetting.audit.load import AuditInput, _own_task, _rows
from forgetting.audit.sides import own_task
from forgetting.evaluation.scores import TaskScore
from forgetting.models import LoadedModel
from tests.models_for_tests import tiny_llama, tiny_tokenizer

PASSAGE = "a passage that several questions are about, and that is long enough to be told from a label, number {}"


def given(path: Path, rows: list[dict[str, Any]]) -> AuditInput:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = _own_task(path)
    model = LoadedModel("tiny", tiny_llama(), tiny_tokenizer())
    return AuditInput(model, model, None, own, 8, True, own_rows=_rows(path, own))  # type: ignore[arg-type]


def question(number: int, **more: Any) -> dict[str, Any]:
    return {"prompt": f"question {number}:", "completion": "yes", "choices": ["yes", "no"], **more}


@dataclass
class Fixed:
    """Of the base all is right; of the tuned one two contexts of ten are lost whole."""

    scored: int = 0

    def __call__(self, task: Any, *_: Any, **__: Any) -> Fixed:
        self.lost = [int(item.prompt.split()[1][:-1]) % 10 < 2 for item in task.test]
        return self

    def score(self, model: Any) -> TaskScore:
        self.scored += 1
        items = [float(self.scored == 1 or not lost) for lost in self.lost]
        return TaskScore(float(np.mean(items)), items)


def test_the_own_tasks_difference_is_clustered_where_items_share_a_context(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [question(k, passage=PASSAGE.format(k % 10), source=f"s{k % 5}") for k in range(500)]
    found = given(tmp_path / "own.jsonl", rows)
    assert found.own is not None and len(found.own_rows) == len(found.own.test) == 100
    assert [row["prompt"] for row in found.own_rows] == [item.prompt for item in found.own.test]
    contexts = found.own_contexts(None)
    assert contexts is not None and len(set(contexts)) == 10 and found.own_contexts("not a field") == contexts
    assert len(set(found.own_contexts("source") or [])) == 5
    records = []
    for one in (found, replace(found, own_rows=tuple(question(k) for k in range(100)))):
        monkeypatch.setattr("forgetting.evaluation.scores.TaskScorer", Fixed())
        record = own_task(one, 0.95)
        assert record is not None
        records.append(record)
    clustered, alone = records
    assert (clustered.clusters, alone.clusters) == (10, None) and clustered.difference.value == alone.difference.value
    before, after = np.ones(100), [float(int(item.prompt.split()[1][:-1]) % 10 >= 2) for item in found.own.test]
    low, high = paired_shares(before, after, clusters=contexts).interval(0.95)
    assert (clustered.difference.low, clustered.difference.high) == pytest.approx((low, high))
    assert alone.difference.low is not None and low < alone.difference.low - 0.05
