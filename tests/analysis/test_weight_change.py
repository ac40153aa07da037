"""Ranks against hand-made spectra, and the table against loops, the recorded change, and the KL that it estimates."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from peft import LoraConfig, get_peft_model

from forgetting.analysis.laws import second_order_rise
from forgetting.analysis.weight_change import effective_rank, pooled_changes, stable_rank, weight_changes
from forgetting.evaluation.drift import weight_change
from forgetting.fisher import DiagonalFisher, diagonal_fisher
from tests.families.small import family
from tests.models_for_tests import tiny_gpt2, tiny_llama


def with_spectrum(singular_values: list[float], rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    u = torch.linalg.qr(torch.randn(rows, rows, generator=generator, dtype=torch.float64))[0]
    v = torch.linalg.qr(torch.randn(columns, columns, generator=generator, dtype=torch.float64))[0]
    k = len(singular_values)
    return u[:, :k] @ torch.diag(torch.tensor(singular_values, dtype=torch.float64)) @ v[:, :k].T


def test_ranks_of_known_spectra() -> None:
    assert effective_rank(with_spectrum([2, 2, 2], 5, 7)) == pytest.approx(3, rel=1e-12)
    assert stable_rank(with_spectrum([2, 2, 2], 5, 7)) == pytest.approx(3, rel=1e-12)
    # shares 1/2, 1/4, 1/4: the entropy is 1.5 ln 2
    assert effective_rank(with_spectrum([2, 1, 1], 6, 4)) == pytest.approx(2**1.5, rel=1e-12)
    assert stable_rank(with_spectrum([2, 1, 1], 6, 4)) == pytest.approx(6 / 4, rel=1e-12)
    assert effective_rank(torch.zeros(3, 4)) == stable_rank(torch.zeros(3, 4)) == 0


def test_ranks_do_not_depend_on_scale_or_rotation_and_stay_below_the_rank() -> None:
    spectrum = [3.0, 1.0, 0.5, 0.01]
    one, other = with_spectrum(spectrum, 8, 6, seed=1), with_spectrum(spectrum, 6, 8, seed=2)
    for rank in (effective_rank, stable_rank):
        assert 1 < rank(one) < 4
        for changed in (other, one.T, 1e-200 * one, 1e200 * one):
            assert rank(changed) == pytest.approx(rank(one), rel=1e-10)


@pytest.mark.parametrize("bad", [torch.zeros(3), torch.tensor([[float("nan")]])])
def test_what_is_no_matrix_is_refused(bad: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="matrix: has shape"):
        effective_rank(bad)


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2, lambda: tiny_llama(tied=False)], ids=["tied", "gpt2", "llama"])
def test_the_table_is_what_loops_give_and_its_layers_are_what_records_hold(make) -> None:  # type: ignore[no-untyped-def]
    base = make()
    tuned = copy.deepcopy(base)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    fisher = DiagonalFisher({n: torch.rand_like(p) for n, p in base.named_parameters()}, "sample", 1, 1, 1)
    frame = weight_changes(base, tuned, fisher)
    pairs = list(zip(base.named_parameters(), tuned.parameters(), strict=True))
    assert len(frame) == len(pairs) and frame["parameters"].sum() == sum(p.numel() for p in base.parameters())
    for row, ((name, before), after) in zip(frame.to_dict("records"), pairs, strict=True):
        block = name.split(".")[2] if "layers." in name or ".h." in name else None
        assert row["kind"] in name and row["layer"].startswith("block") == (block is not None)
        assert block is None or row["layer"] == f"block {block}"
        before, after = before.detach().double(), after.detach().double()
        delta = after - before
        total = sum(float(d) ** 2 for d in delta.flatten())
        norm = sum(float(p) ** 2 for p in before.flatten())
        assert row["change"] == pytest.approx(math.sqrt(total), rel=1e-9)
        assert row["norm"] == pytest.approx(math.sqrt(norm), rel=1e-9)
        assert row["relative"] == pytest.approx(math.sqrt(total / norm) if norm else math.inf, rel=1e-9)
        values = fisher.values[name].flatten()
        weighted = sum(float(f) * float(d) ** 2 for f, d in zip(values, delta.flatten(), strict=True))
        assert row["fisher_change"] == pytest.approx(weighted / 2, rel=1e-6)
        if delta.ndim == 2:
            assert row["effective_rank"] == pytest.approx(effective_rank(delta))
            assert row["full_rank"] == min(delta.shape)
            assert 1 <= row["stable_rank"] <= row["full_rank"] and 1 <= row["effective_rank"] <= row["full_rank"]
        else:
            assert math.isnan(row["effective_rank"]) and math.isnan(row["stable_rank"])
    whole = second_order_rise(base.state_dict(), tuned.state_dict(), fisher)
    assert frame["fisher_change"].sum() == pytest.approx(whole.per_example, rel=1e-12)
    layers = pooled_changes(frame, "layer").set_index("layer")
    assert layers["relative"].to_dict() == pytest.approx(weight_change(base, tuned), rel=1e-9)
    kinds = pooled_changes(frame, "kind").set_index("kind")
    for pooled in (layers, kinds):
        assert pooled["share"].sum() == pytest.approx(1)
        assert pooled["fisher_change"].sum() == pytest.approx(frame["fisher_change"].sum())
    assert kinds["parameters"].max() < frame["parameters"].sum()


def test_an_unchanged_model_has_a_table_of_zeros() -> None:
    base = tiny_llama()
    frame = weight_changes(base, copy.deepcopy(base))
    assert set(frame["relative"]) == {0.0} and set(frame["effective_rank"].dropna()) == {0.0}
    assert "fisher_change" not in frame
    assert set(pooled_changes(frame, "layer")["share"]) == {0.0}


def test_an_active_adapter_of_rank_2_changes_its_matrices_in_2_directions() -> None:
    base = tiny_llama(dtype=torch.float64)
    wrapped = get_peft_model(
        copy.deepcopy(base), LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    )
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    frame = weight_changes(base, wrapped)
    moved = frame[frame["change"] > 0]
    assert sorted(set(moved["kind"])) == ["mlp.down_proj", "self_attn.q_proj"] and len(moved) == 4
    assert ((moved["effective_rank"] > 1) & (moved["effective_rank"] < 2 + 1e-9)).all()
    assert ((moved["stable_rank"] > 1) & (moved["stable_rank"] < 2 + 1e-9)).all()
    with wrapped.disable_adapter():
        assert set(weight_changes(base, wrapped)["change"]) == {0.0}


def test_filters_are_matrices_of_outputs_and_stacks_of_blocks_are_told_apart() -> None:
    resnet = family("resnet").base.model
    tuned = copy.deepcopy(resnet)
    name, filters = next((n, p) for n, p in tuned.named_parameters() if p.ndim == 4 and not n.startswith("heads."))
    with torch.no_grad():
        filters[0] += 1.0  # of one output alone
    moved = weight_changes(resnet, tuned).query("change > 0").to_dict("records")
    assert len(moved) == 1 and moved[0]["kind"] in name
    assert moved[0]["effective_rank"] == pytest.approx(1)
    assert moved[0]["full_rank"] == min(filters.shape[0], filters[0].numel())
    fisher = DiagonalFisher({n: torch.ones_like(p) for n, p in resnet.named_parameters()}, "sample", 1, 1, 1)
    assert any(n.startswith("heads.") for n in fisher.values)
    weighted = weight_changes(resnet, tuned, fisher)
    assert weighted["fisher_change"].sum() == pytest.approx(filters[0].numel() / 2)
    t5 = family("t5").base.model
    assert not weight_changes(t5, t5).duplicated(["layer", "kind"]).any()


def test_the_fisher_weighted_change_of_a_small_step_is_the_kl() -> None:
    """Along one parameter at a time the diagonal is exact: KL(base‖tuned) ≈ ½ F δ², δ → 0."""
    base = tiny_llama(dtype=torch.float64)
    ids = torch.tensor([[2, 5]])  # one prediction: the exact Fisher is a finite sum
    batches = [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}]
    fisher = diagonal_fisher(base, batches, estimator="exact", accumulate_dtype=torch.float64)
    tuned, step = copy.deepcopy(base), 1e-3
    name = "model.layers.1.mlp.down_proj.weight"
    index = int(fisher.values[name].argmax())
    with torch.no_grad():
        tuned.get_parameter(name).view(-1)[index] += step
        log_p, log_q = (m(ids).logits[0, 0].log_softmax(-1) for m in (base, tuned))
    kl = float((log_p.exp() * (log_p - log_q)).sum())
    estimate = weight_changes(base, tuned, fisher)["fisher_change"].sum()
    assert kl > 1e-12
    assert estimate == pytest.approx(kl, rel=1e-2)


def test_a_fisher_of_part_of_the_model_leaves_gaps_and_one_of_another_model_is_refused() -> None:
    base, tuned = tiny_llama(seed=0), tiny_llama(seed=1)
    name = "model.layers.0.mlp.up_proj.weight"
    values = {name: torch.ones_like(base.get_parameter(name))}
    frame = weight_changes(base, tuned, DiagonalFisher(values, "sample", 1, 1, 1))
    known = frame.dropna(subset="fisher_change")
    assert list(known["kind"]) == ["mlp.up_proj"]
    assert float(known["fisher_change"].iloc[0]) == pytest.approx(float(known["change"].iloc[0]) ** 2 / 2)
    assert pooled_changes(frame, "layer")["fisher_change"].isna().all()
    with pytest.raises(ValueError, match="fisher: has other, which the model has not"):
        weight_changes(base, tuned, DiagonalFisher({"other": torch.ones(1)}, "sample", 1, 1, 1))
    with pytest.raises(ValueError, match=f"parameter {name} has shape"):
        weight_changes(base, tuned, DiagonalFisher({name: torch.ones(3)}, "sample", 1, 1, 1))
    with pytest.raises(ValueError, match="estimator 'batched' squares per batch"):
        weight_changes(base, tuned, DiagonalFisher(values, "batched", 1, 1))
    with pytest.raises(ValueError, match="by: 'block' is not"):
        pooled_changes(frame, "block")  # type: ignore[arg-type]
