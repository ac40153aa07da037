"""The audit's weight change: sums of the table, and the quadratic form beside the KL it foretells."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest
import torch

from forgetting.analysis.weight_change import effective_rank, stable_rank
from forgetting.audit.drift import audit_drift
from forgetting.audit.edits import Change, Edit
from forgetting.audit.weights import audit_weights, general_fisher
from forgetting.evaluation.drift import DriftMeter, weight_change
from forgetting.models import untied_head
from tests.audit.tuned import tuned_micro


def test_layers_matrices_and_the_kl_of_a_small_change() -> None:
    made = tuned_micro()
    change = Change(made.base, made.model)
    fisher = general_fisher(made.base, made.tokenizer, made.documents, max_length=48, max_examples=40)
    watch = DriftMeter(made.base, made.tokenizer, {"text": made.documents}, 48, 10_000, 16)
    ratios = []
    for alpha in (1.0, 0.1):
        with change.at(Edit("interpolation", alpha)):
            kl = audit_drift(watch, change.model)["text"].mean
            found = audit_weights(made.base, change.model, fisher=fisher, measured_kl=kl)
        deltas = {n: alpha * (change.tuned[n] - change.base[n]).double() for n in change.base}
        by_hand = sum(float((fisher.values[n].double() * d**2).sum()) for n, d in deltas.items()) / 2
        assert found.predicted_kl == pytest.approx(by_hand * fisher.examples / fisher.tokens, rel=1e-3)
        assert sum(layer.predicted_kl or 0 for layer in found.layers) == pytest.approx(found.predicted_kl, rel=1e-9)
        assert found.ratio == pytest.approx(found.predicted_kl / kl)
        ratios.append(found.ratio)
    assert 0.1 < ratios[1] < 10, "a diagonal of a small change has the right order of magnitude"

    whole = audit_weights(made.base, made.model)
    assert whole.predicted_kl is whole.ratio is whole.measured_kl is None
    recorded = weight_change(made.base, made.model)
    assert {layer.layer: layer.relative for layer in whole.layers} == pytest.approx(recorded, rel=1e-9)
    assert sum(layer.share for layer in whole.layers) == pytest.approx(1)
    norms = sum(float(v.double().square().sum()) for v in change.base.values())
    moved = sum(float((change.tuned[n] - v).double().square().sum()) for n, v in change.base.items())
    assert whole.relative == pytest.approx((moved / norms) ** 0.5, rel=1e-5)
    names = [n for n, v in change.base.items() if v.ndim == 2 and not torch.equal(v, change.tuned[n])]
    assert len(whole.matrices) == len(names)
    for name, matrix in list(zip(names, whole.matrices, strict=True))[::7]:
        delta = change.tuned[name].double() - change.base[name].double()
        assert matrix.effective_rank == pytest.approx(effective_rank(delta), rel=1e-6)
        assert matrix.stable_rank == pytest.approx(stable_rank(delta), rel=1e-6)
        assert matrix.layer == change.layers[name] and matrix.kind in name
    json.dumps(dataclasses.asdict(whole))


def test_an_untied_head_leaves_no_sum() -> None:
    made = tuned_micro()
    fisher = general_fisher(made.base, made.tokenizer, made.documents, max_length=48, max_examples=4)
    untied = copy.deepcopy(made.base)
    untied_head(untied)
    with torch.no_grad():
        untied.lm_head.weight += 0.1
    found = audit_weights(made.base, untied, fisher=fisher, measured_kl=1.0)
    parts = {layer.layer: layer.predicted_kl for layer in found.layers}
    assert parts.pop("head") is None and set(parts.values()) == {0.0}
    assert found.predicted_kl is None and found.ratio is None


def test_an_untouched_copy_did_not_move() -> None:
    made = tuned_micro()
    found = audit_weights(made.base, made.base, measured_kl=0.0)
    assert found.relative == 0 and not found.matrices and found.ratio is None
    assert all(layer.change == 0 and layer.share == 0 for layer in found.layers)
