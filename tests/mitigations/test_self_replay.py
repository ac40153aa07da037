"""Self-replay: what is sampled, and the loss on it, against a loop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import log_softmax

from forgetting.errors import UsageError
from forgetting.mitigations import RunContext, build_mitigation
from forgetting.tasks.encode import ExampleDataset
from tests.mitigations.test_conformance import TASKS, context, run
from tests.models_for_tests import tiny_gpt2, tiny_llama, tiny_tokenizer


def ready(text: str, model: Any, given: RunContext | None = None) -> Any:
    mitigation = build_mitigation(text)
    mitigation.setup(model, given or context())
    mitigation.train_dataset(ExampleDataset([]), TASKS[0], [])
    return mitigation


def documents(mitigation: Any) -> set[str]:
    return {mitigation.context.tokenizer.decode(f["input_ids"], skip_special_tokens=True) for f in mitigation._features}


def test_samples_depend_on_the_seed_alone_and_are_no_held_out_text() -> None:
    model = tiny_llama()
    torch.manual_seed(0)
    first = documents(ready("self_replay:documents=12,tokens=6", model))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert documents(ready("self_replay:documents=12,tokens=6", model)) == first and len(first) == 12
    assert torch.equal(torch.get_rng_state(), state) and not model.training
    assert documents(ready("self_replay:documents=12,tokens=6", model, context(seed=1))) != first
    text = replace(context().pretraining, held_out={"text": [], "more": sorted(first)})
    others = documents(ready("self_replay:documents=12,tokens=6", model, replace(context(), pretraining=text)))
    assert len(others) == 12 and not others & first


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize("options", ["loss=kl", "loss=kl,direction=reverse", "loss=ce"])
def test_the_loss_is_the_loops(make: Any, options: str) -> None:
    mitigation = ready(f"self_replay:documents=6,tokens=8,memory_batch=6,strength=0.5,{options}", make())
    model = make(seed=1)
    got = mitigation.loss(model, {}, None, torch.tensor(2.0))
    assert got.requires_grad
    total, count = 0.0, 0
    for feature in mitigation._features:
        ids = torch.tensor([feature["input_ids"]])
        p, q = (log_softmax(m(ids).logits[0].detach().double(), dim=-1) for m in (make(), model))
        for position, label in enumerate(feature["labels"]):
            if label == -100:
                continue
            a, b = p[position - 1], q[position - 1]
            count += 1
            if options == "loss=ce":
                total -= float(b[label])
            elif "reverse" in options:
                total += float((b.exp() * (b - a)).sum())
            else:
                total += float((a.exp() * (a - b)).sum())
    assert float(got.detach()) == pytest.approx(2.0 + 0.5 * total / count, rel=1e-5)


def test_the_base_model_has_no_divergence_from_itself() -> None:
    mitigation = ready("self_replay:documents=6,tokens=8", tiny_llama())
    assert float(mitigation.loss(tiny_llama(), {}, None, torch.tensor(0.0)).detach()) == pytest.approx(0, abs=1e-6)


def test_a_high_strength_keeps_the_predictions_on_sampled_text(tmp_path: Path) -> None:
    meter = ready("self_replay:documents=16,tokens=8,memory_batch=16", tiny_llama())
    divergence = []
    for text in ("naive", "self_replay:documents=16,tokens=8,strength=100"):
        model, _ = run(text, tmp_path)
        divergence.append(float(meter.loss(model.eval(), {}, None, torch.tensor(0.0)).detach()))
    naive, kept = divergence
    assert 0 < kept < 0.5 * naive  # Adam's first step is naive's: where nothing has moved, the divergence is flat


def test_sampling_leaves_the_model_as_it_was_and_follows_an_adapter() -> None:
    model = tiny_llama()
    own = model.generation_config
    mitigation = build_mitigation("lora:r=2+self_replay:documents=4,tokens=6")
    wrapped = mitigation.setup(model, context())
    assert model.generation_config is own and model.generation_config.max_new_tokens is None
    alone = ready("self_replay:documents=4,tokens=6", tiny_llama())
    assert mitigation.parts[1]._features == alone._features  # type: ignore[attr-defined]
    mitigation.train_dataset(ExampleDataset([]), TASKS[0], [])
    assert float(mitigation.loss(wrapped, {}, None, torch.tensor(0.0)).detach()) == pytest.approx(0, abs=1e-6)


def test_what_is_stored() -> None:
    model = tiny_llama()
    kl, ce = (ready(f"self_replay:documents=4,tokens=6,loss={loss}", model) for loss in ("kl", "ce"))
    tokens = sum(len(feature["input_ids"]) for feature in ce._features)
    assert ce.stored_floats() == tokens
    assert kl.stored_floats() == tokens + sum(p.numel() for p in model.parameters())
    assert ready("self_replay:strength=0", model).stored_floats() == 0


def test_refusals() -> None:
    with pytest.raises(UsageError, match=r"'self_replay': direction=reverse needs loss=kl"):
        build_mitigation("self_replay:loss=ce,direction=reverse")
    with pytest.raises(UsageError, match=r"'self_replay': documents = 500: gave \d+ different documents where 500"):
        ready("self_replay:documents=500,tokens=2", tiny_llama())
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(UsageError, match=r"'self_replay': documents = 9: needs a token that begins"):
        ready("self_replay:documents=9", tiny_llama(), replace(context(), tokenizer=tokenizer))
    with pytest.raises(UsageError, match=r"stands after 'prompt_tuning'.*write self_replay\+prompt_tuning"):
        build_mitigation("prompt_tuning:length=3+self_replay")
    build_mitigation("self_replay+prompt_tuning:length=3")
