"""Drift against brute force in float64, against the models' own loss, and against weights changed by hand."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from transformers import PreTrainedModel

from forgetting.errors import UsageError
from forgetting.evaluation.drift import DriftMeter, fisher_distance, weight_change
from forgetting.mitigations import build_mitigation
from forgetting.tasks.task import Example
from tests.evaluation.test_encoding import with_bos
from tests.evaluation.test_lm import TOKENIZER, sharp
from tests.mitigations.test_conformance import context
from tests.models_for_tests import tiny_gpt2, tiny_llama

DOCUMENTS = ["w2 w3 w4 w5 w6 w7 w8 w9 w10 w11 w12", "w13", "w14 w15 w16", "w17 w18 w19 w20 w21"]


def pair(dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedModel]:
    return sharp(tiny_llama(seed=0)).to(dtype), sharp(tiny_llama(seed=1)).to(dtype)


def meter(base: PreTrainedModel, **changes: object) -> DriftMeter:
    options = {"max_length": 5, "max_tokens": 1000, "batch_size": 2, **changes}
    return DriftMeter(base, TOKENIZER, {"text": DOCUMENTS}, **options)  # type: ignore[arg-type]


def brute_force(
    base: PreTrainedModel, model: PreTrainedModel, documents: list[list[int]], max_length: int
) -> tuple[float, float, float, float, int]:
    """Sums of ce, both KLs and total variation, a token at a time; a window begins every ``max_length`` − 1 tokens."""
    ce = forward = reverse = variation = 0.0
    tokens = 0
    for ids in documents:
        for k in range(1, len(ids)):
            start = (k - 1) // (max_length - 1) * (max_length - 1)
            context = torch.tensor([ids[start:k]])
            p, q = (m(context).logits[0, -1].softmax(-1) for m in (base, model))
            ce -= math.log(q[ids[k]])
            forward += float(sum(p[v] * math.log(p[v] / q[v]) for v in range(len(p))))
            reverse += float(sum(q[v] * math.log(q[v] / p[v]) for v in range(len(p))))
            variation += float(sum(abs(p[v] - q[v]) for v in range(len(p)))) / 2
            tokens += 1
    return ce, forward, reverse, variation, tokens


def test_drift_equals_brute_force_in_float64() -> None:
    base, model = pair(torch.float64)
    ids = [TOKENIZER(document)["input_ids"] for document in DOCUMENTS]
    with torch.no_grad():
        ce, forward, reverse, variation, tokens = brute_force(base, model, ids, max_length=5)
    drift = meter(base).measure(model)["text"]
    assert drift.tokens == tokens == 10 + 0 + 2 + 4
    assert drift.ce == pytest.approx(ce / tokens, rel=1e-12)
    assert drift.kl_forward == pytest.approx(forward / tokens, rel=1e-12)
    assert drift.kl_reverse == pytest.approx(reverse / tokens, rel=1e-12)
    assert drift.total_variation == pytest.approx(variation / tokens, rel=1e-12)
    assert abs(drift.kl_forward - drift.kl_reverse) > 1e-3
    # bytes of what is predicted: each document but its first word; the one-word document has none
    predicted = sum(len(document) - len(document.split()[0]) for document in DOCUMENTS if " " in document)
    assert drift.bpb == pytest.approx(ce / math.log(2) / predicted, rel=1e-12)


def test_ce_is_the_models_own_loss_where_a_document_fits() -> None:
    base, model = pair(torch.float32)
    ids = torch.tensor([TOKENIZER(DOCUMENTS[0])["input_ids"]])
    loss = model(ids, labels=ids).loss.item()
    drift = DriftMeter(base, TOKENIZER, {"text": DOCUMENTS[:1]}, 64, 1000, 8).measure(model)
    assert drift["text"].ce == pytest.approx(loss, abs=1e-5)


def test_the_base_model_has_no_drift_at_all() -> None:
    base, _ = pair(torch.float32)
    for model in (base, copy.deepcopy(base)):
        drift = meter(base).measure(model)["text"]
        assert (drift.kl_forward, drift.kl_reverse, drift.total_variation) == (0.0, 0.0, 0.0)
        assert drift.ce > 0


def test_max_tokens_keeps_the_first_ones_and_batch_size_changes_nothing() -> None:
    base, model = pair(torch.float64)
    with torch.no_grad():
        ce, *_, tokens = brute_force(base, model, [TOKENIZER(DOCUMENTS[0])["input_ids"][:8]], max_length=5)
    drift = meter(base, max_tokens=7).measure(model)["text"]
    assert drift.tokens == tokens == 7
    assert drift.ce == pytest.approx(ce / 7, rel=1e-12)
    assert drift.bpb == pytest.approx(ce / math.log(2) / len(" w3 w4 w5 w6 w7 w8 w9"), rel=1e-12)
    one, many = (meter(base, batch_size=size).measure(model)["text"] for size in (1, 100))
    assert one.kl_forward == pytest.approx(many.kl_forward, rel=1e-12)


def test_with_a_bos_the_first_token_is_predicted_too() -> None:
    base, model = pair(torch.float32)
    drift = DriftMeter(base, with_bos(), {"text": ["w2 w3 w4"]}, 64, 1000, 8).measure(model)["text"]
    loss = model(torch.tensor([[0, 2, 3, 4]]), labels=torch.tensor([[0, 2, 3, 4]])).loss.item()
    assert drift.tokens == 3
    assert drift.ce == pytest.approx(loss, abs=1e-5)
    assert drift.bpb == pytest.approx(drift.ce * 3 / math.log(2) / len("w2 w3 w4"))


def test_a_new_task_is_measured_on_its_prompts_and_on_its_answers() -> None:
    base, model = pair(torch.float64)
    drift = meter(base).measure(model, [Example("w2 w3 w4", " w29"), Example("w5", " w30 w31")])
    assert set(drift) == {"text", "task_inputs", "task_answers"}
    with torch.no_grad():
        inputs = brute_force(base, model, [[2, 3, 4]], max_length=5)
        # what a document has beyond its prompt's predictions is its answer's
        wholes = brute_force(base, model, [[2, 3, 4, 29], [5, 30, 31]], max_length=5)
    answers = [whole - part for whole, part in zip(wholes, inputs, strict=True)]
    expected = (("task_inputs", inputs, 2), ("task_answers", answers, 3))
    for name, (ce, forward, reverse, variation, tokens), count in expected:
        assert drift[name].tokens == tokens == count
        assert drift[name].ce == pytest.approx(ce / count, rel=1e-12)
        assert drift[name].kl_forward == pytest.approx(forward / count, rel=1e-12)
        assert drift[name].kl_reverse == pytest.approx(reverse / count, rel=1e-12)
        assert drift[name].total_variation == pytest.approx(variation / count, rel=1e-12)
    assert drift["task_answers"].bpb == pytest.approx(answers[0] / math.log(2) / len(" w29 w30 w31"), rel=1e-12)
    assert set(meter(base).measure(model, [Example("w5", " w31")])) == {"text", "task_answers"}


def test_answers_keep_the_end_of_a_long_prompt_and_the_first_max_tokens() -> None:
    base, model = pair(torch.float64)
    long = Example("w2 w3 w4 w5 w6 w7", " w8 w9")
    drift = meter(base, max_tokens=3).measure(model, [long, Example("w5", " w30 w31"), Example("w2", " w3")])
    with torch.no_grad():
        whole = brute_force(base, model, [[5, 6, 7, 8, 9], [5, 30]], max_length=5)  # the last 5 tokens fit
        prompt = brute_force(base, model, [[5, 6, 7]], max_length=5)
    assert drift["task_answers"].tokens == 3
    assert drift["task_answers"].ce == pytest.approx((whole[0] - prompt[0]) / 3, rel=1e-12)
    assert drift["task_answers"].kl_forward == pytest.approx((whole[1] - prompt[1]) / 3, rel=1e-12)


def test_a_text_without_tokens_to_predict_is_named() -> None:
    with pytest.raises(UsageError, match="held-out text 'empty'"):
        DriftMeter(tiny_llama(), TOKENIZER, {"empty": ["w2", ""]}, 8, 10, 2)


@pytest.mark.parametrize(
    ("model", "layers"),
    [
        (tiny_llama(tied=False), ["embeddings", "block 0", "block 1", "final norm", "head"]),
        (tiny_llama(tied=True), ["embeddings", "block 0", "block 1", "final norm"]),
        (tiny_gpt2(), ["embeddings", "block 0", "block 1", "final norm"]),
    ],
    ids=["llama", "tied", "gpt2"],
)
def test_weight_change_is_relative_and_by_layer(model: PreTrainedModel, layers: list[str]) -> None:
    assert weight_change(model, model) == dict.fromkeys(layers, 0.0)
    tuned = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.mul_(1.5)
    assert weight_change(model, tuned) == pytest.approx(dict.fromkeys(layers, 0.5))
    tuned = copy.deepcopy(model)
    block = next(p for name, p in tuned.named_parameters() if ".1." in name)
    base_block = [p for name, p in model.named_parameters() if ".1." in name]
    with torch.no_grad():
        block.flatten()[0] += 3
    norm = math.sqrt(sum(float(p.double().square().sum()) for p in base_block))
    assert weight_change(model, tuned) == pytest.approx({**dict.fromkeys(layers, 0.0), "block 1": 3 / norm})


def test_the_fisher_distance_is_half_the_quadratic_form_and_merges_adapters() -> None:
    from peft import LoraConfig, get_peft_model

    from forgetting.fisher import diagonal_fisher

    base, model = pair(torch.float64)
    ids = torch.tensor([[2, 3, 4, 5], [6, 7, 8, 9]])
    fisher = diagonal_fisher(base, [{"input_ids": ids, "labels": ids}], estimator="empirical")
    moved = {name: p.detach() for name, p in model.named_parameters()}
    pulls = [fisher.values[name] * (moved[name] - p.detach()).square() for name, p in base.named_parameters()]
    by_hand = 0.5 * sum(float(pull.sum()) for pull in pulls) / 3  # of 4 tokens, 3 are predicted
    assert fisher_distance(base, model, fisher) == pytest.approx(by_hand, rel=1e-6)  # F is in fp32
    assert fisher_distance(base, base, fisher) == 0
    lora = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    wrapped = get_peft_model(copy.deepcopy(base), lora)
    distance = fisher_distance(base, wrapped, fisher)
    assert distance > 0
    assert distance == pytest.approx(fisher_distance(base, wrapped.merge_and_unload(), fisher), rel=1e-9)


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_an_active_adapter_counts_as_what_merging_it_would_change(make: type) -> None:
    from peft import LoraConfig, get_peft_model

    base = make()
    wrapped = get_peft_model(make(), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    adapted = weight_change(base, wrapped)
    with wrapped.disable_adapter():
        assert set(weight_change(base, wrapped).values()) == {0.0}
    assert adapted["block 0"] > 0.1 and adapted["embeddings"] == 0
    assert adapted == pytest.approx(weight_change(base, wrapped.merge_and_unload()), rel=1e-6)


@pytest.mark.parametrize("adapter", ["lora:r=2,dora=true", "lora:r=2,init=pissa", "ia3", "osf"])
def test_adapters_that_are_no_sum_count_as_what_merging_them_would_change(adapter: str) -> None:
    base = tiny_llama()
    wrapped = build_mitigation(adapter).setup(tiny_llama(), context())
    assert weight_change(base, wrapped) == pytest.approx(weight_change(base, base), abs=1e-6)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    before = {name: p.detach().clone() for name, p in wrapped.named_parameters()}
    adapted = weight_change(base, wrapped)
    assert all(torch.equal(p, before[name]) for name, p in wrapped.named_parameters())
    assert adapted["block 0"] > 0.02 and adapted["embeddings"] == 0
    assert adapted == pytest.approx(weight_change(base, wrapped.merge_and_unload()), rel=1e-6)  # type: ignore[operator]
