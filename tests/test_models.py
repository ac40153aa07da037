"""Loading models: whole and safe ones load, every other folder gives one clear line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForTokenClassification

from forgetting.errors import UsageError
from forgetting.models import load_model, transformer_blocks
from tests.models_for_tests import save_tiny, tiny_gpt2, tiny_llama, tiny_tokenizer


def test_a_local_folder_loads_as_saved(tmp_path: Path) -> None:
    loaded = load_model(str(save_tiny(tmp_path)))
    expected = tiny_llama().state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in loaded.model.state_dict().items())
    assert not loaded.model.training and loaded.family == "decoder"
    assert loaded.tokenizer("w3 w4")["input_ids"] == [3, 4]


def test_sharded_weights_load(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path, max_shard_size="5KB")
    tiny_tokenizer().save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors.index.json").exists()
    assert load_model(str(tmp_path)).model.num_parameters() == tiny_llama().num_parameters()
    next(tmp_path.glob("model-00002*")).unlink()
    with pytest.raises(UsageError, match="weight files are missing .* download it again"):
        load_model(str(tmp_path))


def _drop(file: str) -> Callable[[Path], None]:
    return lambda folder: (folder / file).unlink()


def _pickled(folder: Path) -> None:
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def _cut(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])


def _without_a_weight(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def _tagger(folder: Path) -> None:
    config = BertConfig(vocab_size=32, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    BertForTokenClassification(config).save_pretrained(folder)


def _unknown_architecture(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "perceptron"}))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_drop("config.json"), "has no config.json"),
        (_drop("model.safetensors"), "has no model.safetensors; download the model again"),
        (_drop("tokenizer.json"), "has no tokenizer.json"),
        (_pickled, "holds pickled weights only"),
        (_cut, "cut short or not safetensors"),
        (_without_a_weight, "1 weights are missing from its files (model.layers.1.mlp.up_proj.weight)"),
        (_tagger, "holds BertForTokenClassification, which is not a model for causal or masked"),
        (_unknown_architecture, "cannot be loaded"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is not JSON"),
    ],
)
def test_a_damaged_or_foreign_folder_is_one_line(damage: Callable[[Path], None], said: str, tmp_path: Path) -> None:
    damage(save_tiny(tmp_path))
    with pytest.raises(UsageError) as error:
        load_model(str(tmp_path))
    assert said in str(error.value) and str(tmp_path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("./nowhere", "is not a folder"),
        ("mirco", "did you mean 'micro'?"),
        ("nobody/no-such-model", "the hub gave nothing"),
        ("a b c", "is neither a folder nor a hub id"),
    ],
)
def test_a_model_that_is_nowhere_is_one_line(name: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        load_model(name)
    assert said in str(error.value) and repr(name) in str(error.value) and "\n" not in str(error.value)


def test_blocks_are_found_by_name() -> None:
    assert transformer_blocks(tiny_llama())[0] == "model.layers"
    prefix, blocks = transformer_blocks(tiny_gpt2())
    assert prefix == "transformer.h" and len(blocks) == 2
    with pytest.raises(UsageError, match="has no list of blocks"):
        transformer_blocks(torch.nn.Linear(2, 2))


def test_the_real_model_loads(real_data: Path) -> None:
    assert load_model(str(real_data / "stories260K-hf")).model.num_parameters() == 260_032
