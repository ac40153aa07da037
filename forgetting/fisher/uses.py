"""How one use of a parameter in a forward pass makes its gradient, example by example.

A parameter that is used once has the use's own squares. The gradient of one that is used several times (tied
embeddings, shared layers) is the sum over its uses, and squared after that: the cross terms are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from forgetting.fisher.examples import Spans, compute_dtype
from forgetting.matmul import multiply

TILE = 1 << 19
"""Numbers in a tile of a per-example gradient: it and the total's tile stay in a core's cache."""

ProductSquares = Callable[[Tensor, "Sequence[Product]"], None]
"""Adds Σ_examples (Σ_uses G_eᵀ A_e)∘² to a total of shape (O, I): a backend."""


@dataclass(frozen=True)
class Product:
    """A weight whose gradient is Gᵀ A: G (tokens, O) and A (tokens, I)."""

    G: Tensor
    A: Tensor
    spans: Spans


@dataclass(frozen=True)
class Rows:
    """A table whose row ``ids[t]`` has G[t] added: ids (tokens,) and G (tokens, D); None of ``size`` rows else."""

    G: Tensor
    ids: Tensor
    spans: Spans
    size: int


@dataclass(frozen=True)
class Sums:
    """A bias or scale, whose gradient is a sum over tokens: ``values`` (tokens, numel)."""

    values: Tensor
    spans: Spans


@dataclass(frozen=True)
class Convolution:
    """A filter (O, C/groups, h, w): its inputs (B, C, H, W), output gradients (B, O, H', W'), and how to unfold."""

    G: Tensor
    x: Tensor
    spans: Spans
    shape: torch.Size
    unfold: dict[str, tuple[int, ...]]
    groups: int

    def _parts(self, index: int) -> tuple[Tensor, Tensor]:
        dtype = compute_dtype(self.G)
        columns = torch.nn.functional.unfold(self.x[index : index + 1].to(dtype), **self.unfold)
        return (
            self.G[index].to(dtype).reshape(self.groups, self.shape[0] // self.groups, -1),
            columns.view(self.groups, -1, columns.shape[-1]),
        )

    def example(self, index: int) -> Tensor:
        """The gradient of one example."""
        G, columns = self._parts(index)
        return (G @ columns.mT).view(self.shape)

    def positionwise(self, index: int) -> Tensor:
        """Squared per position of the output, then summed."""
        G, columns = self._parts(index)
        return (G.square() @ columns.square().mT).view(self.shape)


Use = Product | Rows | Sums | Convolution


def add_squares(total: Tensor, uses: Sequence[Use], products: ProductSquares, positionwise: bool = False) -> None:
    """Add Σ_examples (Σ_uses gradient)∘² to ``total``, in place.

    Args:
        total: Of the parameter's shape.
        uses: Of one backward pass.
        products: The backend for products.
        positionwise: Every use and token by itself, by definition of that approximation.
    """
    if positionwise:
        for use in uses:
            _add_positionwise(total, use)
        return
    matrices = [use for use in uses if isinstance(use, Product)]
    tables = [use for use in uses if isinstance(use, Rows)]
    if len(matrices) + len(tables) == len(uses):
        if matrices:
            products(total, matrices)
        if tables:
            _add_tables(total, tables, matrices)
        return
    sums = [use for use in uses if isinstance(use, Sums)]
    if len(sums) == len(uses):
        per_example = sum((use.spans.sums(use.values) for use in sums[1:]), sums[0].spans.sums(sums[0].values))
        total.add_(per_example.square().sum(0).view(total.shape))
        return
    filters = [use for use in uses if isinstance(use, Convolution)]
    assert len(filters) == len(uses), "no two rules but those of products and tables share a parameter"
    for index in range(len(filters[0].G)):
        total.add_(torch.stack([use.example(index) for use in filters]).sum(0).square())


def _add_positionwise(total: Tensor, use: Use) -> None:
    if isinstance(use, Product):
        dtype = compute_dtype(use.G)
        total.add_(multiply(use.G.to(dtype).square().T, use.A.to(dtype).square()))
    elif isinstance(use, Rows):
        total.index_add_(0, use.ids, use.G.to(total.dtype).square())
    elif isinstance(use, Sums):
        total.add_(use.values.to(compute_dtype(use.values)).square().sum(0).view(total.shape))
    elif isinstance(use, Convolution):
        for index in range(len(use.G)):
            total.add_(use.positionwise(index))


def loop_product_squares(total: Tensor, uses: Sequence[Product]) -> None:
    """The torch backend: one matrix product per example, squared while it is in the cache.

    Tiles of the product and of the total stay there. Where every example has one token, one product.
    """
    if len(uses) == 1 and uses[0].spans.single:
        dtype = compute_dtype(uses[0].G)
        total.add_(multiply(uses[0].G.to(dtype).square().T, uses[0].A.to(dtype).square()))
        return
    (lefts, rights), *others = [(_by_example(use.G, use.spans, True), _by_example(use.A, use.spans)) for use in uses]
    O, I = total.shape  # noqa: E741
    step = max(1, TILE // I) if total.device.type == "cpu" else O
    for begin in range(0, O, step):
        tile = total[begin : begin + step]
        part = slice(begin, begin + step) if step < O else None
        for index, (left, right) in enumerate(zip(lefts, rights, strict=True)):
            product = multiply(left if part is None else left[part], right)
            for more_lefts, more_rights in others:
                more = more_lefts[index]
                product += multiply(more if part is None else more[part], more_rights[index])
            tile.addcmul_(product, product)
            del product  # before the next is made: one at a time


def _by_example(values: Tensor, spans: Spans, transposed: bool = False) -> Sequence[Tensor]:
    """(tokens, D) of each example, or (D, tokens)."""
    values = values.to(compute_dtype(values))
    if spans.length is not None:
        examples = values.view(len(spans), spans.length, -1)
        return (examples.mT if transposed else examples).unbind(0)
    return [values[span].T if transposed else values[span] for span in spans]


def _add_tables(total: Tensor, tables: Sequence[Rows], matrices: Sequence[Product]) -> None:
    """Add Σ_e D_e∘² + 2 D_e∘E_e: D_e from the tables, E_e from the products, whose squares are added elsewhere.

    D_e has few rows that are not zero. They are formed once per token (a row that two tokens share has the sum of
    both), and such a row counts with one over its number of tokens. Examples of equal length go together. A table
    with fewer rows than an example has tokens (T5's relative positions) is formed whole for every example.
    """
    uses: list[Use] = [*tables, *matrices]
    together = all(use.spans.length is not None for use in uses)
    if together and not matrices and tables[0].size <= (tables[0].spans.length or 0):
        dense = total.new_zeros(len(tables[0].spans) * len(total), total.shape[1])
        for table in tables:
            owner = torch.arange(len(table.spans), device=total.device).repeat_interleave(table.spans.length or 0)
            dense.index_add_(0, owner * len(total) + table.ids, table.G.to(total.dtype))
        total.add_(dense.view(-1, *total.shape).square().sum(0))
        return
    for index in range(1 if together else len(tables[0].spans)):
        parts = [_table_part(use, index, together) for use in tables]
        ids = torch.cat([part[0] for part in parts], dim=1)  # (b, T)
        G = torch.cat([part[1] for part in parts], dim=1)  # (b, T, D)
        same = (ids[:, :, None] == ids[:, None, :]).to(G.dtype)
        D = same @ G
        added = D.square()
        for use in matrices:
            g, a = _product_part(use, index, together)
            # E at the rows of this example's tokens: (b, T, tokens) @ (b, tokens, I).
            picked = torch.gather(g, 2, ids[:, None, :].expand(-1, g.shape[1], -1))
            added += 2 * D * (picked.mT @ a)
        added /= same.sum(-1, keepdim=True)
        total.index_add_(0, ids.flatten(), added.flatten(0, 1).to(total.dtype))


def _table_part(use: Rows, index: int, together: bool) -> tuple[Tensor, Tensor]:
    """(b, T) ids and (b, T, D) gradients: of all examples, or of one."""
    dtype = compute_dtype(use.G)
    if together:
        return use.ids.view(len(use.spans), -1), use.G.to(dtype).view(len(use.spans), -1, use.G.shape[1])
    span = list(use.spans)[index]
    return use.ids[None, span], use.G[None, span].to(dtype)


def _product_part(use: Product, index: int, together: bool) -> tuple[Tensor, Tensor]:
    """(b, T, O) and (b, T, I): of all examples, or of one."""
    dtype = compute_dtype(use.G)
    span = slice(None) if together else list(use.spans)[index]
    shape = (len(use.spans) if together else 1, -1)
    G, A = use.G[span].to(dtype), use.A[span].to(dtype)
    return G.view(*shape, G.shape[1]), A.view(*shape, A.shape[1])
