"""The memory estimate: against hand-computed numbers, against what torch allocates, and against stored records."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from forgetting.cli import main
from forgetting.config import TrainingConfig
from forgetting.errors import UsageError
from forgetting.mitigations import build_mitigation, mitigation_names, parse_mitigation
from forgetting.planning.activations import Activations, Live, trace
from forgetting.planning.memory import flops_per_step, need, plan_memory
from forgetting.planning.shape import Shape, build, read_config, shape_of
from forgetting.planning.stored import STORED, Stored, stored_by

LLAMA_70B: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("large") / "config.json"
    path.write_text(json.dumps(LLAMA_70B))
    return read_config(None, path)


def test_parameters_of_a_70b_model_are_those_of_its_formula(large: Any) -> None:
    h, m, v = 8192, 28672, 128256
    block = h * h * 2 + 2 * h * 1024 + 3 * h * m + 2 * h  # q, o; k, v; the three of the MLP; two norms
    shape = shape_of(large, build_mitigation("naive"))
    assert (shape.block, shape.outside, shape.layers_kept) == (block, 2 * v * h + h, 80)
    assert shape.parameters == shape.trained == 80 * block + 2 * v * h + h == 70_553_706_496
    frozen = shape_of(large, build_mitigation("freeze:first=60,embeddings=true"))
    assert frozen.trained == 20 * block + v * h + h and frozen.layers_kept == 20 and frozen.trained_block == block
    lora = shape_of(large, build_mitigation("lora:r=4"))
    linear = 2 * (h + h) + 2 * (h + 1024) + 3 * (h + m)  # inputs and outputs of each
    assert lora.trained == 80 * 4 * linear and lora.parameters == shape.parameters + lora.trained


def test_with_checkpointing_a_block_adds_its_input_alone(large: Any) -> None:
    training = TrainingConfig(batch_size=2, max_length=512, gradient_checkpointing=True)
    found = trace(large, training, build_mitigation("naive"))
    assert found.block == 2 * 512 * 8192 * 4
    assert found.outside > found.logits == 2 * 512 * 128256 * 4
    whole = trace(large, training.model_copy(update={"gradient_checkpointing": False}), build_mitigation("naive"))
    assert whole.block > 20 * found.block
    # A multiply and an add per weight and token forwards, twice that backwards, and attention's (T, T) products.
    tokens, block = 2 * 512, 855_638_016  # products' weights: a block without its norms
    attention = 3 * 2 * 2 * 512 * tokens * 8192
    assert whole.block_flops == 6 * block * tokens + attention
    # Forwards once more, up to what the last product reads: its result is not needed again.
    assert 3 * found.block_flops == 4 * whole.block_flops - 3 * 2 * tokens * 8192 * 28672


def test_the_sum_is_what_is_computed_by_hand() -> None:
    shape = Shape(1000, 400, layers=4, layers_kept=2, block=150, outside=400, trained_block=100, trained_outside=0)
    activations = Activations(block=500, outside=300, logits=120, block_flops=10, outside_flops=6)
    one = need(shape, activations, Stored())
    assert (one.weights, one.gradients, one.optimizer, one.activations, one.logits) == (4000, 1600, 3200, 1000, 300)
    assert one.peak == 4000 + 3200 + 1600  # gradients, at the end of a pass, are more than activations before it
    assert need(shape, activations, Stored(), accumulation=2).peak == 4000 + 3200 + 1300 + 1600

    assert need(shape, activations, Stored(step=2)).peak == 4000 + 3200 + 3 * 1600

    kept = Stored(kept=2, during=1, copies=1, teacher=True, fisher=True)
    ddp = need(shape, activations, kept, devices=2, strategy="ddp")
    assert (ddp.mitigation, ddp.communication, ddp.logits, ddp.fisher) == (3 * 1600 + 4000, 1600, 420, 1600)
    assert ddp.peak == 4000 + 3200 + 8800 + 1600 + (1000 + 420 + 1600)
    fsdp = need(shape, activations, kept, devices=8, strategy="fsdp")
    assert (fsdp.weights, fsdp.gradients, fsdp.optimizer, fsdp.mitigation) == (500, 200, 400, 1100)
    assert fsdp.communication == 4 * (2 * 150 + 400 + 100) and fsdp.peak == 500 + 400 + 1100 + 3200 + 1420 + 200
    assert flops_per_step(shape, activations, Stored(backward=1), accumulation=3) == 3 * 2 * 46
    for devices, strategy in ((1, "ddp"), (2, "one"), (0, "one")):
        with pytest.raises(ValueError, match=f"devices = {devices}"):
            need(shape, activations, kept, devices=devices, strategy=strategy)  # type: ignore[arg-type]


def test_live_counts_storages_once_and_lets_them_go() -> None:
    import torch

    weight = torch.ones(256)  # 1 KiB
    with Live([weight]) as live:
        view = weight.view(16, 16).T
        assert live.now == live.peak == 0
        doubled = view * 2
        again = doubled[3:].reshape(-1)[:5]  # strided: reshape copies its 13 · 16 numbers
        assert live.now == 1024 + 13 * 16 * 4
        del doubled, again
        assert (live.now, live.peak) == (0, 1024 + 832)


@pytest.mark.parametrize("mitigation", ["naive", "lora:r=8"])
def test_the_estimate_is_within_a_tenth_of_what_a_step_allocates(mitigation: str) -> None:
    """The embedded model's real tensors, counted as torch makes them over two steps with AdamW."""
    import torch

    from forgetting.planning.shape import trains

    config, training = read_config("micro", None), TrainingConfig(batch_size=8, max_length=64)
    model = trains(build(config), build_mitigation(mitigation))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
    ids = torch.zeros((8, 64), dtype=torch.long)
    with Live([*model.parameters(), *model.buffers(), ids]) as live:
        for _ in range(2):
            model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids, use_cache=False).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    measured = live.peak + sum(p.numel() * 4 for p in model.parameters())
    (one,) = plan_memory(config, training, mitigation, (1,))["devices"]
    assert one["peak"] == pytest.approx(measured, rel=0.1)
    assert one["activations"] > 0.5 * one["peak"]  # it is not the weights alone that agree


def stored_records() -> Iterator[tuple[str, dict]]:
    """The stored runs of the embedded model, one for each setting of a mitigation that stands alone."""
    seen = set()
    for path in sorted((Path(__file__).parents[2] / "results").glob("*/**/runs/*.json")):
        if path.name.split("-s")[0] not in STORED:
            continue
        record = json.loads(path.read_text())
        text = record["config"]["mitigation"]
        if text not in seen and record["status"] == "finished" and record["config"]["model"] == "micro":
            seen.add(text)
            yield text, record


def test_what_is_said_to_be_kept_is_what_runs_kept() -> None:
    """The records of this repository count the numbers that each method stored; a teacher is let go before."""
    found = dict(stored_records())
    names = {parse_mitigation(text)[0][0] for text in found}
    assert {"ewc", "l2sp", "si", "mas", "rwalk", "ema", "wise_ft", "flow", "freeze", "lora"} <= names
    for text, record in found.items():
        ((name, _),) = parse_mitigation(text)
        try:
            stored = stored_by(build_mitigation(text))
        except UsageError:  # at these options it is not estimated
            continue
        cost = record["cost"]
        expected = stored.kept * cost["trainable_parameters"] + stored.copies * cost["parameters"]
        tokens = cost["stored_floats"] - (0 if name == "lwf" else expected)
        assert 0 <= tokens < 0.1 * cost["parameters"], text


def test_every_method_is_estimated_or_refused_by_name() -> None:
    for name in mitigation_names():
        if name in STORED:
            assert isinstance(stored_by(build_mitigation(name)), Stored)
        else:
            with pytest.raises(UsageError, match=f"mitigation '{name}': what it keeps depends"):
                stored_by(build_mitigation(name))
    assert stored_by(build_mitigation("replay+ewc")) == STORED["ewc"]
    assert stored_by(build_mitigation("ewc:strength=0")) == Stored()
    assert [stored_by(build_mitigation(f"wise_ft:alpha=1,curve={c}")).kept for c in ("0.5", "none")] == [1, 0]
    assert stored_by(build_mitigation("si:pretrained=fisher")).fisher
    for text in ("ewc:mode=kfac", "lora:init=pissa", "kl_to_base:on=text"):
        with pytest.raises(UsageError, match="is not estimated"):
            stored_by(build_mitigation(text))


def test_the_command_prints_json_a_table_and_one_line_on_mistakes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_70B | {"num_hidden_layers": 3, "hidden_size": 128}))
    (tmp_path / "study.yaml").write_text("mitigations: [naive]\ntraining: {batch_size: 2, max_length: 16}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["forgetting", "plan", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        return int(stop.value.code or 0), *capsys.readouterr()

    code, out, _ = command("study.yaml", "--config", "config.json", "--devices", "1,8", "--json")
    (plan,) = json.loads(out)
    assert code == 0 and [row["strategy"] for row in plan["devices"]] == ["one", "ddp", "fsdp"]
    one, ddp, fsdp = plan["devices"]
    assert fsdp["weights"] == plan["parameters"] * 4 / 8
    assert ddp["activations"] == one["activations"] / 2  # two sequences: devices beyond the second have none of them
    code, out, _ = command("study.yaml", "--devices", "2")
    assert code == 0 and "naive: 984,192 parameters" in out and "2 ddp" in out and "2 fsdp" in out
    assert "fsdp: an estimate for FSDP2 that was not checked" in out
    assert "FSDP2" not in command("study.yaml", "--devices", "1")[1]
    for arguments, message in (
        (["--model", "micro-vision"], "is of family vision"),
        (["--model", "micro", "--config", "config.json"], "both given"),
        (["--devices", "two"], "--devices 'two'"),
        (["--devices", "0"], "--devices 0: needs at least 1"),
        (["--config", "none.json"], "no configuration can be read"),
        (["--mitigation", "gpm"], "depends on data"),
    ):
        code, _, err = command(*arguments)
        assert code == 2 and message in err and len(err.splitlines()) == 1, (arguments, err)
