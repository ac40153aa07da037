"""Token-wise drift against a brute force in float64, token by token; bits per byte against the chain rule."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from forgetting.audit.drift import SAMPLES, audit_drift, audit_meter, bits_per_byte, same_tokenizer, text_kl
from forgetting.errors import UsageError
from forgetting.evaluation.drift import TokenDrift
from forgetting.tasks.task import Example
from tests.audit.tuned import tuned_micro
from tests.evaluation.test_drift import DOCUMENTS, meter, pair
from tests.evaluation.test_lm import TOKENIZER


def test_every_number_is_the_brute_forces() -> None:
    base, model = pair(torch.float64)
    kl, p_seen, q_seen, same = [], [], [], []
    with torch.no_grad():
        for document in DOCUMENTS:
            ids = TOKENIZER(document)["input_ids"]
            for k in range(1, len(ids)):
                start = (k - 1) // 4 * 4  # windows of five tokens that overlap by one
                p, q = (m(torch.tensor([ids[start:k]])).logits[0, -1].softmax(-1) for m in (base, model))
                kl.append(float(sum(p[v] * math.log(p[v] / q[v]) for v in range(len(p)))))
                p_seen.append(float(p[ids[k]]))
                q_seen.append(float(q[ids[k]]))
                same.append(int(p.argmax()) == int(q.argmax()))
    found = audit_drift(meter(base), model)["text"]
    assert found.tokens == len(kl) == 16
    assert found.mean == pytest.approx(np.mean(kl), rel=1e-10)
    assert found.median == pytest.approx(np.median(kl), rel=1e-10)
    assert found.maximum == pytest.approx(max(kl), rel=1e-10)
    assert math.isnan(found.p99) and math.isnan(found.p999), "of 16 tokens there is no 99th percentile"
    assert found.same_top == np.mean(same)
    rms = math.sqrt(np.mean((np.array(q_seen) - np.array(p_seen)) ** 2))
    assert found.rms_delta_p == pytest.approx(rms, rel=1e-10)
    assert found.ce_base == pytest.approx(-np.log(p_seen).mean(), rel=1e-10)
    assert found.ce_tuned == pytest.approx(-np.log(q_seen).mean(), rel=1e-10)
    whole = meter(base).measure(model)["text"]
    assert found.bits_per_byte_tuned == pytest.approx(whole.bpb, rel=1e-10)
    assert found.mean == pytest.approx(whole.kl_forward, rel=1e-10)


def test_quantiles_where_there_are_tokens_enough() -> None:
    kl = np.random.default_rng(0).permutation(np.arange(1.0, 1002.0))
    zero = np.zeros(kl.size)
    found = text_kl(TokenDrift(kl, zero, zero, np.ones(kl.size, bool), 10))
    assert (found.median, found.p99, found.p999, found.maximum) == (501, 991, 1000, 1001)
    few = text_kl(TokenDrift(kl[:100], zero[:100], zero[:100], np.ones(100, bool), 10))
    assert not math.isnan(few.p99) and math.isnan(few.p999)
    with pytest.raises(ValueError, match="has no token"):
        text_kl(TokenDrift(kl[:0], kl[:0], kl[:0], np.ones(0, bool), 1))


def test_a_real_fine_tune_drifts_and_the_base_does_not() -> None:
    made = tuned_micro()
    watch = audit_meter(
        made.base,
        made.tokenizer,
        {"general text": made.documents},
        samples=8,
        max_length=48,
        max_tokens=400,
        batch_size=16,
    )
    found = audit_drift(watch, made.model, made.task.test[:20])
    assert set(found) == {"general text", SAMPLES, "task_inputs", "task_answers"}
    for text in found.values():
        assert 0 <= text.median <= text.maximum and 0 < text.mean <= text.maximum
        assert text.same_top < 1 and 0 < text.rms_delta_p < 1
    assert found["general text"].ce_tuned > found["general text"].ce_base
    assert found["task_answers"].ce_tuned < found["task_answers"].ce_base
    still = audit_drift(watch, made.base)["general text"]
    assert (still.mean, still.maximum, still.same_top, still.rms_delta_p) == (0, 0, 1, 0)


def test_outputs_beyond_the_tokenizers_do_not_count() -> None:
    base, _ = pair(torch.float64)
    longer = copy.deepcopy(base)
    longer.resize_token_embeddings(40)
    found = audit_drift(meter(base), longer)["text"]
    assert found.maximum == pytest.approx(0, abs=1e-12) and found.ce_tuned == pytest.approx(found.ce_base)


def test_a_meter_needs_a_text() -> None:
    base, _ = pair(torch.float32)
    with pytest.raises(UsageError, match="no general text and no samples"):
        audit_meter(base, TOKENIZER, {}, samples=0, max_length=8, max_tokens=10, batch_size=2)


def test_bits_per_byte_count_every_byte_whatever_the_tokenizer() -> None:
    base, model = pair(torch.float64)
    documents = ["w2 w3 w4 w5", "w6", "w7 w8"]
    found = bits_per_byte((base, TOKENIZER), (model, TOKENIZER), documents, max_length=64)
    totals = []
    with torch.no_grad():
        for each in (base, model):
            bits = []
            for document in documents:
                ids = torch.tensor([[TOKENIZER.eos_token_id, *TOKENIZER(document)["input_ids"]]])
                log_p = each(ids).logits[0, :-1].log_softmax(-1)
                bits.append(-float(log_p.gather(1, ids[0, 1:, None]).sum()) / math.log(2))
            totals.append(np.array(bits))
    size = sum(map(len, documents))
    assert found.bytes == size
    assert found.base == pytest.approx(totals[0].sum() / size, rel=1e-9)
    assert found.tuned == pytest.approx(totals[1].sum() / size, rel=1e-9)
    assert found.difference.mean == pytest.approx(found.tuned - found.base, rel=1e-9) and found.difference.n == 3
    with pytest.raises(UsageError, match="1 of them empty"):
        bits_per_byte((base, TOKENIZER), (model, TOKENIZER), ["w2", ""], max_length=64)


def test_tokenizers_are_the_same_or_not() -> None:
    made = tuned_micro()
    assert same_tokenizer(made.tokenizer, made.tokenizer, made.documents[:3])
    assert not same_tokenizer(made.tokenizer, TOKENIZER)


def test_examples_of_the_own_task_are_measured_after_their_prompts() -> None:
    base, model = pair(torch.float64)
    found = audit_drift(meter(base), model, [Example("w2 w3", " w4"), Example("w5", " w6 w7")])
    assert found["task_answers"].tokens == 3
    drift = meter(base).measure(model, [Example("w2 w3", " w4"), Example("w5", " w6 w7")])["task_answers"]
    assert found["task_answers"].mean == pytest.approx(drift.kl_forward, rel=1e-10)
