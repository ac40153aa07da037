"""GPM: its bases, and the outputs that they keep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from forgetting.errors import UsageError
from forgetting.mitigations import build_mitigation
from tests.mitigations.test_conformance import TASKS, TEXT, context, run, train_one, weights
from tests.models_for_tests import tiny_gpt2, tiny_llama

LINEAR = 7 * 2  # of tiny_llama's two blocks


def trained(text: str, model: Any, tmp_path: Path) -> tuple[Any, Any]:
    """One task, with the bases of the pretrained state alone."""
    mitigation: Any = build_mitigation(text)
    model = mitigation.setup(model, context())
    mitigation.after_task = lambda model, task: model
    return train_one(model, mitigation, 0, tmp_path)[0].eval(), mitigation


def test_where_the_inputs_span_everything_linear_layers_do_not_move(tmp_path: Path) -> None:
    base = weights(tiny_llama())
    for others in ("frozen", "free"):
        model, mitigation = trained(f"gpm:threshold=1,examples=16,others={others}", tiny_llama(), tmp_path)
        assert len(mitigation._bases) == LINEAR
        assert all(basis.shape[0] == basis.shape[1] for basis in mitigation._bases.values())
        for name, value in weights(model).items():
            assert torch.equal(value, base[name]) == (others == "frozen" or name in mitigation._bases), name
        assert mitigation.stored_floats() == 2 * (6 * 16**2 + 24**2)


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_outputs_on_stored_inputs_stay(make: Any, tmp_path: Path) -> None:
    base = make()
    model, mitigation = trained("gpm:threshold=1,examples=1", make(), tmp_path)
    assert all(0 < basis.shape[1] <= 6 for basis in mitigation._bases.values())  # the document's tokens
    stored, other = (torch.tensor([feature["input_ids"]]) for feature in context().encode_text([TEXT[0], TEXT[20]]))
    change, elsewhere = ((model(ids).logits - base(ids).logits).detach().abs().max() for ids in (stored, other))
    assert change < 2e-6 and elsewhere > 1e-3
    before = weights(base)
    assert all((value != before[name]).any() == (name in mitigation._bases) for name, value in weights(model).items())


def test_under_adam_the_projected_gradient_alone_does_not_keep_them(tmp_path: Path) -> None:
    base, ids = tiny_llama(), torch.tensor([context().encode_text(TEXT[:1])[0]["input_ids"]])
    model, _ = trained("gpm:threshold=1,examples=1,project=gradient", tiny_llama(), tmp_path)
    assert (model(ids).logits - base(ids).logits).abs().max() > 1e-3


def test_the_bases_are_of_the_layers_inputs() -> None:
    model = tiny_llama()
    mitigation: Any = build_mitigation("gpm:threshold=0.9,examples=5")
    mitigation.setup(model, context())
    mitigation.before_task(model, TASKS[0])
    layer, seen = model.model.layers[1].mlp.down_proj, []
    handle = layer.register_forward_pre_hook(lambda module, args: seen.append(args[0][0]))
    for feature in context().encode_text(TEXT[:5]):
        model(torch.tensor([feature["input_ids"]]))
    handle.remove()
    U, S, _ = torch.linalg.svd(torch.cat(seen).detach().double().T)
    k = int(((S**2).cumsum(0) < 0.9 * (S**2).sum()).sum()) + 1
    basis = mitigation._bases["model.layers.1.mlp.down_proj.weight"].double()
    assert basis.shape == (24, k) and 1 <= k < 24
    torch.testing.assert_close(basis @ basis.T, U[:, :k] @ U[:, :k].T, rtol=0, atol=1e-5)
    assert not any(module._forward_pre_hooks for module in model.modules()) and not model.training


def test_bases_grow_with_tasks_and_stay_orthonormal(tmp_path: Path) -> None:
    mitigation: Any = build_mitigation("gpm:threshold=0.8,examples=4")
    model = mitigation.setup(tiny_llama(), context())
    ranks = []
    for position in range(2):
        model, _ = train_one(model, mitigation, position, tmp_path)
        ranks.append(sum(basis.shape[1] for basis in mitigation._bases.values()))
    assert ranks[0] < ranks[1]
    for basis in mitigation._bases.values():
        assert (basis.T @ basis - torch.eye(basis.shape[1])).abs().max() < 2e-6


def test_a_tied_head_is_an_embedding_and_an_untied_one_a_linear_layer() -> None:
    for tied in (True, False):
        model = tiny_llama(tied=tied)
        mitigation: Any = build_mitigation("gpm:examples=2")
        mitigation.setup(model, context())
        mitigation.before_task(model, TASKS[0])
        assert ("lm_head.weight" in mitigation._bases) == (not tied)
        trains = {name for name, p in model.named_parameters() if p.requires_grad}
        assert trains == set(mitigation._bases) and "model.embed_tokens.weight" not in trains


def test_without_the_text_the_first_task_is_naive_and_nothing_is_frozen_yet(tmp_path: Path) -> None:
    naive = weights(run("naive", tmp_path, tasks=[0])[0])
    mitigation: Any = build_mitigation("gpm:pretraining=false,examples=4")
    model = mitigation.setup(tiny_llama(), context())
    model, _ = train_one(model, mitigation, 0, tmp_path)
    first = weights(model)
    assert all(torch.equal(value, naive[key]) for key, value in first.items())
    model, _ = train_one(model, mitigation, 1, tmp_path)
    moved = {name for name, value in weights(model).items() if not torch.equal(value, first[name])}
    assert moved and moved <= set(mitigation._bases)


def test_with_adapters_and_frozen_blocks(tmp_path: Path) -> None:
    _, mitigation = run("lora:r=2,merge=false+gpm:examples=4", tmp_path)
    assert all(".lora_" in name for name in mitigation.parts[1]._bases)  # type: ignore[attr-defined]
    base = weights(tiny_llama())
    results = [weights(run(t, tmp_path)[0]) for t in ("gpm:examples=4+freeze:first=1", "freeze:first=1+gpm:examples=4")]
    for after in results:
        moved = {name for name in after if not torch.equal(after[name], base[name])}
        assert moved and all(name.startswith("model.layers.1.") for name in moved)
    assert all(torch.equal(results[0][n], results[1][n]) for n in base)


def test_refusals() -> None:
    for text, said in (
        ("gpm+lora", "stands before 'lora'"),
        ("lora+gpm", r"write lora:merge=false\+gpm"),
        ("gpm:threshold=1.1", "threshold = '1.1'"),
    ):
        with pytest.raises(UsageError, match=said):
            build_mitigation(text)
    model = tiny_llama()
    for parameter in model.model.layers.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(UsageError, match="has no linear layer"):
        build_mitigation("gpm").check_model(model)
    build_mitigation("gpm:threshold=0").check_model(model)
    mitigation = build_mitigation("freeze:pattern=proj+gpm")
    model = mitigation.setup(tiny_llama(), context())
    with pytest.raises(UsageError, match="'gpm': no linear layer trains"):
        mitigation.before_task(model, TASKS[0])
