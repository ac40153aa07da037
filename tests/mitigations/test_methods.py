"""The mathematics of each method, against brute force."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from forgetting.errors import UsageError
from forgetting.mitigations import build_mitigation
from forgetting.mitigations.replay import Replay
from forgetting.tasks.encode import ExampleDataset
from forgetting.trainer import ContinualTrainer, training_arguments
from tests.mitigations.test_conformance import TASKS, TEXT, TOKENIZER, TRAINING, context, run, train_one, weights
from tests.models_for_tests import tiny_gpt2, tiny_llama


def test_low_lr_and_few_steps_scale_the_arguments(tmp_path: Path) -> None:
    args = training_arguments(TRAINING, seed=0, output=str(tmp_path))
    built = build_mitigation("low_lr:factor=0.1+few_steps:fraction=0.5").training_arguments(args)
    assert built.learning_rate == pytest.approx(3e-4) and built.max_steps == 2


def test_few_steps_may_begin_with_a_later_task(tmp_path: Path) -> None:
    assert TRAINING.steps is not None
    mitigation = build_mitigation("few_steps:fraction=0.5,after=1")
    model = mitigation.setup(tiny_llama(), context())
    taken = [train_one(model, mitigation, position, tmp_path)[1].state.global_step for position in (0, 1)]
    assert taken == [TRAINING.steps, TRAINING.steps // 2]


def test_at_a_constant_rate_few_steps_are_the_beginning_of_more(tmp_path: Path) -> None:
    constant = TRAINING.model_copy(update={"scheduler": "constant", "warmup": 0.0})
    losses = []
    for fraction in (0.5, 1.0):
        mitigation = build_mitigation(f"few_steps:fraction={fraction}")
        model = mitigation.setup(tiny_llama(), context())
        dataset = ExampleDataset(mitigation.context.encode_task(TASKS[0]))
        args = mitigation.training_arguments(training_arguments(constant, seed=0, output=str(tmp_path)))
        trainer = ContinualTrainer(model, dataset, mitigation, args, TOKENIZER)
        trainer.train()
        losses.append(trainer.losses)
    assert 1 < len(losses[0]) < len(losses[1]) and losses[0] == losses[1][: len(losses[0])]


@pytest.mark.parametrize(
    ("text", "frozen"),
    [
        ("freeze:first=1", "model.layers.0."),
        ("freeze:embeddings=true", "model.embed_tokens."),
        ("freeze:pattern=mlp", "mlp"),
        ("freeze:all_but_last=1", ("model.layers.0.", "model.embed_tokens.")),
    ],
)
def test_frozen_is_unchanged_bit_for_bit_and_the_rest_moves(text: str, frozen: str | tuple, tmp_path: Path) -> None:
    base = weights(tiny_llama())
    after = weights(run(text, tmp_path)[0])
    for name, value in after.items():
        matches = frozen in name if frozen == "mlp" else name.startswith(frozen)  # type: ignore[operator]
        assert torch.equal(value, base[name]) == matches, name


def test_freeze_finds_the_blocks_of_gpt2_and_refuses_nonsense() -> None:
    model = build_mitigation("freeze:all_but_last=1").setup(tiny_gpt2(), context())
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all(name.startswith(("transformer.h.1.", "transformer.ln_f.")) for name in trained) and trained
    for text, said in (
        ("freeze:first=3", "first = 3: the model has 2 blocks"),
        ("freeze:pattern=nowhere", "matches no parameter"),
        ("freeze:pattern=.*", "freezes every parameter"),
    ):
        with pytest.raises(UsageError, match=said.replace("*", r"\*")):
            build_mitigation(text).check_model(tiny_llama())
    with pytest.raises(UsageError, match=r"target = 'q_prj': no such module; did you mean 'q_proj'"):
        build_mitigation("lora:target=q_prj").check_model(tiny_llama())
    build_mitigation("lora:target=q_proj|v_proj+freeze:first=1").check_model(tiny_llama())


def test_freeze_after_lora_freezes_adapters_of_each_task(tmp_path: Path) -> None:
    model, _ = run("lora:r=2+freeze:first=1", tmp_path)
    assert not any(p.requires_grad for name, p in model.named_parameters() if ".layers.0." in name)
    assert any(p.requires_grad for name, p in model.named_parameters() if ".layers.1." in name)


def test_ewc_at_infinite_strength_does_not_move_what_has_fisher(tmp_path: Path) -> None:
    base = weights(tiny_llama())
    mitigation = build_mitigation("ewc:strength=1e14,examples=16,tasks=false")
    model = mitigation.setup(tiny_llama(), context())
    protected = {name: value > 1e-6 for name, value in mitigation.penalty.fisher.items()}  # type: ignore[attr-defined]
    model, _ = train_one(model, mitigation, 0, tmp_path)
    naive = weights(run("naive", tmp_path, tasks=[0])[0])
    for name, value in weights(model).items():
        moved, naive_moved = (value - base[name]).abs(), (naive[name] - base[name]).abs()
        assert moved[protected[name]].max() < 2e-3 * naive_moved[protected[name]].max()


@pytest.mark.parametrize("options", ["mode=online,decay=0.5", "mode=kfac", "update=gradient", "convention=avalanche"])
def test_every_form_of_ewc_keeps_more_than_naive(options: str, tmp_path: Path) -> None:
    base, naive = weights(tiny_llama()), weights(run("naive", tmp_path)[0])
    after = weights(run(f"ewc:strength=1e6,examples=16,{options}", tmp_path)[0])
    moved, naive_moved = (
        sum(float((value - base[name]).norm() ** 2) for name, value in run.items()) for run in (after, naive)
    )
    assert 0 < moved < 0.8 * naive_moved


def test_ewc_converts_another_conventions_strength_for_each_task(tmp_path: Path) -> None:
    mitigation = build_mitigation("ewc:strength=30,examples=4,convention=kirkpatrick")
    model = mitigation.setup(tiny_llama(), context())
    mitigation.before_task(model, TASKS[0])
    # 16 examples of two predicted tokens each (the word, and the end); the Fisher information is a sum over 4.
    assert mitigation._strength == pytest.approx(30 / (2 * 16))  # type: ignore[attr-defined]
    mean = build_mitigation("ewc:strength=30,examples=4")
    mean.setup(tiny_llama(), context())
    for name, value in mean.penalty.fisher.items():  # type: ignore[attr-defined]
        torch.testing.assert_close(mitigation.penalty.fisher[name], 4 * value)  # type: ignore[attr-defined]


def test_ewc_names_parameters_that_have_no_rule() -> None:
    model = tiny_llama()
    model.model.layers[0].self_attn.scale = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(UsageError, match=r"mitigation 'ewc': .*no rule for model\.layers\.0\.self_attn\.scale"):
        build_mitigation("ewc").check_model(model)
    build_mitigation("ewc:strength=0").check_model(model)


def test_ewc_leaves_what_is_frozen_alone_in_either_order(tmp_path: Path) -> None:
    base = weights(tiny_llama())
    for text in ("ewc:strength=100,examples=4+freeze:first=1", "freeze:first=1+ewc:strength=100,examples=4"):
        after = weights(run(text, tmp_path)[0])
        frozen = [name for name in after if name.startswith("model.layers.0.")]
        assert frozen and all(torch.equal(after[name], base[name]) for name in frozen)


def test_ewc_memory_does_not_grow_with_tasks(tmp_path: Path) -> None:
    mitigation = build_mitigation("ewc:strength=1,examples=4")
    model = mitigation.setup(tiny_llama(), context())
    stored = mitigation.stored_floats()
    for position in range(2):
        model, _ = train_one(model, mitigation, position, tmp_path)
        assert mitigation.stored_floats() == stored == 2 * sum(p.numel() for p in model.parameters())


def test_lora_merged_equals_unmerged_and_off_is_before_the_task(tmp_path: Path) -> None:
    model, mitigation = run("lora:r=2", tmp_path, tasks=[0])
    ids = torch.arange(2, 14)[None]
    on = model(ids).logits
    with mitigation.views(model)["adapter_off"]:
        off = model(ids).logits
    torch.testing.assert_close(off, tiny_llama()(ids).logits, rtol=0, atol=0)
    assert (on - off).abs().max() > 1e-3
    merged = copy.deepcopy(model).merge_and_unload()  # type: ignore[operator]
    torch.testing.assert_close(merged(ids).logits, on, rtol=1e-5, atol=1e-5)
    nxt = mitigation.before_task(model, TASKS[1])
    torch.testing.assert_close(nxt(ids).logits, on, rtol=1e-5, atol=1e-5)
    with mitigation.views(nxt)["adapter_off"]:
        torch.testing.assert_close(nxt(ids).logits, on, rtol=1e-5, atol=1e-5)


def test_lora_kept_has_one_adapter_and_leaves_the_base(tmp_path: Path) -> None:
    model, mitigation = run("lora:r=2,merge=false", tmp_path)
    with mitigation.views(model)["adapter_off"]:
        ids = torch.arange(2, 14)[None]
        torch.testing.assert_close(model(ids).logits, tiny_llama()(ids).logits, rtol=0, atol=0)


def test_replay_share_is_exact_in_expectation_and_recorded(tmp_path: Path) -> None:
    mitigation = build_mitigation("replay:fraction=0.3")
    model = mitigation.setup(tiny_llama(), context())
    sizes = []
    for seed in range(200):
        mitigation.context = context(seed)
        dataset = mitigation.train_dataset(ExampleDataset(context().encode_task(TASKS[0])), TASKS[0], [])
        sizes.append(len(dataset) - 16)
    assert abs(sum(sizes) / 200 - 16 * 0.3 / 0.7) < 4 * 0.5 / 200**0.5  # a Bernoulli's 4 standard errors
    _, trainer = train_one(model, mitigation, 0, tmp_path)
    assert trainer.examples["task"] > trainer.examples["pretraining"] > 0
    assert trainer.tokens["pretraining"] == 6 * trainer.examples["pretraining"]  # begin, four words, end
    assert len(trainer.losses) >= 5  # four steps, stretched


def test_replay_of_earlier_tasks_draws_from_them_only(tmp_path: Path) -> None:
    mitigation = build_mitigation("replay:fraction=0.5,source=earlier,buffer_size=8")
    mitigation.setup(tiny_llama(), context())
    task_features = context().encode_task(TASKS[1])
    first = mitigation.train_dataset(ExampleDataset(context().encode_task(TASKS[0])), TASKS[0], [])
    assert len(first) == 16  # nothing is earlier than the first task
    mixed = mitigation.train_dataset(ExampleDataset(task_features), TASKS[1], TASKS[:1])
    replayed = [mixed[i] for i in range(16, len(mixed))]
    earlier = [feature["input_ids"] for feature in context().encode_task(TASKS[0])]
    assert len(replayed) == 16 and all(feature["source"] == 2 for feature in replayed)
    assert all(feature["input_ids"] in earlier for feature in replayed)
    assert len({tuple(feature["input_ids"]) for feature in replayed}) == 8  # the buffer's size


def test_equal_steps_control_has_the_same_steps_and_no_replayed_loss(tmp_path: Path) -> None:
    trainers = {}
    for text in ("replay:fraction=0.5", "replay:fraction=0.5,equal_steps=true"):
        mitigation = build_mitigation(text)
        model = mitigation.setup(tiny_llama(), context())
        trainers[text] = train_one(model, mitigation, 0, tmp_path)[1]
    replay, control = trainers.values()
    assert len(replay.losses) == len(control.losses) == 8
    assert control.examples["pretraining"] == 0 and control.examples["padding"] == replay.examples["pretraining"]
    assert isinstance(mitigation, Replay)
    mixed = mitigation.train_dataset(ExampleDataset(context().encode_task(TASKS[0])), TASKS[0], [])
    assert all(set(mixed[i]["labels"]) == {-100} for i in range(16, len(mixed)))


def test_early_stopping_by_task_restores_the_best_weights(tmp_path: Path) -> None:
    from forgetting.trainer import mean_loss

    mitigation = build_mitigation("early_stopping:every=1,patience=1")
    model = mitigation.setup(tiny_llama(), context())
    batches = mitigation._batches(context().encode_validation(TASKS[0]))  # type: ignore[attr-defined]
    before = mean_loss(model, batches)
    model, trainer = train_one(model, mitigation, 0, tmp_path)
    assert mean_loss(model, batches) <= before
    assert len(trainer.losses) <= 4


def test_early_stopping_by_pretraining_stays_within_its_limit(tmp_path: Path) -> None:
    from forgetting.trainer import mean_loss

    mitigation = build_mitigation("early_stopping:metric=pretraining,every=1,max_increase=0.0001+low_lr:factor=10")
    base = tiny_llama()
    optimizer = torch.optim.AdamW(base.parameters(), lr=1e-2)
    ids = torch.tensor([[1, *TOKENIZER(text)["input_ids"]] for text in TEXT])
    for _ in range(200):  # a random model would get better at the text by learning anything
        base(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model = mitigation.setup(copy.deepcopy(base), context())
    batches = mitigation.parts[0]._pretraining_batches()  # type: ignore[attr-defined]
    before = mean_loss(model, batches)
    for position in range(2):
        model, _ = train_one(model, mitigation, position, tmp_path)
    assert mean_loss(model, batches) <= before + 0.0001 + 1e-6
    naive = build_mitigation("low_lr:factor=10")
    model = naive.setup(base, context())
    for position in range(2):
        model, _ = train_one(model, naive, position, tmp_path)
    assert mean_loss(model, batches) > before + 0.0001
