"""Edits against weights mixed by hand, on models whose every weight moved."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel

from forgetting.audit.edits import Change, Edit, layer_groups
from forgetting.errors import UsageError
from forgetting.fisher import DiagonalFisher
from tests.models_for_tests import tiny_gpt2, tiny_llama

IDS = torch.tensor([[2, 3, 4, 5, 6, 7]])


def moved(model: PreTrainedModel, seed: int = 1) -> PreTrainedModel:
    tuned = copy.deepcopy(model)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return tuned


def state(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    "make", [tiny_llama, lambda: tiny_llama(tied=False), tiny_gpt2], ids=["tied", "untied", "gpt2"]
)
def test_every_edit_is_what_it_says(make) -> None:  # type: ignore[no-untyped-def]
    base = make()
    tuned = moved(base)
    before, after = state(base), state(tuned)
    change = Change(base, tuned)

    def at(edit: Edit, fisher: DiagonalFisher | None = None) -> dict[str, torch.Tensor]:
        with change.at(edit, fisher):
            return state(change.model)

    for alpha in (0.0, 0.3, 1.0):
        for name, value in at(Edit("interpolation", alpha)).items():
            torch.testing.assert_close(value, (1 - alpha) * before[name] + alpha * after[name])
    assert all(torch.equal(value, after[name]) for name, value in at(Edit("interpolation", 1.0)).items())
    assert all(torch.equal(value, before[name]) for name, value in at(Edit("interpolation", 0.0)).items())

    mixed = at(Edit("revert", layers=("block 1", "embeddings")))
    back = {name for name in mixed if ".1." in name or "embed" in name or ".wte." in name or ".wpe." in name}
    assert back and back < set(mixed)
    assert all(torch.equal(mixed[name], (before if name in back else after)[name]) for name in mixed)

    fisher = DiagonalFisher({n: torch.rand_like(p) for n, p in base.named_parameters()}, "sample", 1, 1, 1)
    mixed = at(Edit("fisher", 0.25), fisher)
    values = torch.cat([v.flatten() for v in fisher.values.values()])
    reverted = torch.cat([(mixed[n] == before[n]).flatten() for n in fisher.values])
    assert int(reverted.sum()) == values.numel() // 4
    assert values[reverted].min() > values[~reverted].max()
    assert all(torch.equal(value, before[name]) for name, value in at(Edit("fisher", 1.0), fisher).items())
    assert all(torch.equal(value, after[name]) for name, value in at(Edit("fisher", 0.0), fisher).items())

    linear = [n for n in before if n.endswith(("proj.weight", "c_attn.weight", "c_fc.weight"))]
    for rank in (1, 3, 16):
        mixed = at(Edit("rank", rank))
        for name in mixed:
            if name not in linear:
                assert torch.equal(mixed[name], before[name])
                continue
            delta, kept = after[name] - before[name], mixed[name] - before[name]
            spectrum = torch.linalg.svdvals(delta.double())
            assert (torch.linalg.svdvals(kept.double()) > 1e-5).sum() == min(rank, len(spectrum))
            # Eckart and Young: no matrix of this rank is nearer
            torch.testing.assert_close((delta - kept).double().norm(), spectrum[rank:].norm(), atol=1e-5, rtol=1e-4)
    assert all(torch.equal(value, after[name]) for name, value in state(change.model).items()), "tuned again"
    assert all(torch.equal(value, before[name]) for name, value in state(base).items())
    assert all(torch.equal(value, after[name]) for name, value in state(tuned).items())


def test_an_adapter_counts_as_merged_and_its_rank_is_enough() -> None:
    base = tiny_llama()
    wrapped = get_peft_model(copy.deepcopy(base), LoraConfig(r=2, target_modules="all-linear", lora_alpha=4)).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
        wanted = wrapped(IDS).logits
        change = Change(base, wrapped)
        torch.testing.assert_close(change.model(IDS).logits, wanted, atol=1e-5, rtol=1e-4)
        with change.at(Edit("rank", 2)):
            torch.testing.assert_close(change.model(IDS).logits, wanted, atol=1e-4, rtol=1e-3)
        with change.at(Edit("rank", 1)):
            assert (change.model(IDS).logits - wanted).abs().max() > 1e-2
        with change.at_base():
            assert torch.equal(change.model(IDS).logits, base(IDS).logits)


def test_a_head_of_its_own_is_a_layer() -> None:
    from forgetting.models import untied_head

    base = tiny_llama(tied=True)
    tuned = copy.deepcopy(base)
    untied_head(tuned)
    tuned = moved(tuned)
    change = Change(base, tuned)
    with torch.no_grad():
        assert torch.equal(change.model(IDS).logits, tuned(IDS).logits)
        with change.at(Edit("interpolation", 0.0)):
            assert torch.equal(change.model(IDS).logits, base(IDS).logits)
    assert layer_groups(change) == [("embeddings",), ("block 0",), ("block 1",), ("final norm",), ("head",)]
    assert layer_groups(change, 1)[1] == ("block 0", "block 1")


def test_names_and_mistakes() -> None:
    assert Edit("interpolation", 0.5).name == "base + 0.5 Δ"
    assert Edit("rank", 4).name == "rank 4 of Δ"
    assert Edit("fisher", 0.1).name == "revert top 10% of Fisher"
    assert (
        Edit("revert", layers=("embeddings", "block 2", "block 3", "block 4")).name == "revert embeddings, blocks 2–4"
    )
    for arguments in (("interpolation", 1.5), ("rank", 0.5), ("rank", 0), ("fisher", -0.1), ("revert",), ("other", 1)):
        with pytest.raises(ValueError):
            Edit(*arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="layers"):
        Edit("rank", 2, ("block 0",))
    base = tiny_llama()
    change = Change(base, moved(base))
    with pytest.raises(ValueError, match="'block 7' is none of embeddings, block 0"):
        change.weights(Edit("revert", layers=("block 7",)))
    with pytest.raises(ValueError, match="fisher: is needed"):
        change.weights(Edit("fisher", 0.5))
    with pytest.raises(ValueError, match="fisher: has other"):
        change.weights(Edit("fisher", 0.5), DiagonalFisher({"other": torch.zeros(2)}, "sample", 1, 1, 1))
    longer = copy.deepcopy(base)
    longer.resize_token_embeddings(40)
    with pytest.raises(UsageError, match=r"has shape \(40, 16\), in the base model \(32, 16\)"):
        Change(base, longer)
    with pytest.raises(UsageError, match="has no parameter"):
        Change(base, tiny_gpt2())
    with pytest.raises(ValueError, match="most: 0"):
        layer_groups(change, 0)
