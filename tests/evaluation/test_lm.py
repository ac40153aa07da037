"""SharedContextLM against lm-eval's HFLM, and against itself under other batch sizes."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, PreTrainedModel

from forgetting.errors import UsageError
from forgetting.evaluation import likelihood
from forgetting.evaluation.lm import Prepared, SharedContextLM
from forgetting.evaluation.packing import TokenSequence, make_batches
from tests.models_for_tests import tiny_gpt2, tiny_llama, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def sharp(model: PreTrainedModel) -> PreTrainedModel:
    """Scale random weights up, so that tokens depend on each other by far more than a tolerance."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8)
    return model


MODELS = {"llama": sharp(tiny_llama()), "gpt2": sharp(tiny_gpt2())}


def words(rng: random.Random, n: int) -> str:
    return " ".join(f"w{rng.randrange(2, 32)}" for _ in range(n))


def request(kind: str, args: tuple, doc: int | None = None, task: str | None = None, idx: int = 0) -> Instance:
    return Instance(request_type=kind, doc={}, arguments=args, idx=idx, metadata=(task, doc, 1))


def multiple_choice(items: int, seed: int = 0) -> list[Instance]:
    """Contexts with single-token choices, long ones, ones that begin alike, prefixes of each other, none."""
    rng = random.Random(seed)
    requests = []
    for item in range(items):
        context = words(rng, rng.randrange(1, 9)) if item % 7 else ""
        start = words(rng, 2)
        choices = [
            [words(rng, 1) for _ in range(3)],
            [words(rng, rng.randrange(1, 6)) for _ in range(4)],
            [f"{start} {words(rng, k)}" for k in (1, 2, 3)],
            [start, f"{start} {words(rng, 1)}", f"{start} {words(rng, 3)}"],
        ][item % 4]
        requests += [
            request("loglikelihood", (context, f" {choice}" if context else choice), item, "task", idx)
            for idx, choice in enumerate(choices)
        ]
    return requests


def hflm(model: PreTrainedModel, batch_size: int = 8, max_length: int | None = None) -> HFLM:
    return HFLM(model, tokenizer=TOKENIZER, batch_size=batch_size, max_length=max_length, device="cpu")


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("max_length", [None, 6])
def test_loglikelihoods_equal_hflms(name: str, max_length: int | None) -> None:
    model, requests = MODELS[name], multiple_choice(40)
    for item in range(3):
        best = int(model(torch.tensor([[item + 2]])).logits[0, -1].argmax())
        requests += [request("loglikelihood", (f"w{item + 2}", f" w{token}"), item, "greedy") for token in (best, 9)]
    expected = hflm(model, max_length=max_length).loglikelihood(requests, disable_tqdm=True)
    prepared = SharedContextLM(model, TOKENIZER, batch_size=8, max_length=max_length).prepare(requests)
    assert any(batch.ends is not None for batch in prepared._choices[1]._batches("packed", 8))
    scores = prepared.score(model)
    assert likelihood._honours_masks[model]["sdpa"][0]
    assert [score[1] for score in scores] == [greedy for _, greedy in expected]
    assert any(greedy for _, greedy in expected)
    assert [score[0] for score in scores] == pytest.approx([log_prob for log_prob, _ in expected], abs=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_rolling_equals_hflms_and_each_token_counts_once(name: str) -> None:
    rng = random.Random(1)
    requests = [request("loglikelihood_rolling", (words(rng, n),)) for n in (1, 5, 9, 10, 11, 40)]
    expected = hflm(MODELS[name], max_length=10).loglikelihood_rolling(requests, disable_tqdm=True)
    scores = SharedContextLM(MODELS[name], TOKENIZER, batch_size=3, max_length=10).loglikelihood_rolling(requests)
    assert scores == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_generations_equal_hflms(name: str) -> None:
    rng = random.Random(2)
    options = [{"until": ["w7"], "max_gen_toks": 12}, {"until": [], "max_gen_toks": 5, "do_sample": False}]
    requests = [request("generate_until", (words(rng, 1 + k % 6), options[k % 2])) for k in range(20)]
    requests.append(request("generate_until", (words(rng, 70), options[0])))
    expected = hflm(MODELS[name]).generate_until(requests, disable_tqdm=True)
    assert SharedContextLM(MODELS[name], TOKENIZER, batch_size=4).generate_until(requests) == expected
    assert len(set(expected)) > 3


@pytest.mark.parametrize("name", MODELS)
def test_scores_do_not_depend_on_batch_size_nor_on_the_order_of_requests(name: str) -> None:
    model, requests = MODELS[name], multiple_choice(30, seed=3)
    expected = SharedContextLM(model, TOKENIZER, batch_size=1).loglikelihood(requests)
    order = list(range(len(requests)))
    random.Random(4).shuffle(order)
    for batch_size in (2, 7, 500):
        lm = SharedContextLM(model, TOKENIZER, batch_size=batch_size)
        shuffled = lm.loglikelihood([requests[k] for k in order])
        for k, score in zip(order, shuffled, strict=True):
            assert score == (pytest.approx(expected[k][0], abs=1e-4), expected[k][1])
        assert lm.loglikelihood(requests) == lm.loglikelihood(requests)


def test_packed_tries_compute_each_shared_slot_once_and_hide_siblings() -> None:
    sequences = [TokenSequence(ids, 2) for ids in ([5, 6, 7, 8], [5, 6, 7, 9], [5, 6, 2, 3], [5, 6, 2], [4, 6, 1])]
    tree, plain = make_batches(sequences, [0] * 5, batch_size=8)
    # [5, 6, 7] serves two sequences; 2 branches off after 6; the input of the fourth, [5, 6], is a prefix.
    assert tree.input_ids.tolist() == [[5, 6, 2, 7]]
    assert tree.depths is not None and tree.depths.tolist() == [[0, 1, 2, 2]]
    visible = tree.mask(torch.float32, torch.device("cpu"))[0, 0] == 0
    assert visible.int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 1]]
    assert plain.input_ids.tolist() == [[4, 6]] and plain.ends is None
    tokens = {int(k): int(token) for k, token in zip(tree.token_index, tree.token_id, strict=True)}
    assert tokens == {0: 7, 1: 8, 2: 7, 3: 9, 4: 2, 5: 3, 6: 6, 7: 2}


def test_what_shares_little_gets_its_own_row() -> None:
    sequences = [TokenSequence([5, 6, 7, 8, 9], 1), TokenSequence([5, 2, 3, 4, 9], 1), TokenSequence([5, 6, 3, 9], 1)]
    batches = make_batches(sequences, [0] * 3, batch_size=8)
    rows = sorted(row for batch in batches for row in batch.input_ids.tolist())
    assert rows == [[5, 2, 3, 4], [5, 6, 3, 7, 8]]  # a quarter is shared by the second, two thirds by the third


class IgnoresMasks(LlamaForCausalLM):
    """Attends causally whatever the mask: choices see each other."""

    def forward(self, input_ids=None, attention_mask=None, **kwargs):  # type: ignore[no-untyped-def, override]
        return super().forward(input_ids, **kwargs)


class RefusesMasks(LlamaForCausalLM):
    """Takes no mask, no positions and no logits_to_keep."""

    def forward(self, input_ids=None, use_cache=None):  # type: ignore[no-untyped-def, override]
        return super().forward(input_ids, use_cache=use_cache)


@pytest.mark.parametrize("cls", [IgnoresMasks, RefusesMasks])
def test_an_architecture_without_4d_masks_is_scored_plainly(
    cls: type[LlamaForCausalLM], caplog: pytest.LogCaptureFixture
) -> None:
    config: LlamaConfig = MODELS["llama"].config  # type: ignore[assignment]
    model = cls(config).eval()
    model.load_state_dict(MODELS["llama"].state_dict())
    requests = multiple_choice(24)
    scores = SharedContextLM(model, TOKENIZER, batch_size=8).loglikelihood(requests)
    expected = SharedContextLM(MODELS["llama"], TOKENIZER, batch_size=8).loglikelihood(requests)
    assert [s[0] for s in scores] == pytest.approx([e[0] for e in expected], abs=1e-4)
    assert cls.__name__ in caplog.text


def test_rows_longer_than_those_that_were_checked_are_checked_again() -> None:
    # A window of 4 tokens is not honoured under a 4D mask: rows within it agree, longer ones do not.
    model = sharp(windowed_llama(4))
    short = [request("loglikelihood", ("w2", f" w{k} w{k + 1}"), 0, "short", k) for k in (3, 5)]
    long = [request("loglikelihood", (words(random.Random(0), 9), f" w{k} w{k + 1}"), 0, "long", k) for k in (3, 5)]
    for requests, honoured in ((short, True), (long, False), (short, False)):
        scores = SharedContextLM(model, TOKENIZER).loglikelihood(requests)
        expected = hflm(model).loglikelihood(requests, disable_tqdm=True)
        assert [s[0] for s in scores] == pytest.approx([e[0] for e in expected], abs=1e-4)
        assert likelihood._honours_masks[model]["sdpa"][0] == honoured


def windowed_llama(window: int) -> PreTrainedModel:
    config = MistralConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        sliding_window=window,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    return MistralForCausalLM(config).eval()


def test_requests_are_prepared_once_for_many_models() -> None:
    requests = multiple_choice(12)
    requests.append(request("generate_until", ("w3 w4", {"max_gen_toks": 3})))
    requests.insert(0, request("loglikelihood_rolling", ("w3 w4 w5",)))
    prepared = Prepared(requests, TOKENIZER, batch_size=4, max_length=64)
    for model in MODELS.values():
        scores = prepared.score(model)
        assert isinstance(scores[0], float) and isinstance(scores[-1], str)
        alone = SharedContextLM(model, TOKENIZER).loglikelihood(requests[1:-1])
        assert [s[0] for s in scores[1:-1]] == pytest.approx([a[0] for a in alone], abs=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_a_peft_model_is_scored_with_its_adapter(name: str) -> None:
    from peft import LoraConfig, get_peft_model

    model = copy.deepcopy(MODELS[name])
    target = ["q_proj", "v_proj"] if name == "llama" else ["c_attn"]
    config = LoraConfig(r=2, target_modules=target, fan_in_fan_out=name == "gpt2", task_type="CAUSAL_LM")
    wrapped = get_peft_model(model, config)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter_name, parameter in wrapped.named_parameters():
            if "lora_B" in parameter_name:
                parameter.normal_()
    assert likelihood.takes_logits_to_keep(wrapped)
    requests = multiple_choice(12)
    with_adapter = SharedContextLM(wrapped, TOKENIZER).loglikelihood(requests)
    assert likelihood._honours_masks[wrapped]["sdpa"][0]
    with wrapped.disable_adapter():
        without = SharedContextLM(wrapped, TOKENIZER).loglikelihood(requests)
    base = SharedContextLM(MODELS[name], TOKENIZER).loglikelihood(requests)
    assert [w[0] for w in without] == pytest.approx([b[0] for b in base], abs=1e-4)
    merged = SharedContextLM(wrapped.merge_and_unload(), TOKENIZER).loglikelihood(requests)
    assert [w[0] for w in with_adapter] == pytest.approx([m[0] for m in merged], abs=1e-3)
    assert max(abs(w[0] - b[0]) for w, b in zip(with_adapter, base, strict=True)) > 0.1


def test_the_model_is_left_in_its_modes_and_without_gradients() -> None:
    model = tiny_llama()
    model.train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    SharedContextLM(model, TOKENIZER).loglikelihood(multiple_choice(4))
    assert [module.training for module in model.modules()] == modes
    assert torch.is_grad_enabled() and all(p.grad is None for p in model.parameters())


def test_requests_that_cannot_be_scored_are_named() -> None:
    lm = SharedContextLM(MODELS["llama"], TOKENIZER, max_length=4)
    with pytest.raises(UsageError, match="completion ''"):
        lm.loglikelihood([request("loglikelihood", ("w3", ""))])
    with pytest.raises(UsageError, match="max_length 4: a continuation has 5 tokens"):
        lm.loglikelihood([request("loglikelihood", ("w3", " w4 w5 w6 w7 w8"))])
    with pytest.raises(UsageError, match="max_new_tokens 4: leaves no room"):
        lm.generate_until([request("generate_until", ("w3", {"max_gen_toks": 4}))])
    with pytest.raises(UsageError, match="the task samples"):
        lm.generate_until([request("generate_until", ("w3", {"max_gen_toks": 2, "temperature": 0.7}))])
