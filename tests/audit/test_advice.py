"""Advice on a real fine-tune of the embedded model: each row is what scoring the mixture by itself gives."""

from __future__ import annotations

import copy
import dataclasses
import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from forgetting import metrics
from forgetting.audit.advice import Advice, _half, advise, default_edits, save_best
from forgetting.audit.edits import Change, Edit
from forgetting.audit.weights import general_fisher
from forgetting.errors import UsageError
from forgetting.evaluation.scores import TaskScorer
from forgetting.evaluation.suite import Suite, load_suite
from forgetting.models import load_model, untied_head
from forgetting.tasks.encode import encode_texts
from forgetting.trainer import padded_batches
from tests.audit.test_edits import IDS, moved
from tests.audit.tuned import tuned_micro
from tests.models_for_tests import tiny_llama, tiny_tokenizer

EDITS = [
    Edit("interpolation", 0.3),
    Edit("interpolation", 0.7),
    Edit("revert", layers=("block 0", "block 1")),
    Edit("rank", 2),
    Edit("fisher", 0.2),
]


@cache
def prepared() -> tuple[Change, TaskScorer, Suite, Advice]:
    made = tuned_micro()
    change = Change(made.base, made.model)
    scorer = TaskScorer(made.task, made.tokenizer, batch_size=64, max_length=64)
    suite = load_suite(["micro"], limit=16)
    fisher = general_fisher(made.base, made.tokenizer, made.documents, max_length=48, max_examples=16)
    general = padded_batches(encode_texts(made.tokenizer, made.documents, 64), made.tokenizer, 16)
    found = advise(
        change,
        lambda model: scorer.score(model).items,
        suite,
        made.tokenizer,
        edits=EDITS,
        fisher=fisher,
        general=general,
    )
    return change, scorer, suite, found


def test_rows_are_what_scoring_by_itself_gives() -> None:
    change, scorer, suite, found = prepared()
    made = tuned_micro()
    rows = {point.name: point for point in found.points}
    assert list(rows) == ["base", "tuned", *(edit.name for edit in EDITS)]
    info = suite.capabilities()
    base = suite.evaluate(made.base, made.tokenizer)
    stderr = [float(np.std(base[c.name].items, ddof=1)) / len(base[c.name].items) ** 0.5 for c in info]
    with change.at(EDITS[0]):
        mixed = suite.evaluate(change.model, made.tokenizer)
        own = scorer.score(change.model).items
    tuned_own = scorer.score(made.model).items
    for point, scores in (
        ("base", base),
        (EDITS[0].name, mixed),
        ("tuned", suite.evaluate(made.model, made.tokenizer)),
    ):
        G = [[np.mean(each[c.name].items) for c in info] for each in (base, scores)]
        kept = metrics.mean_retention(metrics.retention(G, [c.chance for c in info], stderr))
        assert rows[point].retention.mean == pytest.approx(kept.mean, rel=1e-9)
        assert rows[point].retention.defined == kept.defined
    row = rows[EDITS[0].name]
    assert row.own == np.mean(own) and row.own_change.mean == pytest.approx(np.mean(own) - np.mean(tuned_own))
    assert row.retention_change.mean == pytest.approx(row.retention.mean - rows["tuned"].retention.mean)
    assert (rows["base"].retention.mean, rows["tuned"].own_change.mean) == (1.0, 0.0)


def test_the_fine_tune_learned_and_forgot_and_the_front_is_efficient() -> None:
    found = prepared()[3]
    rows = {point.name: point for point in found.points}
    assert rows["tuned"].own > rows["base"].own + 0.1 and rows["tuned"].retention.high < 1
    for point in found.points:
        better = [
            other
            for other in found.points
            if other.own >= point.own
            and other.retention.mean >= point.retention.mean
            and (other.own, other.retention.mean) != (point.own, point.retention.mean)
        ]
        assert point.efficient == (not better)
    assert rows["base"].stands_for == "" and rows["rank 2 of Δ"].stands_for == "LoRA"
    assert rows["base + 0.3 Δ"].retention.mean > rows["tuned"].retention.mean


def test_replays_first_order_effect_foretells_the_sign() -> None:
    replay = prepared()[3].replay
    assert replay is not None and replay.loss_tuned > replay.loss_base
    assert replay.at_tuned > 0, "taking some of the change back lowers the loss on general text"
    assert replay.at_tuned > abs(replay.at_base), "the base model is nearly optimal on its own text"


def test_the_best_is_chosen_on_one_half_and_judged_on_the_other() -> None:
    change, scorer, suite, found = prepared()
    made = tuned_micro()
    own = {}
    for alpha in (0.0, 0.3, 0.7, 1.0):
        with change.at(Edit("interpolation", alpha)):
            own[alpha] = np.array(scorer.score(change.model).items)
    best = found.best
    assert best.alpha in own and own[best.alpha][::2].mean() >= own[1.0][::2].mean() - best.margin
    assert best.own_change.mean == pytest.approx((own[best.alpha] - own[1.0])[1::2].mean())
    assert best.own_change.n == len(own[1.0]) // 2
    assert best.retention_change.items <= 8 * 8, "of 16 items per probe, half"
    whole = advise(
        change, lambda model: scorer.score(model).items, suite, made.tokenizer, edits=EDITS[:2], margin=1.0
    ).best
    assert whole.alpha < 1 and whole.retention_change.mean > 0, "with any loss allowed, retention decides"


def test_a_context_is_in_one_half() -> None:
    labels = ["a", "a", "b", "a", "c", "b", "d"]
    even, odd = _half(7, 0, labels), _half(7, 1, labels)
    assert sorted(even + odd) == list(range(7))
    assert {labels[k] for k in even} == {"a", "c"} and {labels[k] for k in odd} == {"b", "d"}
    assert (_half(5, 0, None), _half(5, 1, None)) == ([0, 2, 4], [1, 3])


def test_the_result_is_json() -> None:
    text = json.dumps(dataclasses.asdict(prepared()[3]))
    assert json.loads(text)["points"][2]["edit"] == {"kind": "interpolation", "amount": 0.3, "layers": []}


def test_defaults_cover_every_kind_and_every_layer() -> None:
    change = prepared()[0]
    edits = default_edits(change, fisher=True)
    assert {edit.kind for edit in edits} == {"interpolation", "revert", "rank", "fisher"}
    assert {layer for edit in edits for layer in edit.layers} == set(change.layers.values())
    assert "fisher" not in {edit.kind for edit in default_edits(change, fisher=False)}


def test_what_is_saved_is_an_ordinary_model_folder(tmp_path: Path) -> None:
    change = prepared()[0]
    made = tuned_micro()
    folder = save_best(change, made.tokenizer, 0.3, tmp_path / "best")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in folder.iterdir()}
    loaded = load_model(str(folder))
    wanted = change.weights(Edit("interpolation", 0.3))
    names = dict(loaded.model.named_parameters())
    assert set(names) == set(wanted) and all(torch.equal(names[name], wanted[name]) for name in names)
    assert loaded.tokenizer("the 1")["input_ids"] == made.tokenizer("the 1")["input_ids"]
    with pytest.raises(UsageError, match="is not an empty folder"):
        save_best(change, made.tokenizer, 0.3, folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="save-best"):
        save_best(change, made.tokenizer, 0.3, tmp_path / "file" / "below")


def test_a_head_of_its_own_is_saved_as_one(tmp_path: Path) -> None:
    base = tiny_llama(tied=True)
    tuned = copy.deepcopy(base)
    untied_head(tuned)
    change = Change(base, moved(tuned))
    folder = save_best(change, tiny_tokenizer(), 0.5, tmp_path / "best")
    with change.at(Edit("interpolation", 0.5)), torch.no_grad():
        wanted = change.model(IDS).logits
        assert torch.equal(load_model(str(folder)).model(IDS).logits, wanted)
        assert not torch.allclose(wanted, base(IDS).logits)


def test_mistakes() -> None:
    change, _, suite, _ = prepared()
    made = tuned_micro()

    def own(model: torch.nn.Module) -> list[float]:
        return [1.0, 0.0]

    with pytest.raises(ValueError, match="'rank 2 of Δ' occurs twice"):
        advise(change, own, suite, made.tokenizer, edits=[EDITS[3], EDITS[3]])
    with pytest.raises(ValueError, match="margin: -1"):
        advise(change, own, suite, made.tokenizer, edits=[], margin=-1)
