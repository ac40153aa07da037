"""The Triton backend: per-example gradients that live in registers only. Imported where triton is installed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from math import ceil

import torch
import triton
import triton.language as tl
from torch import Tensor

from forgetting.fisher.uses import Product, loop_product_squares

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
BLOCK_T = 64
NOMINAL_TILE = 128
"""Splits are counted in tiles of this size, whatever tiles are tuned for: a sum's order never depends on the tuning."""

_TILES = (
    # BLOCK_O, BLOCK_I, warps, stages
    (128, 256, 8, 3),
    (256, 128, 8, 3),
    (128, 128, 8, 4),
    (128, 128, 4, 3),
    (64, 128, 4, 4),
    (128, 64, 4, 4),
    (64, 64, 4, 4),
)
_CONFIGS = [
    triton.Config({"BLOCK_O": o, "BLOCK_I": i}, num_warps=warps, num_stages=stages) for o, i, warps, stages in _TILES
]


@triton.autotune(configs=_CONFIGS[-1:] if INTERPRETED else _CONFIGS, key=["O", "I", "length"])
@triton.jit
def _squares(  # type: ignore[no-untyped-def]
    G, A, out, starts, stops, examples, per_split, length, O, I,  # noqa: E741
    EVEN: tl.constexpr, UPCAST: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """out[split, o, i] = Σ_e (Σ_t G[t, o] A[t, i])², e over the split's examples, t over the example's tokens."""
    tiles_o = tl.cdiv(O, BLOCK_O)
    tiles_i = tl.cdiv(I, BLOCK_I)
    tile = tl.program_id(0)
    # Groups of eight rows of tiles: neighbours share operands in the L2 cache.
    group = tile // (8 * tiles_i)
    rows = tl.minimum(tiles_o - group * 8, 8)
    tile_o = group * 8 + (tile % (8 * tiles_i)) % rows
    tile_i = (tile % (8 * tiles_i)) // rows
    split = tl.program_id(1)
    o = tile_o * BLOCK_O + tl.arange(0, BLOCK_O)
    i = tile_i * BLOCK_I + tl.arange(0, BLOCK_I)
    k = tl.arange(0, BLOCK_T)
    inside_o = o < O
    inside_i = i < I
    total = tl.zeros((BLOCK_O, BLOCK_I), dtype=tl.float32)
    for example in range(split * per_split, tl.minimum((split + 1) * per_split, examples)):
        start = tl.load(starts + example)
        stop = tl.load(stops + example)
        gradient = tl.zeros((BLOCK_O, BLOCK_I), dtype=tl.float32)
        for token in range(start, stop, BLOCK_T):
            t = (token + k).to(tl.int64)
            if EVEN:
                g = tl.load(G + t[None, :] * O + o[:, None], mask=inside_o[:, None], other=0.0)
                a = tl.load(A + t[:, None] * I + i[None, :], mask=inside_i[None, :], other=0.0)
            else:
                here = t < stop
                g = tl.load(G + t[None, :] * O + o[:, None], mask=inside_o[:, None] & here[None, :], other=0.0)
                a = tl.load(A + t[:, None] * I + i[None, :], mask=here[:, None] & inside_i[None, :], other=0.0)
            if UPCAST:
                g = g.to(tl.float32)
                a = a.to(tl.float32)
            gradient = tl.dot(g, a, gradient, input_precision="ieee")
        total += gradient * gradient
    where = out + split.to(tl.int64) * O * I + o[:, None].to(tl.int64) * I + i[None, :]
    tl.store(where, total, mask=inside_o[:, None] & inside_i[None, :])


def triton_product_squares(total: Tensor, uses: Sequence[Product]) -> None:
    """Add Σ_examples (Σ_uses G_eᵀ A_e)∘² to ``total`` (O, I).

    A program owns a tile of (O, I), loops over examples, sums G_eᵀA_e over the tokens in float32, squares it in
    registers, adds it, and goes on. With fewer tiles than multiprocessors the examples are split over programs that
    write to a workspace, which is summed in a fixed order: the result is deterministic. Tokens outside of the
    examples' ranges (padding) are never read. float64 goes to the torch backend.
    """
    if uses[0].G.dtype == torch.float64:
        loop_product_squares(total, uses)
        return
    G, A, starts, stops = _joined(uses)
    O, I = total.shape  # noqa: E741
    examples = len(starts)
    splits = _splits(O, I, examples, G.device)
    out = torch.empty(splits, O, I, dtype=torch.float32, device=G.device)
    lengths = {stop - start for start, stop in zip(starts, stops, strict=True)}

    def grid(meta: dict[str, int]) -> tuple[int, int]:
        return triton.cdiv(O, meta["BLOCK_O"]) * triton.cdiv(I, meta["BLOCK_I"]), splits

    _squares[grid](
        G,
        A,
        out,
        torch.tensor(starts, dtype=torch.int32, device=G.device),
        torch.tensor(stops, dtype=torch.int32, device=G.device),
        examples,
        ceil(examples / splits),
        1 << (max(lengths) - 1).bit_length(),  # tuned for a power of two, not anew for every batch's padding
        O,
        I,
        EVEN=all(length % BLOCK_T == 0 for length in lengths),
        UPCAST=INTERPRETED,  # the interpreter's product of bf16 is wrong
        BLOCK_T=BLOCK_T,
    )
    total.add_(out[0] if splits == 1 else out.sum(0))


def _joined(uses: Sequence[Product]) -> tuple[Tensor, Tensor, tuple[int, ...], tuple[int, ...]]:
    """One pair of contiguous matrices, in which an example's tokens of all uses follow one another; and the ranges."""
    dtype = uses[0].A.dtype if uses[0].A.dtype == uses[0].G.dtype else torch.float32
    if len(uses) == 1:
        spans = uses[0].spans
        return uses[0].G.to(dtype).contiguous(), uses[0].A.to(dtype).contiguous(), spans.starts, spans.stops
    pairs = [(use.G.to(dtype), use.A.to(dtype), list(use.spans)) for use in uses]
    count = len(uses[0].spans)
    G = torch.cat([g[spans[index]] for index in range(count) for g, _, spans in pairs])
    A = torch.cat([a[spans[index]] for index in range(count) for _, a, spans in pairs])
    lengths = [sum(s[index].stop - s[index].start for _, _, s in pairs) for index in range(count)]
    stops = [sum(lengths[: index + 1]) for index in range(count)]
    return G, A, tuple(stop - length for stop, length in zip(stops, lengths, strict=True)), tuple(stops)


def _splits(O: int, I: int, examples: int, device: torch.device) -> int:  # noqa: E741
    """How many programs share a tile's examples, so that every multiprocessor has work."""
    processors = 1 if INTERPRETED else torch.cuda.get_device_properties(device).multi_processor_count
    tiles = ceil(O / NOMINAL_TILE) * ceil(I / NOMINAL_TILE)
    wanted = 3 if INTERPRETED else max(1, processors // tiles)
    return min(examples, wanted)
