"""Batches by slots: halved while memory runs out, and never where a number of sequences was given."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, T5Config

from forgetting.errors import UsageError
from forgetting.evaluation.budget import CPU_SLOTS, GPU_SLOTS, Slots, fitting, found_budget, parse_batch_size
from forgetting.evaluation.lm import Prepared, SharedContextLM
from forgetting.evaluation.packing import TokenSequence, make_batches
from forgetting.evaluation.text_to_text import TextToTextReader
from tests.evaluation.test_lm import MODELS, TOKENIZER, multiple_choice, request


class Small(LlamaForCausalLM):
    """Has memory for so many slots per pass."""

    memory = 30

    def forward(self, input_ids=None, **kwargs):  # type: ignore[no-untyped-def, override]
        if input_ids.numel() > self.memory:
            raise torch.OutOfMemoryError(f"CUDA out of memory: {input_ids.numel()} slots")
        return super().forward(input_ids, **kwargs)


def small() -> Small:
    model = Small(MODELS["llama"].config).eval()  # type: ignore[arg-type]
    model.load_state_dict(MODELS["llama"].state_dict())
    return model


def test_a_batch_has_no_more_slots() -> None:
    sequences = [TokenSequence(list(range(2, 2 + n)), 1) for n in (11, 11, 11, 5, 5, 5, 3, 40)]
    batches = make_batches(sequences, range(8), Slots(20))
    assert [tuple(batch.input_ids.shape) for batch in batches] == [(1, 39), (2, 10), (2, 10), (3, 4)]
    assert {index for batch in batches for index in batch.members} == set(range(8))


def test_memory_that_runs_out_halves_the_slots_and_changes_no_score() -> None:
    requests = multiple_choice(30)
    requests += [request("loglikelihood_rolling", ("w3 w4 w5 w6 w7",))] * 3
    requests += [request("generate_until", (f"w{k + 2} w3", {"max_gen_toks": 3})) for k in range(9)]
    expected = Prepared(requests, TOKENIZER, batch_size=4, max_length=20).score(MODELS["llama"])
    prepared = Prepared(requests, TOKENIZER, batch_size=Slots(512), max_length=20)
    model = small()
    for _ in range(2):
        scores = prepared.score(model)
        assert [type(score) for score in scores] == [type(score) for score in expected]
        for score, other in zip(scores, expected, strict=True):
            if isinstance(score, str):
                assert score == other
            else:
                assert score == pytest.approx(other, abs=1e-4)
    size = prepared._choices[1].batch_size  # type: ignore[attr-defined]
    assert size == Slots(32)  # of 512; a row fills them seldom


def test_what_cannot_be_made_smaller_is_an_error_and_a_number_of_sequences_stands() -> None:
    model, requests = small(), [request("loglikelihood", (" ".join(["w3"] * 40), " w4"))]
    with pytest.raises(torch.OutOfMemoryError):
        SharedContextLM(model, TOKENIZER, batch_size="auto").loglikelihood(requests)
    with pytest.raises(torch.OutOfMemoryError):
        SharedContextLM(model, TOKENIZER, batch_size=64).loglikelihood(multiple_choice(30))
    tried: list[Slots] = []

    def compute(size: object) -> int:
        assert isinstance(size, Slots)
        tried.append(size)
        raise MemoryError

    with pytest.raises(MemoryError):
        fitting(Slots(100), 20, compute)
    assert [size.n for size in tried] == [100, 50, 25, 20]
    with pytest.raises(ZeroDivisionError):  # no other error is taken for one of memory
        fitting(Slots(100), 20, lambda size: 1 // 0)


def test_auto_begins_with_what_the_device_takes() -> None:
    assert SharedContextLM(MODELS["llama"], TOKENIZER, batch_size="auto").batch_size == Slots(CPU_SLOTS)
    assert found_budget(torch.device("cuda")) == Slots(GPU_SLOTS)
    assert SharedContextLM(MODELS["llama"], TOKENIZER).batch_size == 64
    assert parse_batch_size("auto") is None and parse_batch_size("8") == parse_batch_size(8) == 8
    for given in ("0", "-1", "many", "1.5", ""):
        with pytest.raises(UsageError, match=rf"batch_size '{given}': is neither a positive number .* nor 'auto'"):
            parse_batch_size(given)
    with pytest.raises(ValueError, match="only decoders take slots"):
        Prepared([], TOKENIZER, batch_size=Slots(8), max_length=8, reader=TextToTextReader(T5Config()))


def test_an_audit_takes_it(tmp_path: Path) -> None:
    from forgetting.audit.load import load_input
    from forgetting.audit.measure import measure, other_batch_size
    from tests.models_for_tests import save_tiny

    folder = str(save_tiny(tmp_path / "model"))
    given = load_input(folder, folder, suite=["micro_copying"], limit=2, batch_size="auto")
    assert given.slots == Slots(CPU_SLOTS) and given.batch_size == 64
    assert other_batch_size(given.slots) == Slots(CPU_SLOTS // 2) and other_batch_size(Slots(1)) == Slots(2)
    first, second = (measure(given.base, given.suite, size) for size in (given.slots, given.batch_size))
    assert [i.log_probs for i in first["micro_copying"].items] == [
        pytest.approx(i.log_probs, abs=1e-4) for i in second["micro_copying"].items
    ]
