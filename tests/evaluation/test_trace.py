"""Looking at a training changes nothing in it, and sees what separate trainings would have reached."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from forgetting.analysis.onset import onset
from forgetting.config import TrainingConfig, parse_study
from forgetting.evaluation.suite import load_suite
from forgetting.evaluation.trace import ScoreAtSteps, cheap_scores, trace_table
from forgetting.mitigations import build_mitigation
from forgetting.results import ResultStore
from forgetting.run import prepare, run_context, train_task
from forgetting.tasks.encode import ExampleDataset, encode_texts
from forgetting.trainer import ContinualTrainer, training_arguments
from tests.evaluation.test_lm import TOKENIZER
from tests.mitigations.test_conformance import TASKS, TEXT, context
from tests.models_for_tests import VOCABULARY

Weights = dict[str, torch.Tensor]


def copied(model: PreTrainedModel) -> Weights:
    assert not model.training and not torch.is_grad_enabled()
    return {name: parameter.clone() for name, parameter in model.named_parameters()}


def with_dropout() -> PreTrainedModel:
    torch.manual_seed(0)
    shape = {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
    return GPT2LMHeadModel(GPT2Config(**shape, resid_pdrop=0.2, embd_pdrop=0.2, attn_pdrop=0.2))


def train(steps: int, mitigation: str, tmp_path: Path, looks: ScoreAtSteps | None) -> Weights:
    config = TrainingConfig(learning_rate=3e-3, steps=steps, batch_size=4, scheduler="constant", warmup=0)
    method = build_mitigation(mitigation)
    model = method.setup(with_dropout(), context())
    trainer = ContinualTrainer(
        method.before_task(model, TASKS[0]),
        ExampleDataset(context().encode_task(TASKS[0])),
        method,
        training_arguments(config, seed=3, output=str(tmp_path)),
        TOKENIZER,
        callbacks=[looks] if looks else [],
    )
    trainer.train()
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("mitigation", ["naive", "l2sp:strength=10"])
def test_it_changes_nothing_and_sees_every_step_as_it_was(mitigation: str, tmp_path: Path) -> None:
    looks = ScoreAtSteps(copied, range(0, 5, 2))
    watched, alone = train(4, mitigation, tmp_path, looks), train(4, mitigation, tmp_path, None)
    assert all(torch.equal(watched[name], alone[name]) for name in alone)
    assert [step for step, _ in looks.points] == [0, 2, 4]
    start = dict(with_dropout().named_parameters())
    for (_, seen), expected in zip(looks.points, [start, train(2, mitigation, tmp_path, None), alone], strict=True):
        assert all(torch.equal(seen[name], expected[name]) for name in expected)


def test_cheap_scores_are_the_mean_loss_and_the_suites_scores() -> None:
    model = with_dropout()
    features = encode_texts(TOKENIZER, TEXT[20:], 16)
    total, count = 0.0, 0
    model.eval()
    for feature in features:
        ids = torch.tensor([feature["input_ids"]])
        log_probs = model(ids).logits[0, :-1].log_softmax(-1)
        total -= float(log_probs.gather(1, ids[0, 1:, None]).sum().detach())
        count += ids.shape[1] - 1
    model.train()
    scores = cheap_scores(features, TOKENIZER, batch_size=2)(model)
    assert model.training and set(scores) == {"ce"}
    assert scores["ce"] == pytest.approx(total / count, rel=1e-5)
    with pytest.raises(ValueError, match="features: the 0 predict nothing"):
        cheap_scores([], TOKENIZER)


@pytest.mark.parametrize("mitigation", ["naive", "lora:r=2"])
def test_a_runs_task_can_be_watched_under_any_mitigation(mitigation: str, tmp_path: Path) -> None:
    study = parse_study(
        {
            "name": "watched",
            "model": "micro",
            "sequence": {"name": "micro-conflict", "train_size": 32, "test_size": 4},
            "mitigations": mitigation,
            "training": {"steps": 8, "batch_size": 8, "max_length": 64, "learning_rate": 3e-3},
            "evaluation": {"suite": "micro_grammar", "limit": 2, "drift": False},
            "pretraining": {"documents": 10, "held_out_documents": 8},
        }
    )
    config = study.runs()[0]
    setting = prepare(config, ResultStore(tmp_path))
    suite = load_suite(["micro_grammar"], limit=10)
    held_out = setting.pretraining.held_out["pretraining"]
    features = setting.family.encode_pretraining(held_out, 64)
    looks = ScoreAtSteps(cheap_scores(features, setting.family.tokenizer, suite), range(0, 9, 2))
    method = build_mitigation(mitigation)
    model = method.setup(setting.family.prepared(setting.base).model, run_context(config, setting))
    before = cheap_scores(features, setting.family.tokenizer, suite)(model)
    model, cost = train_task(config, setting, method, model, 0, lambda step, steps: None, callbacks=[looks])
    frame = trace_table(looks.points)
    assert list(frame.columns) == ["step", "ce", "micro_grammar"] and list(frame["step"]) == [0, 2, 4, 6, 8]
    assert frame.loc[0, ["ce", "micro_grammar"]].tolist() == pytest.approx(list(before.values()))
    assert frame["ce"].iloc[-1] > frame["ce"].iloc[0] + 0.01 and cost.steps == 8
    rise = onset(frame["step"].tolist(), frame["ce"].tolist(), 0.5)
    assert rise is not None and rise.by - rise.after == 2
