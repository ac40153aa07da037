"""Token sequences to batches in which a shared beginning is computed once.

The sequences of a group (an item's choices, after one context) make a trie. A row holds its nodes in depth-first
order: a node's descendants are the ``end - index`` slots from itself on, so that one integer per slot says who
sees whom, and choices never see each other. Where no sequence branches off, the row is an ordinary causal one.
What comes after a beginning that is kept apart (see :mod:`forgetting.evaluation.prefix`) branches off from it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from forgetting.evaluation.budget import BatchSize, Slots

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MIN_SHARE = 0.5
"""A sequence branches off only where at least this part of it is shared: less saves less than the mask costs."""
ROW_SLOTS = 512
"""A row takes no further sequence that would make it longer: attention grows with its square."""
ROW_SLOTS_AFTER_PREFIX = 128
"""The same after a beginning that is kept apart, or half of that: longer rows attend to more slots that they must not
see, shorter ones copy its keys and values more often."""


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """Token ids of which the last ``scored`` (at least one, never the first token) are to be scored."""

    ids: list[int]
    scored: int


@dataclass(slots=True)
class Row:
    """The trie of some sequences' inputs (all ids but the last), in depth-first order.

    Attributes:
        ids: Token of each slot.
        depths: Its position in its sequences.
        ends: One past the last slot that sees it.
        targets: (slot, token that it must predict, index of the scored token over all sequences).
        members: Indices of its sequences.
        longest: Tokens of its longest sequence.
        branches: Whether any slot must not see one before it.
    """

    ids: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    targets: list[tuple[int, int, int]] = field(default_factory=list)
    members: list[int] = field(default_factory=list)
    longest: int = 0
    branches: bool = False


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows, padded on the right, and where their scores are; B rows, W slots, N predicting slots, M tokens.

    Attributes:
        input_ids: (B, W) int64.
        depths: (B, W) int64 positions; ``None``, with ``ends``, where no row branches (plain causal rows).
        ends: (B, W) int64; a padding slot sees only itself.
        columns: (K,) the columns at which any row predicts.
        node_row, node_column: (N,) the predicting slots; the column is an index into ``columns``.
        token_node, token_id: (M,) index into N of the slot that predicts the token, and the token.
        token_index: (M,) the token's index over all sequences.
        members: Indices of the sequences.
        prefix: (P,) token ids before every row, which are not among its slots.
    """

    input_ids: torch.Tensor
    depths: torch.Tensor | None
    ends: torch.Tensor | None
    columns: torch.Tensor
    node_row: torch.Tensor
    node_column: torch.Tensor
    token_node: torch.Tensor
    token_id: torch.Tensor
    token_index: NDArray[np.int64]
    members: tuple[int, ...]
    prefix: tuple[int, ...] = ()

    def mask(self, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Return the additive mask, (B, 1, W, P + W): slot i sees j where j ≤ i < end of j, and the prefix."""
        assert self.ends is not None
        slots = torch.arange(self.ends.shape[1], device=device)
        ends = self.ends.to(device)[:, None, :]
        visible = (slots <= slots[:, None]) & (slots[:, None] < ends)
        hidden = torch.zeros(visible.shape, dtype=dtype, device=device)
        hidden.masked_fill_(~visible, torch.finfo(dtype).min)
        return torch.nn.functional.pad(hidden, (len(self.prefix), 0))[:, None]


def make_batches(
    sequences: Sequence[TokenSequence],
    groups: Sequence[Hashable],
    batch_size: BatchSize,
    *,
    branching: bool = True,
    members: Iterable[int] | None = None,
    prefix: tuple[int, ...] = (),
) -> list[Batch]:
    """Pack sequences into batches, longest rows first.

    A batch never has more slots than ``batch_size`` unpacked sequences as long as its longest.

    Args:
        sequences: Each at least two tokens.
        groups: Sequences with equal keys may share a row.
        batch_size: Sequences per forward pass, or slots (a row that has more is a batch of its own).
        branching: Whether rows may branch (which takes a 4D mask); else only prefixes of each other share one.
        members: Indices of those to be packed; all by default.
        prefix: What each of them begins with, which is left out of the rows; then all of them may share a row.
    """
    offsets = [0]
    for sequence in sequences:
        offsets.append(offsets[-1] + sequence.scored)
    by_group: dict[Hashable, list[int]] = {}
    for index in range(len(sequences)) if members is None else members:
        by_group.setdefault(None if prefix else groups[index], []).append(index)
    skip = len(prefix)
    rows = [row for group in by_group.values() for row in _rows(sequences, group, offsets, branching, skip)]
    rows.sort(key=lambda row: (not row.branches, -len(row.ids), row.members))
    batches: list[Batch] = []
    batch: list[Row] = []
    for row in rows:
        if batch:
            longest = max(row.longest, *(other.longest for other in batch))
            most = batch_size.n if isinstance(batch_size, Slots) else batch_size * longest
            full = (len(batch) + 1) * len(batch[0].ids) > most
            if full or row.branches != batch[0].branches:
                batches.append(_collate(batch, prefix))
                batch = []
        batch.append(row)
    return [*batches, _collate(batch, prefix)] if batch else batches


def _rows(
    sequences: Sequence[TokenSequence], members: list[int], offsets: list[int], branching: bool, skip: int
) -> Iterator[Row]:
    """The rows of one group. Sequences come in lexicographic order, which is the trie's depth-first order."""
    row, most = Row(), max(ROW_SLOTS_AFTER_PREFIX, skip // 2) if skip else ROW_SLOTS
    previous: list[int] = []  # the sequence before, without its last token
    path: list[int] = []  # its slots
    for member in sorted(members, key=lambda index: (sequences[index].ids[:-1], index)):
        sequence = sequences[member]
        inputs = sequence.ids[skip:-1]
        shared = common_prefix(previous, inputs)
        branches = shared < min(len(row.ids), len(inputs))
        longer = len(row.ids) + len(inputs) - shared > max(most, len(inputs))
        worthwhile = branching and skip + shared >= MIN_SHARE * (skip + len(inputs))
        if skip + shared == 0 or longer or (branches and not worthwhile):
            if row.ids:
                yield _closed(row, path)
            row, path, previous, shared, branches = Row(), [], [], 0, False
        for slot in path[shared:]:
            row.ends[slot] = len(row.ids)
        path = path[:shared] + list(range(len(row.ids), len(row.ids) + len(inputs) - shared))
        row.ids += inputs[shared:]
        row.depths += range(skip + shared, skip + len(inputs))
        row.ends += [0] * (len(inputs) - shared)
        first = len(inputs) - sequence.scored
        row.targets += [
            (path[first + k], sequence.ids[skip + first + 1 + k], offsets[member] + k) for k in range(sequence.scored)
        ]
        row.members.append(member)
        row.longest = max(row.longest, len(inputs))
        row.branches |= branches
        previous = inputs
    if row.ids:
        yield _closed(row, path)


def _closed(row: Row, path: list[int]) -> Row:
    for slot in path:
        row.ends[slot] = len(row.ids)
    return row


def common_prefix(a: list[int], b: list[int]) -> int:
    """Return how many tokens both begin with."""
    for index, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return index
    return min(len(a), len(b))


def _collate(rows: list[Row], prefix: tuple[int, ...]) -> Batch:
    width = max(len(row.ids) for row in rows)
    slots = list(range(1, width + 1))

    def padded(values: list[list[int]], padding: list[int]) -> torch.Tensor:
        return torch.tensor([value + padding[len(value) :] for value in values])

    nodes: dict[tuple[int, int], int] = {}
    for index, row in enumerate(rows):
        for slot, _, _ in row.targets:
            nodes.setdefault((index, slot), len(nodes))
    columns = sorted({slot for _, slot in nodes})
    at = {column: k for k, column in enumerate(columns)}
    targets = [(nodes[index, slot], token, k) for index, row in enumerate(rows) for slot, token, k in row.targets]
    token_node, token_id, token_index = torch.tensor(targets).T.contiguous()
    branching = any(row.branches for row in rows)
    return Batch(
        input_ids=padded([row.ids for row in rows], [0] * width),
        depths=padded([row.depths for row in rows], [0] * width) if branching else None,
        ends=padded([row.ends for row in rows], slots) if branching else None,
        columns=torch.tensor(columns),
        node_row=torch.tensor([index for index, _ in nodes]),
        node_column=torch.tensor([at[slot] for _, slot in nodes]),
        token_node=token_node,
        token_id=token_id,
        token_index=token_index.numpy(),
        members=tuple(member for row in rows for member in row.members),
        prefix=prefix,
    )
