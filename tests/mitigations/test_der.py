"""DER and DER++: what is stored when, and the loss on it, against a loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import log_softmax

from forgetting.errors import UsageError
from forgetting.mitigations import build_mitigation
from forgetting.tasks.encode import ExampleDataset
from tests.mitigations.test_conformance import TASKS, TEXT, context, run, train_one, weights
from tests.models_for_tests import tiny_gpt2, tiny_llama

DATA = ExampleDataset([])


def ready(text: str, model: Any) -> Any:
    mitigation = build_mitigation(text)
    mitigation.setup(model, context())
    mitigation.train_dataset(DATA, TASKS[0], [])
    return mitigation


def logits_of(model: Any, feature: dict[str, list[int]]) -> torch.Tensor:
    """At the positions before the predicted tokens, one after the other."""
    found = model(torch.tensor([feature["input_ids"]])).logits[0].detach()
    return torch.stack([found[i - 1] for i, label in enumerate(feature["labels"]) if label != -100])


def test_the_pretrained_state_is_stored_first_with_the_base_models_logits() -> None:
    model = tiny_llama()
    memory = ready("der:buffer_size=6", model).memory
    text = context().encode_text(TEXT[:16])
    assert len(memory) == 6
    for (state, example), feature in memory.features.items():
        assert state == 0 and feature["input_ids"] == text[example]["input_ids"]
        assert feature["labels"] == text[example]["labels"]
        torch.testing.assert_close(memory.logits[state, example], logits_of(model, feature))
    assert memory.stored_floats() == 6 * (6 + 5 * 32)  # six tokens, five of them predicted, 32 logits


@pytest.mark.parametrize("policy", ["reservoir", "balanced"])
def test_what_is_kept_keeps_its_logits_and_tasks_come_with_those_of_their_end(policy: str, tmp_path: Path) -> None:
    mitigation: Any = build_mitigation(f"der:buffer_size=8,buffer={policy}")
    model = mitigation.setup(tiny_llama(), context())
    before = dict(mitigation.memory.logits)
    for position in range(2):
        model, _ = train_one(model, mitigation, position, tmp_path)
        memory = mitigation.memory
        assert len(memory) == 8
        for key, logits in memory.logits.items():
            if key[0] <= position:
                assert logits is before[key]
            else:
                torch.testing.assert_close(logits, logits_of(model.eval(), memory.features[key]))
        before = dict(memory.logits)
    assert {state for state, _ in before} == {0, 1, 2}


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_the_losses_are_the_loops(make: Any) -> None:
    stored_with, model = make(), make(seed=1)
    mitigation = ready("derpp:buffer_size=4,memory_batch=4,alpha=3,beta=0.25", stored_with)  # two whole memories
    got = mitigation.loss(model, {}, None, torch.tensor(2.0)).detach()
    squares, surprise, positions = 0.0, 0.0, 0
    for feature in mitigation.memory.features.values():
        z, stored = (logits_of(m, feature).double() for m in (model, stored_with))
        squares += float(((z - stored) ** 2).mean(dim=1).sum())
        targets = [label for label in feature["labels"] if label != -100]
        surprise -= float(log_softmax(z, dim=-1)[range(len(z)), targets].sum())
        positions += len(z)
    assert float(got) == pytest.approx(2 + (3 * squares + 0.25 * surprise) / positions, rel=1e-5)
    der = ready("der:buffer_size=4,memory_batch=4,alpha=3", stored_with)
    got = der.loss(model, {}, None, torch.tensor(2.0)).detach()
    assert float(got) == pytest.approx(2 + 3 * squares / positions, rel=1e-5)


def test_der_plus_plus_draws_two_minibatches() -> None:
    mitigation = ready("derpp:buffer_size=8,memory_batch=4", tiny_llama())
    drawn: list[list[int]] = []
    draw = mitigation.memory._memory.draw
    mitigation.memory._memory.draw = lambda: drawn.append(draw()) or drawn[-1]
    mitigation.loss(tiny_llama(), {}, None, torch.tensor(0.0))
    assert len(drawn) == 2 and sorted(drawn[0] + drawn[1]) == list(range(8))


def test_where_nothing_has_moved_der_adds_nothing() -> None:
    mitigation = ready("der:buffer_size=8,alpha=100", tiny_llama())
    assert float(mitigation.loss(tiny_llama(), {}, None, torch.tensor(1.0)).detach()) == pytest.approx(1, abs=1e-6)


def test_at_most_so_many_positions_are_kept_and_they_fit_their_logits() -> None:
    model = tiny_llama()
    memory = ready("der:buffer_size=16,positions=2", model).memory
    places = []
    for key, feature in memory.features.items():
        kept = [i for i, label in enumerate(feature["labels"]) if label != -100]
        assert len(kept) == 2 and memory.logits[key].shape == (2, 32)
        torch.testing.assert_close(memory.logits[key], logits_of(model, feature))
        places += kept
    assert set(places) == {1, 2, 3, 4, 5}


def test_without_the_text_the_first_task_is_naive_and_alpha_zero_is_experience_replay(tmp_path: Path) -> None:
    naive = weights(run("naive", tmp_path, tasks=[0])[0])
    after = weights(run("derpp:pretraining=false", tmp_path, tasks=[0])[0])
    assert all(torch.equal(value, naive[key]) for key, value in after.items())
    replay = ready("derpp:alpha=0,beta=1,buffer_size=4,memory_batch=4", tiny_llama())
    model, memory = tiny_llama(seed=1), replay.memory
    batch = memory._memory.batch(list(range(4)), torch.device("cpu"))
    assert float(replay.loss(model, {}, None, torch.tensor(0.0)).detach()) == pytest.approx(
        float(model(**batch).loss.detach()), rel=1e-5
    )


def test_a_high_alpha_keeps_the_logits(tmp_path: Path) -> None:
    stored, error = ready("der:buffer_size=16", tiny_llama()).memory, []
    for text in ("naive", "der:buffer_size=16,alpha=1000"):
        model = run(text, tmp_path, tasks=[0])[0].eval()
        error.append(
            sum(float(((logits_of(model, f) - stored.logits[key]) ** 2).sum()) for key, f in stored.features.items())
        )
    assert 0 < error[1] < 0.5 * error[0]


@pytest.mark.parametrize("name", ["der", "derpp"])
def test_the_random_state_stays_under_dropout(name: str) -> None:
    model = tiny_gpt2()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.3
    losses = []
    for seed in (0, 1):
        mitigation = ready(f"{name}:buffer_size=8", model)
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        losses.append(mitigation.loss(model.train(), {}, None, torch.tensor(0.0)).detach())
        assert torch.equal(torch.get_rng_state(), state) and model.training
    assert losses[0] == losses[1] > 1e-4  # dropout did act, and did not read the global state


def test_refusals() -> None:
    for text, said in (
        ("der:alpha=-1", "alpha = '-1'"),
        ("der:beta=1", "unknown option 'beta'"),
        ("derpp:buffer=fifo", "buffer = 'fifo'"),
        ("derpp:positions=0", "positions = '0'"),
    ):
        with pytest.raises(UsageError, match=said):
            build_mitigation(text)
    with pytest.raises(UsageError, match=r"stands after 'prompt_tuning'.*write derpp\+prompt_tuning"):
        build_mitigation("prompt_tuning:length=3+derpp")
    build_mitigation("derpp+prompt_tuning:length=3")
