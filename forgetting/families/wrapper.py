"""The module around a pretrained model that makes its predictions those of every family, and keeps its own head."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from forgetting.tasks.encode import IGNORED

HIDDEN = -1e4
"""The logit of what a row's head does not predict: its probability is exactly 0 in fp32, its logarithm finite."""
INITIAL_STD = 0.02


class FamilyModel(PreTrainedModel):
    """A pretrained model whose ``logits[:, t]`` predict ``labels[:, t + 1]``, see ``forgetting.families``.

    The pretrained model with its head is ``base``; what tasks add stands beside it.

    Args:
        base: Kept as it is, and trained in place.
    """

    shifts_labels = True
    accepts_loss_kwargs = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, base: PreTrainedModel) -> None:
        super().__init__(base.config)
        self.base = base
        self.main_input_name = base.main_input_name
        self.all_tied_weights_keys = {
            f"base.{key}": f"base.{value}" for key, value in getattr(base, "all_tied_weights_keys", {}).items()
        }

    def get_input_embeddings(self) -> nn.Module:
        """The base model's; an empty module where it has none (a convolutional network)."""
        try:
            return self.base.get_input_embeddings()
        except NotImplementedError:
            return nn.Identity()

    def get_output_embeddings(self) -> nn.Module | None:
        """The base model's own head."""
        return self.base.get_output_embeddings()


def output(
    logits: Tensor,
    labels: Tensor | None,
    num_items_in_batch: Tensor | int | None,
    watched: dict[int, Tensor] | None = None,
) -> ModelOutput:
    """Return logits, and the mean cross-entropy of what is predicted, in nats, where there are labels.

    Args:
        logits: (B, 1 + N, W); the last column predicts nothing.
        labels: (B, 1 + N).
        num_items_in_batch: Divides the sum where several batches make one step; else what this batch predicts.
        watched: See :class:`Heads`; returned as it is.
    """
    beside = {"watched": watched} if watched else {}
    if labels is None:
        return ModelOutput(logits=logits, **beside)
    reduction = "mean" if num_items_in_batch is None else "sum"
    loss = functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction=reduction
    )
    loss = loss if num_items_in_batch is None else loss / num_items_in_batch
    return ModelOutput(loss=loss, logits=logits, **beside)


class Heads(nn.Module):
    """Linear heads whose classes stand side by side in one space of outputs.

    A head that a batch does not use gets no gradient at all, so that neither weight decay nor a penalty moves it.

    Args:
        width: Features, D.
        sizes: Classes of each head.
        own: Whether the pretrained model has a head of this kind, which then is head 0.

    Attributes:
        watched: Heads whose logits every forward pass returns beside the others', for all rows: what a method that
            distils the heads of other tasks compares.
    """

    def __init__(self, width: int, sizes: list[int], own: bool) -> None:
        super().__init__()
        self.own, self.watched = own, set[int]()
        generator = torch.Generator().manual_seed(0)  # new heads are part of the base model: equal in every run
        # In names, "head0" and not "0": a number between dots is a block's.
        self.heads = nn.ModuleDict({f"head{i}": nn.Linear(width, size) for i, size in enumerate(sizes)})
        for head in self.heads.values():
            assert isinstance(head, nn.Linear)
            with torch.no_grad():
                head.weight.normal_(0.0, INITIAL_STD, generator=generator)
                head.bias.zero_()
        self.sizes = sizes

    def forward(self, features: Tensor, head: Tensor, own: Tensor | None = None) -> tuple[Tensor, dict[int, Tensor]]:
        """Return the logits of each row's head (all others are ``HIDDEN``), and those of the watched heads.

        Args:
            features: (B, 1, D).
            head: (B,) int64, an index among the heads, of which ``own`` is the first where it is given; −1 for none.
            own: (B, 1, K), the pretrained head's logits, where it has one.

        Returns:
            (B, 1, W), W the classes of all heads; and by watched head (B, 1, its classes).
        """
        used = set(head.tolist()) | self.watched
        first = int(self.own)
        parts = [] if own is None else [own]
        parts += [
            module(features) if i + first in used else features.new_full((*features.shape[:2], size), HIDDEN)
            for i, (size, module) in enumerate(zip(self.sizes, self.heads.values(), strict=True))
        ]
        sizes = [part.shape[-1] for part in parts]
        owner = torch.repeat_interleave(torch.arange(len(parts)), torch.tensor(sizes)).to(head.device)
        logits = torch.cat(parts, dim=-1)
        watched = {index: parts[index] for index in sorted(self.watched)}
        return logits.masked_fill(owner != head[:, None, None], HIDDEN), watched


def ending(logits: Tensor) -> Tensor:
    """Append the column that predicts nothing."""
    return functional.pad(logits, (0, 0, 0, 1))
