"""Log-probabilities of tokens: sequences are tokenised and packed once, and scored after every task."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np
import torch

from forgetting.evaluation.packing import Batch, TokenSequence, make_batches
from forgetting.models import logits_before, prompt_length

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
"""Largest difference of a token's log-probability, packed against plain, that is rounding."""
HALF_TOLERANCE = 0.3
"""The same in bfloat16 and float16, where a logit near 20 has a spacing of .125."""

_honours_masks: WeakKeyDictionary[torch.nn.Module, dict[str, tuple[bool, int]]] = WeakKeyDictionary()
"""By model and attention: whether packed sequences agree with plain ones, and up to how many tokens."""


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

    Shared beginnings within a group are computed once (see :mod:`forgetting.evaluation.packing`). The batch with
    the longest sequence that needs a 4D mask is scored plainly too, once per model and length: an architecture
    that does not honour such masks is then scored without them, as is one that reads a prompt before its input.

    Args:
        sequences: What to score; results are in this order.
        groups: Sequences with equal keys may share a row.
        batch_size: Sequences per forward pass; a batch has at most as many slots as that many of its longest.
    """

    def __init__(self, sequences: Sequence[TokenSequence], groups: Sequence[Hashable], batch_size: int) -> None:
        self.sequences = list(sequences)
        self.batch_size = batch_size
        self._groups = groups
        self.counts = np.array([sequence.scored for sequence in sequences], dtype=np.int64)
        self._starts = np.concatenate([[0], np.cumsum(self.counts)[:-1]]).astype(np.int64)
        self._packed = make_batches(self.sequences, groups, batch_size)

    @cached_property
    def _plain(self) -> list[Batch]:
        return make_batches(self.sequences, self._groups, self.batch_size, branching=False)

    @cached_property
    def _deepest(self) -> tuple[Batch, int] | None:
        """The batch with the longest sequence among those that need a 4D mask, and that length in tokens."""
        batches = [(batch, int(batch.depths.max()) + 1) for batch in self._packed if batch.depths is not None]
        return max(batches, key=lambda pair: pair[1], default=None)

    def token_scores(self, model: PreTrainedModel) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Score every token.

        Returns:
            log p of each scored token given those before it, in nats, shape (sum of counts,), sequence after
            sequence; and whether it is the most probable one.
        """
        log_probs = np.zeros(int(self.counts.sum()))
        greedy = np.zeros(len(log_probs), dtype=np.bool_)
        with evaluating(model):
            for batch in self._packed if self._may_branch(model) else self._plain:
                log_probs[batch.token_index], greedy[batch.token_index] = _score(model, batch)
        return log_probs, greedy

    def score(self, model: PreTrainedModel) -> list[tuple[float, bool]]:
        """Return (sum of log p in nats, whether greedy decoding gives these tokens) of every sequence."""
        if not self.sequences:
            return []
        log_probs, greedy = self.token_scores(model)
        sums = np.add.reduceat(log_probs, self._starts)
        all_greedy = np.logical_and.reduceat(greedy, self._starts)
        return [(float(total), bool(best)) for total, best in zip(sums, all_greedy, strict=True)]

    def _may_branch(self, model: PreTrainedModel) -> bool:
        if prompt_length(model):
            return False
        if self._deepest is None:
            return True
        batch, depth = self._deepest
        known = _honours_masks.setdefault(model, {})
        attention = str(getattr(model.config, "_attn_implementation", ""))
        honours, checked = known.get(attention, (True, 0))
        if honours and depth > checked:  # a sliding window is overruled only in sequences longer than it
            known[attention] = self._agrees(model, batch), depth
        return known[attention][0]

    def _agrees(self, model: PreTrainedModel, batch: Batch) -> bool:
        """Whether the packed batch gives what its sequences give one per row."""
        members = [self.sequences[index] for index in batch.members]
        plain = PreparedLikelihoods(members, range(len(members)), self.batch_size).token_scores(model)[0]
        order = np.concatenate([np.arange(self.counts[i]) + self._starts[i] for i in batch.members])
        packed = np.zeros(int(self.counts.sum()))
        try:
            packed[batch.token_index] = _score(model, batch)[0]
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # an architecture may fail on a 4D mask in any way
            logger.warning("%s cannot score packed choices (%s); scoring one per row", type(model).__name__, error)
            return False
        difference = float(np.abs(packed[order] - plain).max())
        if difference <= TOLERANCE.get(model.dtype, HALF_TOLERANCE):
            return True
        logger.warning(
            "%s does not honour 4D attention masks (log-probabilities differ by %.2g); scoring one choice per row",
            type(model).__name__,
            difference,
        )
        return False


def takes_logits_to_keep(model: torch.nn.Module) -> bool:
    """Whether the model's forward computes logits at chosen columns only."""
    base = getattr(model, "get_base_model", lambda: model)()  # an adapter's wrapper passes keywords on
    return "logits_to_keep" in inspect.signature(base.forward).parameters


def _score(model: PreTrainedModel, batch: Batch) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Log-probability and greediness of the batch's M tokens."""
    device = model.device
    inputs: dict[str, torch.Tensor] = {"input_ids": batch.input_ids.to(device)}
    if batch.depths is not None:
        inputs["position_ids"] = batch.depths.to(device)
        inputs["attention_mask"] = batch.mask(model.dtype, device)
    columns = batch.columns.to(device) + logits_before(model)
    if takes_logits_to_keep(model):
        logits = model(**inputs, use_cache=False, logits_to_keep=columns).logits  # (B, K, V)
    else:
        logits = model(**inputs, use_cache=False).logits[:, columns]
    logits = logits[batch.node_row.to(device), batch.node_column.to(device)]  # (N, V)
    if logits.dtype not in TOLERANCE:
        logits = logits.float()
    node, token = batch.token_node.to(device), batch.token_id.to(device)
    log_probs = logits[node, token] - logits.logsumexp(-1)[node]
    greedy = logits.argmax(-1)[node] == token
    return log_probs.double().cpu().numpy(), greedy.cpu().numpy()
