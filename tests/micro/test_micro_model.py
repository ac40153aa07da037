"""The shipped model, its probes under lm-eval, and pretraining itself."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from forgetting.errors import UsageError
from forgetting.evaluation.suite import load_suite
from forgetting.micro import model_directory
from forgetting.micro.pretrain import pretrain
from forgetting.micro.probes import load_probe, probe_chance, probe_directory, probe_names
from forgetting.micro.sequences import SEQUENCES, load_micro_sequence

MODEL = model_directory()


@pytest.fixture(scope="module")
def shipped():
    return AutoModelForCausalLM.from_pretrained(MODEL), AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def scores(shipped):
    return {name: score.value for name, score in load_suite(["micro"]).evaluate(*shipped).items()}


def test_shipped_model_is_small(shipped):
    model, _ = shipped
    assert 0.8e6 <= model.num_parameters() <= 1.2e6
    assert model.config.model_type == "llama"
    weights = MODEL / "model.safetensors"
    assert weights.stat().st_size < 10e6
    assert {tensor.dtype for tensor in load_file(weights).values()} == {torch.float32}


def test_shipped_tokenizer(shipped):
    model, tokenizer = shipped
    assert len(tokenizer) == model.config.vocab_size
    assert tokenizer.eos_token == tokenizer.bos_token == "<|endoftext|>"
    assert tokenizer.pad_token == "<|pad|>"
    for text in ("12 + 7 = 19", "the dog\nNaïve ☃ text ,  two spaces", "<|endoftext|>"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.tokenize("4071") == ["4", "0", "7", "1"]
    assert tokenizer.encode("dog") == tokenizer.encode("dog", add_special_tokens=False)


@pytest.mark.parametrize("name", probe_names())
def test_shipped_model_knows(name, scores):
    assert scores[name] >= 0.85
    assert scores[name] >= probe_chance(name) + 0.3


def test_model_card_states_the_scores(scores):
    card = (MODEL / "README.md").read_text(encoding="utf-8")
    for name, score in scores.items():
        (row,) = (line for line in card.splitlines() if line.startswith(f"| `{name}`"))
        # A score may differ by an item between machines, where two choices tie in floating point.
        assert float(row.split("|")[2].strip(" %")) == pytest.approx(100 * score, abs=1.0)
    assert "apache-2.0" in card


def test_contexts_end_where_a_token_ends(shipped):
    _, tokenizer = shipped
    for name in probe_names():
        for item in load_probe(name):
            context = tokenizer.encode(item.context)
            for choice in item.choices:
                whole = tokenizer.encode(f"{item.context} {choice}")
                assert whole[: len(context)] == context
                assert len(whole) < 64


def test_no_choice_begins_with_another(shipped):
    _, tokenizer = shipped
    pairs = [(i.choices[i.gold], c) for n in probe_names() for i in load_probe(n) for c in i.choices]
    for name in SEQUENCES:
        for task in load_micro_sequence(name).tasks:
            pairs += [(e.completion.strip(), c.strip()) for e in task.test for c in e.choices or ()]
    for gold, other in set(pairs):
        first, second = (tokenizer.encode(f" {text}") for text in (gold, other))
        shared = min(len(first), len(second))
        assert gold == other or first[:shared] != second[:shared], (gold, other)


def test_sequences_are_short(shipped):
    _, tokenizer = shipped
    for name in SEQUENCES:
        for task in load_micro_sequence(name).tasks:
            assert max(len(tokenizer.encode(e.prompt + e.completion)) for e in task.test) < 128


def test_lm_eval_loads_and_agrees(shipped, scores, monkeypatch, tmp_path):
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    monkeypatch.chdir(tmp_path)
    model, tokenizer = shipped
    manager = TaskManager(include_path=str(probe_directory()))
    result = simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=64),
        tasks=["micro"],
        task_manager=manager,
        bootstrap_iters=0,
        log_samples=False,
    )
    assert set(result["results"]) >= set(probe_names())
    for name in probe_names():
        assert result["n-samples"][name]["original"] == len(load_probe(name))
        assert result["results"][name]["acc,none"] == pytest.approx(scores[name], abs=0.011)
        assert result["configs"][name]["metadata"]["chance"] == probe_chance(name)


def test_pretrain_writes_a_loadable_folder_and_is_deterministic(tmp_path):
    arguments = {"steps": 3, "batch_size": 2, "context": 16, "model_size": "300k", "seed": 5}
    state = torch.random.get_rng_state()
    first = pretrain(tmp_path / "a", **arguments)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(99)
    second = pretrain(tmp_path / "b", **arguments)
    assert first.final_loss == second.final_loss
    assert 250e3 <= first.parameters <= 350e3
    assert first.tokens == 3 * 2 * 16
    a, b = (load_file(tmp_path / run / "model.safetensors") for run in "ab")
    assert all(torch.equal(a[key], b[key]) for key in a)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "a")
    probes = load_suite(["micro"]).evaluate(model, tokenizer)
    assert {name: score.value for name, score in probes.items()} == pytest.approx(first.probes, abs=0.011)
    assert "forgetting-micro-300k" in (tmp_path / "a" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps: 0"),
        ({"context": 1000}, "context: 1000"),
        ({"seed": -1}, "seed: -1"),
        ({"model_size": "2M"}, "model_size: '2M'"),
        ({"device": "tpux"}, "device: 'tpux'"),
    ],
)
def test_wrong_arguments_are_named(arguments, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        pretrain(tmp_path, **arguments)


@pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason="needs a CUDA device: python experiments/benchmarks/micro_pretrain.py --device cuda",
)
def test_made_again_on_a_gpu_it_is_within_two_points():
    script = Path(__file__).resolve().parents[2] / "experiments" / "benchmarks" / "micro_pretrain.py"
    done = subprocess.run([sys.executable, str(script), "--device", "cuda"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
