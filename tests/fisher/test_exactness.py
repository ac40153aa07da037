"""Every rule, family, layout and split against the oracle, in float64."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatch
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from forgetting.fisher import DiagonalFisher, NoRule, diagonal_fisher
from forgetting.fisher.capture import Capture
from forgetting.fisher.estimators import shifts_labels
from forgetting.fisher.examples import Spans
from forgetting.fisher.uses import Product, loop_product_squares
from forgetting.tasks.encode import Collator, pack
from tests.fisher.families import FAMILIES, Batch, llama, ready, text

TOLERANCE = 1e-12  # relative to each tensor's greatest value
ZERO = 1e-20  # the gradient of a key's bias is zero, since softmax does not see it: what is below is rounding, squared


def fisher(model: nn.Module, batches: list[Batch], **options: Any) -> DiagonalFisher:
    options = {"estimator": "empirical", "accumulate_dtype": torch.float64} | options
    return diagonal_fisher(model, batches, generator=torch.Generator().manual_seed(0), **options)


def assert_equal(ours: dict[str, Tensor], oracle: dict[str, Tensor]) -> None:
    assert set(ours) == set(oracle)
    for name, expected in oracle.items():
        assert ours[name].shape == expected.shape
        scale = max(float(expected.abs().max()), ZERO)
        assert float((ours[name] - expected).abs().max()) <= TOLERANCE * scale, name


def split(batch: Batch, size: int) -> list[Batch]:
    rows = len(next(iter(batch.values())))
    return [{key: value[i : i + size] for key, value in batch.items()} for i in range(0, rows, size)]


def brute_force(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Independent of the package: cross-entropy, summed over a row's labels (transformers' own loss is in float32)."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    totals = {name: torch.zeros_like(p) for name, p in named.items()}
    rows = split(batch, 1)
    for row in rows:
        logits = model(**{key: value for key, value in row.items() if key != "labels"}).logits
        labels = row["labels"]
        if "Causal" in type(model).__name__ or "LMHead" in type(model).__name__:
            logits, labels = logits[:, :-1], labels[:, 1:]
        loss = functional.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="sum")
        grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        for total, grad in zip(totals.values(), grads, strict=True):
            if grad is not None:
                total += grad**2 / len(rows)
    return totals


@pytest.mark.parametrize("family", FAMILIES)
def test_the_oracle_is_the_squared_gradient_of_the_models_own_loss(family: str) -> None:
    model, batch = FAMILIES[family]()
    assert_equal(fisher(model, [batch], backend="reference").values, brute_force(model, batch))


@pytest.mark.parametrize("estimator", ["empirical", "sample", "exact"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_equals_the_oracle(family: str, estimator: str) -> None:
    model, batch = FAMILIES[family]()
    options: dict[str, Any] = {"estimator": estimator} | ({"samples": 3} if estimator == "sample" else {})
    if estimator == "exact" and batch["labels"].dim() == 2:
        batch = {**batch, "labels": batch["labels"].clone()}
        batch["labels"][:, 3:] = -100  # 16 classes for each position
    oracle = fisher(model, [batch], backend="reference", **options)
    ours = fisher(model, [batch], **options)
    assert_equal(ours.values, oracle.values)
    assert (ours.examples, ours.tokens) == (oracle.examples, oracle.tokens)
    assert sum(float(value.sum()) for value in ours.values.values()) > 0


@pytest.mark.parametrize("family", ["llama-tied", "gpt2-tied", "albert", "t5-tied", "vit", "resnet", "lora"])
@pytest.mark.parametrize("size", [1, 2])
def test_any_split_into_batches_agrees(family: str, size: int) -> None:
    model, batch = FAMILIES[family]()
    for estimator in ("empirical", "sample"):
        whole = fisher(model, [batch], estimator=estimator)
        assert_equal(fisher(model, split(batch, size), estimator=estimator).values, whole.values)


def test_batches_of_1_3_and_16_agree() -> None:
    model, batch = FAMILIES["gpt2-tied"]()[0], text(lengths=tuple(3 + i % 6 for i in range(16)))
    whole = fisher(model, [batch])
    for size in (1, 3):
        assert_equal(fisher(model, split(batch, size)).values, whole.values)
    assert_equal(fisher(model, [batch], backend="reference").values, whole.values)


@pytest.mark.parametrize("family", ["llama-tied", "gpt2-tied", "qwen3"])
def test_padding_on_either_side_and_none_agree(family: str) -> None:
    model, batch = FAMILIES[family]()
    lengths = batch["attention_mask"].sum(1).tolist()
    alone = [{k: v[i : i + 1, :n] for k, v in batch.items() if k != "attention_mask"} for i, n in enumerate(lengths)]
    expected = fisher(model, alone)
    assert_equal(fisher(model, [batch]).values, expected.values)
    left = {
        key: torch.stack([row.roll(len(row) - n) for row, n in zip(value, lengths, strict=True)])
        for key, value in batch.items()
    }
    left["position_ids"] = (left["attention_mask"].cumsum(1) - 1).clamp(min=0)
    for backend in ("torch", "reference"):
        ours = fisher(model, [left], backend=backend)
        assert ours.tokens == expected.tokens
        assert_equal(ours.values, expected.values)


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("estimator", ["empirical", "sample"])
def test_labels_at_padding_are_nobodys_to_predict(estimator: str, backend: str) -> None:
    model, batch = FAMILIES["llama-tied"]()
    careless = {**batch, "labels": batch["input_ids"].clone()}
    careful = {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}
    ours = fisher(model, [careless], estimator=estimator, backend=backend)
    expected = fisher(model, [careful], estimator=estimator, backend=backend)
    assert ours.tokens == expected.tokens
    assert_equal(ours.values, expected.values)


@pytest.mark.parametrize("family", ["llama-tied", "llama-untied", "gpt2-tied", "qwen2", "qwen3", "lora"])
@pytest.mark.parametrize("layout", ["collator", "position_ids", "cu_seq_lens_q"])
def test_packing_agrees_with_rows(family: str, layout: str) -> None:
    model, batch = FAMILIES[family]()
    lengths = batch["attention_mask"].sum(1).tolist()
    expected = fisher(model, [batch])
    features = [
        {"input_ids": ids[:n].tolist(), "labels": labels[:n].tolist(), "source": 0, "truncated": 0}
        for ids, labels, n in zip(batch["input_ids"], batch["labels"], lengths, strict=True)
    ]
    if layout == "collator":
        packed = Collator(0)(pack(features, max_length=14))
        assert packed["input_ids"].shape[0] == 2  # 7 + 4 + padding, 6
        mask = packed["attention_mask"].double()
        packed = {"input_ids": packed["input_ids"], "labels": packed["labels"], "attention_mask": mask} | {
            "position_ids": packed["position_ids"]
        }
    else:
        joined = {key: torch.cat([value[i, :n] for i, n in enumerate(lengths)])[None] for key, value in batch.items()}
        positions = torch.cat([torch.arange(n) for n in lengths])[None]
        packed = {"input_ids": joined["input_ids"], "labels": joined["labels"], "position_ids": positions}
        if layout == "cu_seq_lens_q":
            packed["cu_seq_lens_q"] = torch.tensor([0, *lengths]).cumsum(0)
    ours = fisher(model, [packed])
    assert (ours.examples, ours.tokens) == (expected.examples, expected.tokens)
    assert_equal(ours.values, expected.values)
    assert_equal(fisher(model, [packed], backend="reference").values, expected.values)


@pytest.mark.parametrize("family", ["llama-tied", "gpt2-tied", "bert", "t5-untied", "vit", "lora"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_agrees_and_does_recompute(family: str, reentrant: bool) -> None:
    model, batch = FAMILIES[family]()
    expected = {e: fisher(model, [batch], estimator=e, **o) for e, o in (("empirical", {}), ("sample", {"samples": 2}))}
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    runs = []
    layer = next(
        m for m in model.modules() if type(m).__name__.endswith(("DecoderLayer", "Block", "BertLayer", "ViTLayer"))
    )
    layer.register_forward_pre_hook(lambda *_: runs.append(1))
    attention = next(m for m in layer.modules() if isinstance(m, nn.LayerNorm) or type(m).__name__.endswith("Norm"))
    attention.register_forward_pre_hook(lambda *_: runs.append(1))
    for estimator, options in (("empirical", {}), ("sample", {"samples": 2})):
        runs.clear()
        assert_equal(fisher(model, [batch], estimator=estimator, **options).values, expected[estimator].values)
        assert len(runs) > 2  # the layer once, its norm again in every backward pass
    assert model.training


def test_a_models_own_checkpoints_agree() -> None:
    class Model(nn.Module):
        def __init__(self, reentrant: bool | None) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.embed, self.shared, self.head = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 9)
            self.head.weight = self.embed.weight
            self.reentrant = reentrant

        def forward(self, input_ids: Tensor) -> Tensor:
            x = self.embed(input_ids)
            for _ in range(3):  # one layer, three times
                x = (
                    torch.tanh(self.shared(x))
                    if self.reentrant is None
                    else checkpoint(lambda h: torch.tanh(self.shared(h)), x, use_reentrant=self.reentrant)
                )
            return self.head(x)

    ids = torch.tensor([[1, 2, 1, 4], [3, 3, 3, 0]])
    batch = {"input_ids": ids, "labels": ids}
    oracle = fisher(Model(None).double(), [batch], backend="reference", shift_labels=True)
    for reentrant in (None, False, True):
        assert_equal(fisher(Model(reentrant).double(), [batch], shift_labels=True).values, oracle.values)


def test_subsets_leave_the_others_out() -> None:
    model, batch = FAMILIES["llama-tied"]()
    whole = fisher(model, [batch]).values
    for pattern in ("*.q_proj.weight", "*norm*", "model.embed_tokens.weight", "*layers.1*"):
        part = fisher(model, [batch], parameters=[pattern]).values
        assert part and all(fnmatch(name, pattern) for name in part)
        assert_equal(part, {name: whole[name] for name in part})
    with pytest.raises(ValueError, match=r"parameters: 'nothing\.\*' fits none; there are model.embed"):
        fisher(model, [batch], parameters=["nothing.*"])


def test_of_a_frozen_backbone_only_input_gradients_are_computed() -> None:
    def flops(model: nn.Module) -> int:
        with FlopCounterMode(display=False) as counter:
            fisher(model, [text()])
        return counter.get_total_flops()

    wide, _ = llama(hidden_size=64, intermediate_size=96)
    whole = flops(wide)
    adapter = peft.LoraConfig(r=1, target_modules=["q_proj"], layers_to_transform=[1], task_type="CAUSAL_LM")
    assert flops(peft.get_peft_model(wide, adapter)) < 0.55 * whole  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, padding=1, stride=2, groups=2),
        nn.Conv2d(4, 6, (2, 3), dilation=2, bias=False),
        nn.BatchNorm2d(4),
        nn.Sequential(nn.Flatten(1), nn.Linear(4 * 36, 4), nn.LayerNorm(4, bias=False)),
        nn.Sequential(nn.Flatten(2), nn.RMSNorm(36), nn.BatchNorm1d(4)),
    ],
    ids=["groups", "dilation", "batch-norm", "layer-norm-without-bias", "rms-norm"],
)
def test_layers_that_no_family_here_has(layer: nn.Module) -> None:
    torch.manual_seed(0)
    probe = layer.eval()(torch.randn(1, 4, 6, 6)).flatten(1).shape[1]
    model = ready(nn.Sequential(layer, nn.Flatten(1), nn.Linear(probe, 3)))
    x, y = torch.randn(5, 4, 6, 6, dtype=torch.float64), torch.tensor([0, 2, 1, 1, 0])
    assert_equal(fisher(model, [(x, y)]).values, fisher(model, [(x, y)], backend="reference").values)  # type: ignore[list-item]


def test_a_convolution_used_twice_keeps_its_cross_terms() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.head = nn.Conv2d(2, 2, 3, padding=1), nn.Linear(32, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.conv(torch.tanh(self.conv(x))).flatten(1))

    pair = torch.randn(3, 2, 4, 4, dtype=torch.float64), torch.tensor([0, 2, 1])
    model = Twice().double()
    assert_equal(fisher(model, [pair]).values, fisher(model, [pair], backend="reference").values)  # type: ignore[list-item]


def test_positions_given_as_a_vector_and_tokens_flattened() -> None:
    class Model(nn.Module):
        """As in nanoGPT: positions (T,); the head sees (B·T, D)."""

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.tokens, self.positions, self.head = nn.Embedding(9, 4), nn.Embedding(6, 4), nn.Linear(4, 9)

        def forward(self, input_ids: Tensor) -> Tensor:
            x = self.tokens(input_ids) + self.positions(torch.arange(input_ids.shape[1]))
            return self.head(torch.tanh(x).flatten(0, 1)).view(*input_ids.shape, -1)

    model, ids = Model().double(), torch.tensor([[1, 2, 1, 4, 5], [3, 3, 3, 0, 7]])
    batch = {"input_ids": ids, "labels": ids}
    ours = fisher(model, [batch], shift_labels=True).values
    assert_equal(ours, fisher(model, [batch], backend="reference", shift_labels=True).values)


def test_half_precision_is_near() -> None:
    model, batch = FAMILIES["llama-tied"]()
    exact = fisher(model, [batch]).values
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.2)):
        near = fisher(model.to(dtype), [batch], accumulate_dtype=torch.float32).values
        for name, value in near.items():
            assert value.dtype == torch.float32
            assert float((value - exact[name]).abs().max()) < tolerance * float(exact[name].max()), name


class SequenceFirst(nn.Module):
    """Tokens before rows: nothing tells the two apart where there are as many of each."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.inner, self.head = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 9)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.inner(self.tokens(input_ids).transpose(0, 1))).transpose(0, 1))


def test_as_many_rows_as_tokens_are_not_confused() -> None:
    ids = torch.randint(0, 9, (4, 4), generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"layer inner sees a tensor of shape \(4, 2, '…'\) in a batch of 2"):
        fisher(SequenceFirst().double(), [{"input_ids": ids, "labels": ids}], shift_labels=True)
    model, _ = FAMILIES["gpt2-tied"]()
    batch = {"input_ids": ids, "labels": ids}
    for limit in (None, 3):
        ours = fisher(model, [batch], max_examples=limit)
        oracle = fisher(model, [batch], max_examples=limit, backend="reference")
        assert ours.examples == oracle.examples == (limit or 4)
        assert_equal(ours.values, oracle.values)


def test_an_experts_tokens_are_not_taken_for_examples() -> None:
    class Expert(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.expert = nn.Embedding(9, 4), nn.Linear(4, 9)

        def forward(self, input_ids: Tensor) -> Tensor:
            x = self.tokens(input_ids)
            chosen = x.flatten(0, 1)[:3]  # as many as there are rows
            return x.new_zeros(*input_ids.shape, 9) + self.expert(chosen).sum(0)

    ids = torch.randint(0, 9, (3, 5))
    with pytest.raises(ValueError, match="layer expert sees a tensor of shape"):
        fisher(Expert().double(), [{"input_ids": ids, "labels": ids}], shift_labels=True)


@pytest.mark.parametrize(
    "layer",
    [
        type("Scaled", (nn.Linear,), {"forward": lambda self, x: 2 * nn.Linear.forward(self, x)})(4, 3),
        torch.nn.utils.weight_norm(nn.Linear(4, 3)),
    ],
    ids=["subclass", "weight-norm"],
)
def test_a_layer_that_only_looks_like_a_known_one_is_refused(layer: nn.Module) -> None:
    with pytest.raises(NoRule, match="no rule for"):
        fisher(nn.Sequential(layer).double(), [(torch.randn(2, 4), torch.tensor([0, 1]))])  # type: ignore[list-item]


def test_a_replaced_forward_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    original = model[0].forward
    model[0].forward = lambda x: 3 * original(x)  # type: ignore[method-assign]
    with pytest.raises(NoRule, match="of a Linear, whose forward was replaced"):
        fisher(model.double(), [(torch.randn(2, 4), torch.tensor([0, 1]))])  # type: ignore[list-item]


def test_batches_may_be_made_by_the_model_itself() -> None:
    model, batch = FAMILIES["gpt2-tied"]()

    def generated() -> Iterator[Batch]:
        for _ in range(2):
            assert model(input_ids=batch["input_ids"][:1]).logits.shape[0] == 1
            yield batch

    assert_equal(fisher(model, generated()).values, fisher(model, [batch]).values)  # type: ignore[arg-type]


def test_autocast_around_it_does_not_round_the_products() -> None:
    torch.manual_seed(0)
    model, pair = nn.Linear(8, 3), (torch.randn(6, 8), torch.tensor([0, 1, 2, 0, 1, 2]))
    expected = fisher(model, [pair], accumulate_dtype=torch.float32).values["weight"]  # type: ignore[list-item]
    x, G = pair[0], torch.softmax(model(pair[0]), 1).detach() - nn.functional.one_hot(pair[1], 3)
    with torch.autocast("cpu", torch.bfloat16):
        total = torch.zeros(3, 8)
        capture = Capture(model, dict(model.named_parameters()), lambda name, uses: loop_product_squares(total, uses))  # type: ignore[arg-type]
        capture._tell("weight", [Product(G, x, Spans.rows(6, 1))])
    torch.testing.assert_close(total / 6, expected)


def test_inputs_that_are_no_tensors_reach_the_model() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 3)

        def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
            return self.linear(x * scale)

    model, x, y = Scaled().double(), torch.randn(2, 2, dtype=torch.float64), torch.tensor([0, 2])
    scaled = fisher(model, [{"x": x, "scale": 3.0, "labels": y}])  # type: ignore[dict-item]
    assert_equal(scaled.values, fisher(model, [{"x": 3 * x, "labels": y}]).values)


def test_whether_labels_shift_is_told_by_the_class_or_asked_for() -> None:
    names = {name: shifts_labels(family()[0]) for name, family in FAMILIES.items()}
    causal = {"llama-tied", "llama-untied", "qwen2", "qwen3", "gpt2-tied", "gpt2-untied", "lora"}
    assert {name for name, shifts in names.items() if shifts} == causal
    with pytest.raises(ValueError, match="shift_labels: the model's class does not tell"):
        fisher(SequenceFirst().double(), [{"input_ids": torch.ones(2, 3).long(), "labels": torch.ones(2, 3).long()}])


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((torch.randn(2, 4), torch.tensor([0, 1]), torch.tensor([0, 1])), "a batch has 3 parts"),
        ((torch.randn(2, 4), torch.tensor([0, 3])), r"labels of shape \(2,\) up to 3"),
        ((torch.randn(2, 4), torch.tensor([0.0, 1.0])), "labels are torch.float32"),
    ],
)
def test_batches_that_make_no_sense_are_refused(batch: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fisher(nn.Linear(4, 3).double(), [batch])


def test_a_tied_weight_may_be_named_by_either_name() -> None:
    model, batch = FAMILIES["llama-tied"]()
    assert set(fisher(model, [batch], parameters=["lm_head.weight"]).values) == {"model.embed_tokens.weight"}
