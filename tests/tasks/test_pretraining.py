"""Where pretraining text comes from, and that its parts share no document."""

import json

import pytest
import torch

from forgetting.config import PretrainingConfig
from forgetting.errors import UsageError
from forgetting.tasks import pretraining
from forgetting.tasks.pretraining import load_pretraining, sample_documents
from tests.models_for_tests import tiny_llama, tiny_tokenizer


@pytest.fixture(scope="module")
def model():
    return tiny_llama()


@pytest.fixture
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture
def load(model, tokenizer):
    def loaded(cache_dir=None, name="tiny", **options):
        return load_pretraining(PretrainingConfig(**options), name, model, tokenizer, cache_dir)

    return loaded


def failure(load, **options):
    with pytest.raises(UsageError) as error:
        load(**options)
    assert "\n" not in str(error.value)
    return str(error.value)


def text_file(folder, count, name="text.txt", prefix="document", separator="\n<|endoftext|>\n"):
    path = folder / name
    path.write_text(separator.join(f"{prefix} {i}\nsecond line {i}" for i in range(count)))
    return str(path)


def check_disjoint(text):
    held_out = {document for documents in text.held_out.values() for document in documents}
    assert not set(text.train) & set(text.validation)
    assert not held_out & {*text.train, *text.validation}


def test_text_file_is_split_and_sized(tmp_path, load):
    text = load(source=text_file(tmp_path, 60), documents=40, held_out_documents=10)
    assert [len(text.train), len(text.validation), len(text.held_out["pretraining"])] == [36, 4, 10]
    check_disjoint(text)
    assert "document 1\nsecond line 1" in {f"document {i}\nsecond line {i}" for i in range(60)} >= set(text.train)
    assert text.notes["train"] == 36 and text.notes["held_out_pretraining"] == 10
    assert load(source=text_file(tmp_path, 60), documents=40, held_out_documents=10) == text
    other = load(source=text_file(tmp_path, 60), documents=40, held_out_documents=10, seed=1)
    assert other.train != text.train


def test_blank_lines_separate_where_nothing_else_does(tmp_path, load):
    text = load(source=text_file(tmp_path, 20, separator="\n \n\n"), documents=10, held_out_documents=5)
    documents = {*text.train, *text.validation, *text.held_out["pretraining"]}
    assert documents <= {f"document {i}\nsecond line {i}" for i in range(20)} and len(documents) == 15


def test_duplicates_are_removed_before_the_split(tmp_path, load):
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(["same"] * 30 + [f"other {i}" for i in range(9)]))
    text = load(source=str(path), documents=6, held_out_documents=4)
    check_disjoint(text)
    assert text.notes["duplicates_removed"] == 29


def test_fewer_documents_are_shared_out(tmp_path, load):
    text = load(source=text_file(tmp_path, 12))  # 1000 and 200 by default
    assert [len(text.train), len(text.validation), len(text.held_out["pretraining"])] == [9, 1, 2]
    assert text.notes["fewer_documents_than_asked"] == "12 of 1200"
    text = load(source=text_file(tmp_path, 3), documents=4, held_out_documents=500)
    assert [len(text.train), len(text.validation), len(text.held_out["pretraining"])] == [1, 1, 1]


def test_jsonl(tmp_path, load):
    path = tmp_path / "text.jsonl"
    path.write_text("\n".join(json.dumps({"text": f" t{i} ", "id": i}) for i in range(10)) + '\n{"text": ""}')
    text = load(source=str(path), documents=6, held_out_documents=4)
    assert {*text.train, *text.validation, *text.held_out["pretraining"]} == {f"t{i}" for i in range(10)}


def test_further_held_out_files_are_columns(tmp_path, load):
    source = text_file(tmp_path, 20)
    further = tmp_path / "poems.txt"
    further.write_text(
        "document 0\nsecond line 0\n\nnew one\n\n" + "\n\n".join(f"document {i}\nsecond line {i}" for i in range(20))
    )
    text = load(source=source, documents=14, held_out_documents=6, held_out=(str(further),))
    check_disjoint(text)
    assert set(text.held_out) == {"pretraining", "poems"}
    assert text.notes["poems_removed_for_being_in_train"] == 14
    assert len(text.held_out["poems"]) == 6 == text.notes["held_out_poems"]


def test_hub_data_set_is_streamed(load, monkeypatch):
    asked = {}

    def stream(path, **options):
        asked.update(options, path=path)
        return ({"text": f"row {i}" if i % 2 else ""} for i in range(10_000))

    monkeypatch.setattr("datasets.load_dataset", stream)
    text = load(source="owner/corpus:small", documents=8, held_out_documents=4)
    assert asked == {"path": "owner/corpus", "name": "small", "split": "train", "streaming": True}
    assert len(text.train) + len(text.validation) == 8 and len(text.held_out["pretraining"]) == 4


def test_micro_is_the_default_of_the_embedded_model(load):
    text = load(name="micro", documents=20, held_out_documents=10)
    assert text.notes["source"] == "micro"
    assert [len(text.train), len(text.validation), len(text.held_out["pretraining"])] == [18, 2, 10]
    check_disjoint(text)


def test_samples_are_seeded_and_leave_everything_as_it_was(model, tokenizer):
    model.generation_config.top_k = 1  # would make sampling greedy
    model.generation_config.repetition_penalty = 50.0
    own = model.generation_config
    model.train()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = sample_documents(model, tokenizer, 40, max_length=12, seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training and model.generation_config is own
    model.eval()
    assert sample_documents(model, tokenizer, 40, max_length=12, seed=0) == first
    assert sample_documents(model, tokenizer, 40, max_length=12, seed=1) != first
    assert len(set(first)) == 40 and all(first)
    assert max(len(tokenizer.encode(document)) for document in first) == 11


def test_samples_follow_the_model_at_temperature_1(tokenizer):
    """First tokens are drawn as the model predicts them: total variation against its own softmax."""
    model = tiny_llama()
    with torch.no_grad():
        model.lm_head.weight.mul_(8)
        expected = model(input_ids=torch.tensor([[1]])).logits[0, -1].double().softmax(-1)
        expected[:2] = 0  # padding and end are no text
        expected /= expected.sum()
    documents = [
        text.split()[0]
        for seed in range(3)
        for text in sample_documents(model, tokenizer, 700, max_length=6, seed=seed)
    ]
    observed = torch.zeros(32, dtype=torch.float64)
    for word in documents:
        observed[int(word[1:])] += 1 / len(documents)
    assert (observed - expected).abs().sum() / 2 < 0.06
    assert (expected - torch.full_like(expected, 1 / 30)).abs().sum() / 2 > 0.1  # uniform draws would fail


def test_samples_are_cached_by_weights_and_settings(tmp_path, load, monkeypatch):
    options = {"documents": 8, "held_out_documents": 4, "max_length": 8}
    calls = []
    original = pretraining.sample_documents
    monkeypatch.setattr(pretraining, "sample_documents", lambda *a, **k: calls.append(1) or original(*a, **k))
    first = load(cache_dir=tmp_path, **options)
    assert load(cache_dir=tmp_path, **options) == first and len(calls) == 1
    assert load(cache_dir=None, **options) == first and len(calls) == 2
    check_disjoint(first)
    assert first.notes["source"] == "self" and "tiny" in first.notes["sampled_from"]
    load(cache_dir=tmp_path, **{**options, "seed": 1})
    load(cache_dir=tmp_path, **{**options, "max_length": 9})
    other = load_pretraining(PretrainingConfig(**options), "tiny", tiny_llama(seed=1), tiny_tokenizer(), tmp_path)
    assert len(calls) == 5 and other.notes["sample_key"] != first.notes["sample_key"]
    files = sorted(tmp_path.iterdir())
    assert len(files) == 4 and all(file.suffix == ".json" for file in files)
    files[0].write_text('["cut sho')
    for seed in (0, 1):
        load(cache_dir=tmp_path, **{**options, "seed": seed})
    load(cache_dir=tmp_path, **{**options, "max_length": 9})
    load_pretraining(PretrainingConfig(**options), "tiny", tiny_llama(seed=1), tiny_tokenizer(), tmp_path)
    assert len(calls) == 6


def test_no_token_to_begin_with(model, tokenizer):
    tokenizer.eos_token = None
    with pytest.raises(UsageError, match="pretraining.source: 'self' needs a token that begins a document"):
        sample_documents(model, tokenizer, 4, max_length=8, seed=0)


def test_a_model_that_says_too_little(model, tokenizer):
    with pytest.raises(UsageError, match=r"'self' gave \d+ different documents where 100 are wanted"):
        sample_documents(model, tokenizer, 100, max_length=2, seed=0)  # one token: at most 30 texts


def test_bad_sources(tmp_path, load, monkeypatch):
    missing = failure(load, source=str(tmp_path / "missing.txt"))
    assert "pretraining.source" in missing and "missing.txt" in missing and "no such file" in missing
    (tmp_path / "empty.txt").write_text("\n\n")
    assert "is empty" in failure(load, source=str(tmp_path / "empty.txt"))
    (tmp_path / "latin.txt").write_bytes(b"fine\n\ncaf\xe9")
    assert "line 3" in failure(load, source=str(tmp_path / "latin.txt"))
    assert "2 different documents; it needs at least 3" in failure(load, source=text_file(tmp_path, 2))
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"txt": "b"}')
    message = failure(load, source=str(tmp_path / "a.jsonl"))
    assert "line 2" in message and "'text'" in message and "'txt'" in message
    (tmp_path / "b.jsonl").write_text('{"text": 5}')
    assert "line 1: column 'text' is a number" in failure(load, source=str(tmp_path / "b.jsonl"))

    def refuse(*args, **kwargs):
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr("datasets.load_dataset", refuse)
    message = failure(load, source="micr")
    assert "'micr'" in message and "'micro'" in message and "no network" in message


def test_bad_held_out_files(tmp_path, load):
    source = text_file(tmp_path, 10)
    assert "pretraining.held_out" in failure(load, source=source, held_out=(str(tmp_path / "no.txt"),))
    (tmp_path / "pretraining.txt").write_text("a")
    message = failure(load, source=source, held_out=(str(tmp_path / "pretraining.txt"),))
    assert "there is a column 'pretraining' already" in message
    (tmp_path / "same.txt").write_text((tmp_path / "text.txt").read_text())
    options = {"source": source, "documents": 9, "held_out_documents": 1}
    text = load(**options)
    (tmp_path / "same.txt").write_text("\n<|endoftext|>\n".join(text.train))
    message = failure(load, **options, held_out=(str(tmp_path / "same.txt"),))
    assert "same.txt" in message and "in the training text too" in message


def test_real_text(real_data, load):
    text = load(
        source=str(real_data / "text" / "wikitext2_valid.txt"),
        held_out=(str(real_data / "text" / "tinystories_sample.txt"),),
        documents=100,
        held_out_documents=20,
    )
    check_disjoint(text)
    assert len(text.held_out["tinystories_sample"]) == 5
    assert [len(text.train), len(text.validation), len(text.held_out["pretraining"])] == [90, 10, 20]
