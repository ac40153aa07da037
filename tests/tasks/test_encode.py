"""Features, rows and batches, against losses and masks computed by hand."""

import pytest
import torch
from torch.nn.functional import cross_entropy, log_softmax

from forgetting.evaluation.encoding import encode_pair
from forgetting.tasks.encode import (
    PRETRAINING,
    TASK,
    Collator,
    ExampleDataset,
    encode,
    encode_examples,
    encode_text,
    encode_texts,
    pack,
)
from forgetting.tasks.task import Example
from tests.models_for_tests import tiny_gpt2, tiny_llama, tiny_tokenizer

EOS = 1


@pytest.fixture
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(params=["llama", "llama-eager", "gpt2", "gpt2-eager"])
def model(request):
    made = tiny_gpt2() if request.param.startswith("gpt2") else tiny_llama(tied=False)
    made.set_attn_implementation("eager" if request.param.endswith("eager") else "sdpa")
    return made.double()


def words(*numbers):
    return " ".join(f"w{n}" for n in numbers)


EXAMPLES = [
    Example(words(2, 3, 4), " " + words(5, 6)),
    Example(words(7), " " + words(8)),
    Example(words(9, 10, 11, 12), " " + words(13, 14, 15)),
    Example(words(16, 17), " " + words(18)),
]


def brute_force(model, feature):
    """Sum of -log p over the labelled tokens, each from its own forward pass over what precedes it."""
    total = torch.zeros((), dtype=torch.float64)
    for position, label in enumerate(feature["labels"]):
        if label != -100:
            assert label == feature["input_ids"][position]
            logits = model(input_ids=torch.tensor([feature["input_ids"][:position]])).logits[0, -1]
            total -= log_softmax(logits, -1)[label]
    return total


def summed_loss(model, batch):
    """Sum of the shifted loss over a batch, in the model's precision (transformers' own loss is float32)."""
    inputs = {k: batch[k] for k in ("input_ids", "attention_mask", "position_ids") if k in batch}
    logits = model(**inputs).logits[:, :-1]
    return cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum")


def test_completion_and_end_carry_loss_and_nothing_else(tokenizer):
    assert encode(tokenizer, EXAMPLES[0], 16) == {
        "input_ids": [2, 3, 4, 5, 6, EOS],
        "labels": [-100, -100, -100, 5, 6, EOS],
        "source": TASK,
        "truncated": 0,
    }


def test_without_an_end_token_none_is_added(tokenizer):
    tokenizer.eos_token = None
    assert encode(tokenizer, EXAMPLES[0], 16)["input_ids"] == [2, 3, 4, 5, 6]


def test_long_prompts_lose_their_beginning(tokenizer):
    assert encode(tokenizer, EXAMPLES[0], 6)["truncated"] == 0
    cut = encode(tokenizer, EXAMPLES[0], 5)
    assert cut["input_ids"] == [3, 4, 5, 6, EOS]
    assert cut["labels"] == [-100, -100, 5, 6, EOS] and cut["truncated"] == 1


def test_a_beginning_token_outlives_the_prompt(tokenizer):
    tokenizer.bos_token = "w31"
    example = Example("w31 " + EXAMPLES[0].prompt, EXAMPLES[0].completion)
    assert encode(tokenizer, example, 6)["input_ids"] == [31, 3, 4, 5, 6, EOS]
    assert encode(tokenizer, example, 4)["input_ids"] == [31, 5, 6, EOS]


def test_long_completions_lose_their_end(tokenizer):
    cut = encode(tokenizer, EXAMPLES[2], 3)
    assert cut["input_ids"] == [12, 13, 14] and cut["labels"] == [-100, 13, 14] and cut["truncated"] == 1


@pytest.mark.parametrize("max_length", [2, 3, 4, 5, 8, 64])
def test_never_longer_than_max_length_and_always_a_context(tokenizer, max_length):
    for feature in (
        *encode_examples(tokenizer, EXAMPLES, max_length),
        *encode_texts(tokenizer, [words(2), words(*range(2, 30))], max_length),
    ):
        assert len(feature["input_ids"]) == len(feature["labels"]) <= max_length
        assert feature["labels"][0] == -100 and feature["labels"][-1] != -100


def test_training_and_scoring_agree_on_the_boundary(real_data):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(real_data / "stories260K-hf")
    for example in (Example("Once upon a", " time"), Example("Say: ", "yes"), Example("A\nStance:", "\nup up")):
        context, completion = encode_pair(tokenizer, example.prompt, example.completion)
        feature = encode(tokenizer, example, 64)
        assert feature["input_ids"] == [*context, *completion, tokenizer.eos_token_id]
        assert [label for label in feature["labels"] if label != -100] == [*completion, tokenizer.eos_token_id]
        assert feature["input_ids"][0] == tokenizer.bos_token_id
        kept = encode(tokenizer, example, len(feature["input_ids"]) - 1)
        assert kept["input_ids"][0] == tokenizer.bos_token_id and kept["truncated"] == 1


def test_documents_carry_loss_on_every_token(tokenizer):
    assert encode_text(tokenizer, words(2, 3), 8) == {
        "input_ids": [EOS, 2, 3, EOS],
        "labels": [-100, 2, 3, EOS],
        "source": PRETRAINING,
        "truncated": 0,
    }
    cut = encode_text(tokenizer, words(2, 3, 4), 4)
    assert cut["input_ids"] == [EOS, 2, 3, 4] and cut["truncated"] == 1
    tokenizer.bos_token = "w31"
    assert encode_text(tokenizer, words(2), 8)["input_ids"] == [31, 2, EOS]
    assert encode_text(tokenizer, words(31, 2), 8)["labels"] == [-100, 2, EOS]
    tokenizer.bos_token = tokenizer.eos_token = None
    assert encode_text(tokenizer, words(2, 3), 8)["labels"] == [-100, 3]
    assert encode_texts(tokenizer, [], 8) == []


def test_loss_of_a_padded_batch_is_the_brute_force_loss(tokenizer, model):
    features = [*encode_examples(tokenizer, EXAMPLES, 16), encode_text(tokenizer, words(20, 21, 22), 16)]
    batch = Collator.for_tokenizer(tokenizer)(features)
    with torch.no_grad():
        expected = sum(brute_force(model, feature) for feature in features)
        assert summed_loss(model, batch).item() == pytest.approx(expected.item(), abs=1e-9)


def test_prompt_positions_have_neither_loss_nor_gradient(tokenizer):
    model = tiny_llama(dtype=torch.float64)
    feature = encode(tokenizer, EXAMPLES[0], 16)
    batch = Collator(0)([feature])
    logits = model(input_ids=batch["input_ids"]).logits.detach().requires_grad_()
    model.loss_function(logits, batch["labels"], vocab_size=model.config.vocab_size).backward()
    touched = logits.grad[0].abs().sum(-1) > 0
    # Position i predicts token i + 1: the last prompt token and the completion, not the end itself.
    assert touched.tolist() == [False, False, True, True, True, False]
    with torch.no_grad():
        ours = summed_loss(model, batch)
        assert ours.item() == pytest.approx(brute_force(model, feature).item(), abs=1e-9)
        everywhere = summed_loss(model, {**batch, "labels": batch["input_ids"]})
    assert everywhere > ours + 1  # labels on the prompt would have changed it


def test_pack_is_first_fit(tokenizer):
    features = encode_examples(tokenizer, EXAMPLES, 16)
    assert [len(feature["input_ids"]) for feature in features] == [6, 3, 8, 4]
    rows = pack(features, 10)
    assert [row["segments"] for row in rows] == [[6, 3], [8], [4]]
    assert rows[0] == {
        "input_ids": [2, 3, 4, 5, 6, EOS, 7, 8, EOS],
        "labels": [-100, -100, -100, 5, 6, EOS, -100, 8, EOS],
        "position_ids": [0, 1, 2, 3, 4, 5, 0, 1, 2],
        "segments": [6, 3],
        "source": TASK,
        "truncated": 0,
    }
    assert [row["segments"] for row in pack(features, 13)] == [[6, 3, 4], [8]]
    assert pack([], 10) == []


def test_pack_keeps_sources_apart_and_counts_truncation(tokenizer):
    features = [encode_text(tokenizer, words(2, 3, 4, 5), 4), *encode_examples(tokenizer, EXAMPLES[:2], 4)]
    rows = pack([features[0], features[1], features[0], features[2]], 64)
    assert [(row["source"], row["segments"], row["truncated"]) for row in rows] == [
        (PRETRAINING, [4, 4], 2),
        (TASK, [4, 3], 1),
    ]
    assert len(features[0]["input_ids"]) == 4  # what is packed is not changed


def test_pack_refuses_what_cannot_fit(tokenizer):
    with pytest.raises(ValueError, match="6 tokens, more than max_length 5"):
        pack([encode(tokenizer, EXAMPLES[0], 16)], 5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-4)])
def test_packed_loss_is_the_sum_of_the_unpacked_losses(tokenizer, model, dtype, tolerance):
    model = model.to(dtype)
    features = [*encode_examples(tokenizer, EXAMPLES, 16), *encode_texts(tokenizer, [words(20, 21, 22)] * 2, 16)]
    rows = pack(features, 18)
    assert len(rows) < len(features) and max(len(row["segments"]) for row in rows) >= 3
    collate = Collator.for_tokenizer(tokenizer)
    packed, unpacked = collate(rows), collate(features)
    packed["attention_mask"] = packed["attention_mask"].to(dtype)  # nothing to do in float32, as in training
    assert (packed["labels"] != -100).sum() == (unpacked["labels"] != -100).sum()
    losses = [summed_loss(model, batch) for batch in (packed, unpacked)]
    assert losses[0].item() == pytest.approx(losses[1].item(), abs=tolerance)
    gradients = [torch.autograd.grad(loss, list(model.parameters())) for loss in losses]
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.allclose(ours, theirs, atol=tolerance)
    # Without the mask the examples would see each other: the test above can fail.
    open_batch = {**packed, "attention_mask": torch.ones_like(packed["input_ids"])}
    assert summed_loss(model, open_batch).item() != pytest.approx(losses[1].item(), abs=1e-3)


def test_packed_rows_survive_autocast(tokenizer):
    model = tiny_llama()
    batch = Collator.for_tokenizer(tokenizer)(pack(encode_examples(tokenizer, EXAMPLES, 16), 18))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = summed_loss(model, batch)
    assert mixed.item() == pytest.approx(summed_loss(model, batch).item(), rel=1e-2)


def test_batch_of_unpacked_features(tokenizer):
    batch = Collator(0)([encode(tokenizer, EXAMPLES[1], 2), encode_text(tokenizer, words(4, 5), 8)])
    expected = {
        "input_ids": [[7, 8, 0, 0], [EOS, 4, 5, EOS]],
        "labels": [[-100, 8, -100, -100], [-100, 4, 5, EOS]],
        "attention_mask": [[1, 1, 0, 0], [1, 1, 1, 1]],
        "source": [TASK, PRETRAINING],
        "lengths": [2, 4],
        "truncated": [1, 0],
    }
    assert {key: value.tolist() for key, value in batch.items()} == expected
    assert {value.dtype for value in batch.values()} == {torch.int64}


def test_batch_of_packed_rows_counts_examples(tokenizer):
    rows = pack(encode_examples(tokenizer, EXAMPLES, 16), 9)
    batch = Collator(0)([*rows, encode_text(tokenizer, words(4, 5), 8)])
    assert [row["segments"] for row in rows] == [[6, 3], [8], [4]]
    assert batch["source"].tolist() == [TASK] * 4 + [PRETRAINING]
    assert batch["lengths"].tolist() == [6, 3, 8, 4, 4]
    assert batch["attention_mask"].shape == (4, 1, 9, 9)
    assert batch["position_ids"].tolist()[0] == [0, 1, 2, 3, 4, 5, 0, 1, 2]
    allowed = batch["attention_mask"][:, 0] == 0
    for row, segments in enumerate([[6, 3], [8], [4], [4]]):
        owner = [i for i, n in enumerate(segments) for _ in range(n)]
        owner += [-1] * (9 - len(owner))
        for query in range(9):
            for key in range(9):
                assert allowed[row, query, key] == (key <= query and owner[query] == owner[key])


def test_weights_are_collated_where_any_feature_has_them(tokenizer):
    short, long = (encode_text(tokenizer, text, 16) for text in ("w2", "w3 w4 w5"))
    collate = Collator(0)
    assert "weights" not in collate([short, long])
    batch = collate([short | {"weights": [0.5] * len(short["input_ids"])}, long])
    assert batch["weights"].dtype == torch.float32 and batch["weights"].shape == batch["input_ids"].shape
    row = [0.5] * len(short["input_ids"])
    assert batch["weights"][0].tolist() == row + [0.0] * (batch["weights"].shape[1] - len(row))
    assert bool((batch["weights"][1] == 1).all())


def test_collator_pads_with_what_the_tokenizer_has(tokenizer):
    assert Collator.for_tokenizer(tokenizer).pad_token_id == 0
    tokenizer.pad_token = None
    assert Collator.for_tokenizer(tokenizer).pad_token_id == EOS
    tokenizer.eos_token = None
    assert Collator.for_tokenizer(tokenizer).pad_token_id == 0


def test_data_set_is_its_features(tokenizer):
    features = encode_examples(tokenizer, EXAMPLES, 16)
    dataset = ExampleDataset(features)
    assert len(dataset) == 4 and dataset[2] is features[2]
