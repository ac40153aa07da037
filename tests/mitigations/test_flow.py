"""FLOW's weights against the formula, and their way to the loss."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from forgetting.config import TrainingConfig
from forgetting.distillation import example_losses
from forgetting.errors import UsageError
from forgetting.mitigations import build_mitigation
from forgetting.tasks.encode import Collator, ExampleDataset, pack
from forgetting.trainer import ContinualTrainer, padded_batches, training_arguments
from tests.mitigations.test_conformance import TASKS, TEXT, TOKENIZER, context
from tests.models_for_tests import tiny_llama

FEATURES = context().encode_task(TASKS[0])


def sharp_llama() -> Any:
    """A model whose losses on examples differ: a random one's are all near ln V."""
    model = tiny_llama()
    with torch.no_grad():
        model.lm_head.weight.mul_(40)
    return model.eval()


def losses_of(features: list[dict[str, Any]]) -> list[float]:
    """One example at a time."""
    batches = padded_batches(features, TOKENIZER, 1)
    return [float(sharp_llama()(**batch).loss.detach()) for batch in batches]


def weighted(text: str, features: list[dict[str, Any]]) -> list[dict[str, Any]]:
    mitigation = build_mitigation(text)
    mitigation.setup(sharp_llama(), context())
    dataset = mitigation.train_dataset(ExampleDataset(features), TASKS[0], [])
    return [dataset[i] for i in range(len(features))]


def test_weights_are_the_closed_form_with_mean_one() -> None:
    losses = losses_of(FEATURES)
    assert max(losses) > 1.5 * min(losses)
    raw = [math.exp(-loss / statistics.median(losses)) for loss in losses]
    rows = weighted("flow", FEATURES)
    for row, value in zip(rows, raw, strict=True):  # two predicted tokens each
        assert row["weights"] == pytest.approx([value * len(raw) / sum(raw)] * len(row["input_ids"]), rel=1e-4)
    # The minimum over the simplex of Σ w ℓ + τ Σ w ln w: no other weights are better.
    tau = statistics.median(losses)

    def objective(w: torch.Tensor) -> torch.Tensor:
        return (w * torch.tensor(losses, dtype=torch.float64)).sum() + tau * (w * w.log()).sum()

    best = torch.tensor([row["weights"][0] for row in rows], dtype=torch.float64) / len(rows)
    for seed in range(20):
        noise = torch.randn(len(best), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        assert objective((best.log() + 0.1 * noise).softmax(0)) > objective(best / best.sum())


def test_temperature_and_strength() -> None:
    losses = losses_of(FEATURES)
    raw = [math.exp(-loss / 0.5) for loss in losses]
    for row, value in zip(weighted("flow:temperature=0.5,strength=0.25", FEATURES), raw, strict=True):
        assert row["weights"][0] == pytest.approx(0.75 + 0.25 * value * len(raw) / sum(raw), rel=1e-4)
    tiny = [row["weights"][0] for row in weighted("flow:temperature=1e-9", FEATURES)]
    assert all(math.isfinite(weight) for weight in tiny) and max(tiny) == pytest.approx(len(tiny))


def test_packed_rows_have_the_weights_of_their_examples() -> None:
    plain = {tuple(row["input_ids"]): row["weights"][0] for row in weighted("flow", FEATURES)}
    rows = weighted("flow", pack(FEATURES, 16))
    assert any(len(row["segments"]) > 2 for row in rows)
    for row in rows:
        begin = 0
        for length in row["segments"]:
            example = tuple(row["input_ids"][begin : begin + length])
            assert row["weights"][begin : begin + length] == pytest.approx([plain[example]] * length, rel=1e-4)
            begin += length


def test_example_losses_are_those_of_single_examples_in_any_batch() -> None:
    expected = losses_of(FEATURES)
    for size in (1, 5):
        got = example_losses(sharp_llama(), FEATURES, TOKENIZER, size)
        assert [row[0].loss for row in got] == pytest.approx(expected, rel=1e-4)
        assert all(len(row) == 1 and row[0].predicted == 2 for row in got)
    silent = {**FEATURES[0], "labels": [-100] * len(FEATURES[0]["labels"])}
    assert example_losses(sharp_llama(), [silent], TOKENIZER, 1)[0][0][1:] == (0, 0.0)


def test_what_is_replayed_keeps_weight_one_in_either_order(tmp_path: Path) -> None:
    for text in ("replay:fraction=0.5+flow", "flow+replay:fraction=0.5"):
        mitigation = build_mitigation(text)
        model = mitigation.setup(sharp_llama(), context())
        dataset = mitigation.train_dataset(ExampleDataset(FEATURES), TASKS[0], [])
        rows = [dataset[i] for i in range(len(dataset))]  # type: ignore[arg-type]
        batch = Collator.for_tokenizer(TOKENIZER)(rows)
        replayed = batch["source"] != 0
        assert replayed.any() and bool((batch["weights"][replayed][batch["attention_mask"][replayed] > 0] == 1).all())
        assert float(batch["weights"][~replayed].std()) > 0.1
        arguments = training_arguments(TrainingConfig(steps=8, batch_size=1), seed=0, output=str(tmp_path))
        ContinualTrainer(model, dataset, mitigation, arguments, TOKENIZER).train()


def test_the_loss_is_the_weighted_mean_however_the_batch_is_split(tmp_path: Path) -> None:
    """Σ w nll / Σ w over the whole task, in one batch, or in four that make one step; packed, too."""
    losses = torch.tensor(losses_of(FEATURES))
    raw = (-losses / statistics.median(losses.tolist())).exp()
    expected = float((raw * losses).sum() / raw.sum())
    assert expected < 0.98 * float(losses.mean())
    for size, accumulation, packing in ((16, 1, False), (4, 4, False), (1, 16, False), (16, 1, True)):
        config = TrainingConfig(steps=1, batch_size=size, gradient_accumulation=accumulation, max_length=16)
        features = pack(FEATURES, 16) if packing else FEATURES
        mitigation = build_mitigation("flow")
        model = mitigation.setup(sharp_llama(), context())
        dataset = mitigation.train_dataset(ExampleDataset(features), TASKS[0], [])
        arguments = training_arguments(config, seed=0, output=str(tmp_path))
        trainer = ContinualTrainer(model, dataset, mitigation, arguments, TOKENIZER)
        trainer.train()
        assert trainer.losses[0] == pytest.approx(expected, rel=1e-4)


def test_what_other_parts_added_to_the_loss_stays() -> None:
    batch = Collator.for_tokenizer(TOKENIZER)(weighted("flow", FEATURES))
    given = {key: batch[key] for key in ("input_ids", "attention_mask", "labels")}
    mitigation = build_mitigation("flow")
    model = mitigation.setup(sharp_llama(), context())
    outputs = model(**given)
    alone, after = (mitigation.loss(model, batch, outputs, outputs.loss + more) for more in (0.0, 3.0))
    torch.testing.assert_close(after, alone + 3)
    assert float(alone.detach()) < float(outputs.loss.detach())


def test_the_pretrained_model_weighs_every_task(tmp_path: Path) -> None:
    mitigation = build_mitigation("flow")
    model = mitigation.setup(sharp_llama(), context())
    first = weighted("flow", FEATURES)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3)
    dataset = mitigation.train_dataset(ExampleDataset(FEATURES), TASKS[1], TASKS[:1])
    assert [dataset[i]["weights"] for i in range(len(first))] == [row["weights"] for row in first]
    assert mitigation.stored_floats() == sum(p.numel() for p in model.parameters())
    rows = context().encode_text(TEXT[:4])
    untouched = mitigation.train_dataset(ExampleDataset(rows), TASKS[0], [])
    assert [untouched[i] for i in range(4)] == rows  # nothing of the task's own


def test_refusals() -> None:
    for text in ("flow:temperature=0", "flow:strength=1.5"):
        with pytest.raises(UsageError, match=text.split(":")[1].split("=")[0]):
            build_mitigation(text)
