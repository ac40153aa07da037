"""What a task's items all begin with is read once: which beginnings, and that scores are HFLM's."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import LlamaForCausalLM, PreTrainedModel

from forgetting.evaluation import likelihood
from forgetting.evaluation.lm import Prepared, SharedContextLM
from forgetting.evaluation.packing import TokenSequence
from forgetting.evaluation.prefix import MIN_GROUPS, find_prefixes
from forgetting.evaluation.prompting import Prompt
from forgetting.evaluation.suite import load_suite
from forgetting.models import load_model
from tests.evaluation.test_lm import MODELS, TOKENIZER, hflm, multiple_choice, request, sharp, windowed_llama, words

SHOTS = words(random.Random(9), 24)


def with_shots(items: int) -> list[Instance]:
    """Items of one task behind the same 24 tokens, with choices of one token and of several, some equal contexts."""
    requests = []
    for one in multiple_choice(items, seed=5):
        context, choice = one.args
        whole = f"{SHOTS} {context}" if context else SHOTS
        requests.append(request("loglikelihood", (whole, f" {choice.strip()}"), one.doc_id, "task", one.idx))
    return requests


@contextmanager
def counted(model: PreTrainedModel) -> Iterator[list[int]]:
    """Slots of each forward pass."""
    seen: list[int] = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    try:
        yield seen
    finally:
        hook.remove()


def agree(found: list[tuple[float, bool]], expected: list[tuple[float, bool]], within: float = 1e-4) -> None:
    assert [score[1] for score in found] == [score[1] for score in expected]
    assert [score[0] for score in found] == pytest.approx([score[0] for score in expected], abs=within)


def test_which_beginnings_are_kept() -> None:
    shared = list(range(2, 20))
    sequences = [TokenSequence([*shared, 20 + k, 5], 1) for k in range(MIN_GROUPS)]
    groups = list(range(len(sequences)))
    (found,) = find_prefixes(sequences, groups, ["a"] * len(sequences))
    assert (found.ids, found.members) == (tuple(shared), tuple(range(MIN_GROUPS)))
    # Of one group fewer, of one item's choices, of no family, and of too few tokens: nothing.
    assert find_prefixes(sequences[1:], groups[1:], ["a"] * (MIN_GROUPS - 1)) == []
    assert find_prefixes(sequences, [0] * len(sequences), ["a"] * len(sequences)) == []
    assert find_prefixes(sequences, groups, [None] * len(sequences)) == []
    assert find_prefixes([TokenSequence(s.ids[4:], 1) for s in sequences], groups, ["a"] * len(sequences)) == []
    # One that begins otherwise, and one of which the beginning is less than half, go without.
    more = [*sequences, TokenSequence([9, *shared, 9], 1), TokenSequence([*shared, *range(40, 80)], 1)]
    (found,) = find_prefixes(more, range(len(more)), ["a"] * len(more))
    assert found.members == tuple(range(MIN_GROUPS))
    # The slot that predicts the first scored token is not in it.
    (found,) = find_prefixes([*sequences, TokenSequence([*shared, 5], 2)], [*groups, 99], ["a"] * (MIN_GROUPS + 1))
    assert found.ids == tuple(shared[:-2]) and len(found.members) == MIN_GROUPS + 1


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("max_length", [None, 27])
def test_scores_behind_the_same_shots_equal_hflms(name: str, max_length: int | None) -> None:
    model, requests = MODELS[name], with_shots(30)
    requests += [request("loglikelihood", (words(random.Random(k), 9), f" w{k + 2} w3"), k, "other") for k in range(9)]
    expected = hflm(model, max_length=max_length).loglikelihood(requests, disable_tqdm=True)
    prepared = SharedContextLM(model, TOKENIZER, batch_size=8, max_length=max_length).prepare(requests)
    likelihoods = prepared._choices[1]
    prefixes = likelihoods._prefixes
    assert len(prefixes) == 1 and 24 >= len(prefixes[0].ids) >= 23  # an item without context begins within the shots
    prepared.score(model)
    with counted(model) as slots:
        agree(prepared.score(model), expected)
    assert likelihoods._way(model, 8) == "shared"
    if max_length is None:
        assert len(prefixes[0].members) == len(requests) - 9
        assert sum(slots) < 0.6 * sum(batch.input_ids.numel() for batch in likelihoods._batches("packed", 8))
    else:
        assert len(prefixes[0].members) < len(requests) - 9  # what lost its beginning goes without


class KeepsNothing(LlamaForCausalLM):
    """Returns no keys and values, whatever is asked."""

    def forward(self, *args, **kwargs):  # type: ignore[no-untyped-def, override]
        output = super().forward(*args, **kwargs)
        output.past_key_values = None
        return output


class ForgetsPositions(LlamaForCausalLM):
    """Begins to count at 0 behind what was read before."""

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, **kwargs):  # type: ignore[no-untyped-def, override]
        if past_key_values is not None:
            position_ids = position_ids - past_key_values.get_seq_length()
        return super().forward(input_ids, attention_mask, position_ids, past_key_values, **kwargs)


@pytest.mark.parametrize("cls", [KeepsNothing, ForgetsPositions])
def test_a_model_that_cannot_go_on_reads_every_item_whole(
    cls: type[LlamaForCausalLM], caplog: pytest.LogCaptureFixture
) -> None:
    model = cls(MODELS["llama"].config).eval()  # type: ignore[arg-type]
    model.load_state_dict(MODELS["llama"].state_dict())
    requests = with_shots(20)
    lm = SharedContextLM(model, TOKENIZER, batch_size=8)
    agree(lm.loglikelihood(requests), SharedContextLM(MODELS["llama"], TOKENIZER, batch_size=8).loglikelihood(requests))
    lm.loglikelihood(requests)
    assert caplog.text.count(f"{cls.__name__} cannot continue what was read before") == 1
    assert likelihood._honours_masks[model]["sdpa"][0]


def test_a_sliding_window_is_honoured() -> None:
    model, requests = sharp(windowed_llama(16)), with_shots(20)
    agree(
        SharedContextLM(model, TOKENIZER, batch_size=8).loglikelihood(requests),
        hflm(model).loglikelihood(requests, disable_tqdm=True),
    )


def test_the_embedded_model_at_five_fixed_shots_scores_as_hflm_does() -> None:
    loaded = load_model("micro")
    model, tokenizer = loaded.model.eval(), loaded.tokenizer
    suite = load_suite(["micro"], limit=MIN_GROUPS, prompt=Prompt(shots=5, fixed=True))
    assert len({request.args[0].rpartition("\n\n")[0] for request in suite.requests}) == 8  # the shots of eight tasks
    expected = HFLM(model, tokenizer=tokenizer, batch_size=32, device="cpu").loglikelihood(
        list(suite.requests), disable_tqdm=True
    )
    suite.responses(model, tokenizer, 32)
    with counted(model) as slots:
        found = suite.responses(model, tokenizer, 32)
    agree(found, expected, 1e-3)  # type: ignore[arg-type]
    theirs = [len(tokenizer("".join(request.args))["input_ids"]) - 1 for request in suite.requests]
    assert sum(slots) < sum(theirs) / 5, "the shots were read again"
    values = [item for score in suite.score(found).values() for item in score.items]
    assert values == [item for score in suite.score(expected).values() for item in score.items]


def test_the_embedded_suite_without_shots_is_packed_as_before() -> None:
    tokenizer = load_model("micro").tokenizer
    requests = load_suite(["micro"], limit=50).requests
    assert Prepared(requests, tokenizer, batch_size=64, max_length=256)._choices[1]._prefixes == []
