"""Log-probabilities of tokens: sequences are tokenised and packed once, and scored after every task."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

from forgetting.evaluation.budget import BatchSize, fitting
from forgetting.evaluation.packing import Batch, TokenSequence, make_batches
from forgetting.evaluation.prefix import CachedPrefix, find_prefixes
from forgetting.matmul import fast_layers
from forgetting.models import logits_before, prompt_length

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import Cache, PreTrainedModel

logger = logging.getLogger(__name__)

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
"""Largest difference of a token's log-probability, packed against plain, that is rounding."""
HALF_TOLERANCE = 0.3
"""The same in bfloat16 and float16, where a logit near 20 has a spacing of .125."""

CHECKED = 4
"""Sequences after a shared beginning that are scored plainly too."""

_honours_masks: WeakKeyDictionary[torch.nn.Module, dict[str, tuple[bool, int]]] = WeakKeyDictionary()
"""By model and attention: whether packed sequences agree with plain ones, and up to how many tokens."""
_continues: WeakKeyDictionary[torch.nn.Module, dict[str, tuple[bool, int]]] = WeakKeyDictionary()
"""The same of sequences after a beginning that was kept."""


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Put every module into eval mode, without gradients; afterwards each is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        # Not inference_mode: a buffer that a model updates in forward could not be used in training afterwards.
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


class PreparedLikelihoods:
    """Sequences whose last tokens are to be scored, as batches of tensors.

    Shared beginnings within a group are computed once (see :mod:`forgetting.evaluation.packing`), as is one of a whole
    family (see :mod:`forgetting.evaluation.prefix`). The batch with the longest sequence that needs a 4D mask is scored
    plainly too, once per model and length: an architecture that does not honour such masks is then scored without them,
    as is one that reads a prompt before its input; the same of some sequences after a family's beginning.

    Args:
        sequences: What to score; results are in this order.
        groups: Sequences with equal keys may share a row.
        batch_size: Sequences per forward pass; a batch has at most as many slots as that many of its longest. Or slots,
            which are halved for as long as memory runs out.
        families: Sequences with equal keys may have a beginning in common that is read once; ``None`` of those that
            have not. By default nothing is kept apart.
    """

    def __init__(
        self,
        sequences: Sequence[TokenSequence],
        groups: Sequence[Hashable],
        batch_size: BatchSize,
        families: Sequence[Hashable | None] = (),
    ) -> None:
        self.sequences = list(sequences)
        self.batch_size = batch_size
        self._groups = groups
        self.counts = np.array([sequence.scored for sequence in sequences], dtype=np.int64)
        self._starts = np.concatenate([[0], np.cumsum(self.counts)[:-1]]).astype(np.int64)
        self._longest = max((len(sequence.ids) - 1 for sequence in sequences), default=0)
        self._prefixes = find_prefixes(self.sequences, groups, families) if families else []
        self._made: dict[tuple[str, BatchSize], list[Batch]] = {}
        self._deepest: dict[tuple[str, BatchSize], tuple[Batch, int] | None] = {}
        self._batches("shared" if self._prefixes else "packed", batch_size)

    def _batches(self, way: str, batch_size: BatchSize) -> list[Batch]:
        """All sequences, made once: ``shared`` after kept beginnings, ``packed`` without, ``plain`` without masks."""
        if (way, batch_size) not in self._made:
            make = partial(make_batches, self.sequences, self._groups, batch_size, branching=way != "plain")
            if way == "shared":
                kept = {index for prefix in self._prefixes for index in prefix.members}
                parts = [make(members=prefix.members, prefix=prefix.ids) for prefix in self._prefixes]
                rest = make(members=[index for index in range(len(self.sequences)) if index not in kept])
                self._made[way, batch_size] = [batch for part in parts for batch in part] + rest
            else:
                self._made[way, batch_size] = make()
        return self._made[way, batch_size]

    def token_scores(self, model: PreTrainedModel) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Score every token.

        Returns:
            log p of each scored token given those before it, in nats, shape (sum of counts,), sequence after
            sequence; and whether it is the most probable one.
        """
        scores, self.batch_size = fitting(self.batch_size, self._longest, partial(self._token_scores, model))
        return scores

    def _token_scores(
        self, model: PreTrainedModel, batch_size: BatchSize
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        with evaluating(model), fast_layers(model):
            return self._scores(model, self._batches(self._way(model, batch_size), batch_size))

    def _scores(
        self, model: PreTrainedModel, batches: Sequence[Batch]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        log_probs = np.zeros(int(self.counts.sum()))
        greedy = np.zeros(len(log_probs), dtype=np.bool_)
        prefix: CachedPrefix | None = None
        for batch in batches:
            if not batch.prefix:
                prefix = None
            elif prefix is None or prefix.ids != batch.prefix:
                prefix = CachedPrefix(model, batch.prefix)
            cache = None if prefix is None else prefix.rows(len(batch.input_ids))
            log_probs[batch.token_index], greedy[batch.token_index] = _score(model, batch, cache)
        return log_probs, greedy

    def score(self, model: PreTrainedModel) -> list[tuple[float, bool]]:
        """Return (sum of log p in nats, whether greedy decoding gives these tokens) of every sequence."""
        if not self.sequences:
            return []
        log_probs, greedy = self.token_scores(model)
        sums = np.add.reduceat(log_probs, self._starts)
        all_greedy = np.logical_and.reduceat(greedy, self._starts)
        return [(float(total), bool(best)) for total, best in zip(sums, all_greedy, strict=True)]

    def _way(self, model: PreTrainedModel, batch_size: BatchSize) -> str:
        """The fastest way that the model honours."""
        if prompt_length(model):
            return "plain"
        if self._prefixes:
            after = max(self._prefixes, key=lambda prefix: max(self._length(index) for index in prefix.members))
            few = sorted(after.members, key=lambda index: -self._length(index))[:CHECKED]
            batches = make_batches(self.sequences, self._groups, batch_size, members=few, prefix=after.ids)
            why = "continue what was read before ({}); reading what items begin with for each"
            if self._holds(_continues, model, batches, self._length(few[0]), why):
                return "shared" if self._masks(model, "shared", batch_size) else "plain"
        return "packed" if self._masks(model, "packed", batch_size) else "plain"

    def _masks(self, model: PreTrainedModel, way: str, batch_size: BatchSize) -> bool:
        """Whether the batch with the longest sequence, of those that need a 4D mask, agrees."""
        if (way, batch_size) not in self._deepest:
            found = [
                (batch, int(batch.depths.max()) + 1)
                for batch in self._batches(way, batch_size)
                if batch.depths is not None and not batch.prefix
            ]
            self._deepest[way, batch_size] = max(found, key=lambda pair: pair[1], default=None)
        deepest = self._deepest[way, batch_size]
        if deepest is None:
            return True
        batch, depth = deepest
        return self._holds(
            _honours_masks, model, [batch], depth, "score packed choices by 4D masks ({}); scoring one choice per row"
        )

    def _length(self, index: int) -> int:
        return len(self.sequences[index].ids) - 1

    def _holds(
        self,
        known_of: WeakKeyDictionary[torch.nn.Module, dict[str, tuple[bool, int]]],
        model: PreTrainedModel,
        batches: list[Batch],
        depth: int,
        cannot: str,
    ) -> bool:
        """Whether these batches agree with plain ones: what is known, or found out now."""
        known = known_of.setdefault(model, {})
        attention = str(getattr(model.config, "_attn_implementation", ""))
        holds, checked = known.get(attention, (True, 0))
        if holds and depth > checked:  # a sliding window is overruled only in sequences longer than it
            why = self._why_not(model, batches)
            if why:
                logger.warning("%s cannot %s", type(model).__name__, cannot.format(why))
            known[attention] = not why, depth
        return known[attention][0]

    def _why_not(self, model: PreTrainedModel, batches: list[Batch]) -> str:
        """Say why the batches do not give what their sequences give one per row; empty where they do."""
        indices = [index for batch in batches for index in batch.members]
        members = [self.sequences[index] for index in indices]
        plain = PreparedLikelihoods(members, range(len(members)), self.batch_size).token_scores(model)[0]
        order = np.concatenate([np.arange(self.counts[i]) + self._starts[i] for i in indices])
        try:
            scored = self._scores(model, batches)[0]
        except Exception as error:  # an architecture may fail on a 4D mask, or a cache, in any way
            from forgetting.out_of_memory import is_out_of_memory  # it imports what imports this module

            if is_out_of_memory(error):
                raise
            return str(error)
        difference = float(np.abs(scored[order] - plain).max())
        agrees = difference <= TOLERANCE.get(model.dtype, HALF_TOLERANCE)
        return "" if agrees else f"log-probabilities differ by {difference:.2g}"


def takes_logits_to_keep(model: torch.nn.Module) -> bool:
    """Whether the model's forward computes logits at chosen columns only."""
    base = getattr(model, "get_base_model", lambda: model)()  # an adapter's wrapper passes keywords on
    return "logits_to_keep" in inspect.signature(base.forward).parameters


def _score(
    model: PreTrainedModel, batch: Batch, cache: Cache | None = None
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Log-probability and greediness of the batch's M tokens; ``cache`` is of its prefix."""
    device = model.device
    inputs: dict[str, torch.Tensor] = {"input_ids": batch.input_ids.to(device)}
    after: dict[str, Any] = {"use_cache": False}
    if cache is not None:
        after = {"use_cache": True, "past_key_values": cache}
        rows, width = batch.input_ids.shape
        places = torch.arange(len(batch.prefix), len(batch.prefix) + width, device=device)
        inputs["position_ids"] = places.expand(rows, width)
    if batch.depths is not None:
        inputs["position_ids"] = batch.depths.to(device)
        inputs["attention_mask"] = batch.mask(model.dtype, device)
    columns = batch.columns.to(device) + logits_before(model)
    if takes_logits_to_keep(model):
        logits = model(**inputs, **after, logits_to_keep=columns).logits  # (B, K, V)
    else:
        logits = model(**inputs, **after).logits[:, columns]
    logits = logits[batch.node_row.to(device), batch.node_column.to(device)]  # (N, V)
    if logits.dtype not in TOLERANCE:
        logits = logits.float()
    node, token = batch.token_node.to(device), batch.token_id.to(device)
    log_probs = logits[node, token] - logits.logsumexp(-1)[node]
    greedy = logits.argmax(-1)[node] == token
    return log_probs.double().cpu().numpy(), greedy.cpu().numpy()
