"""What distillation and its kin compare: two models' predictions at the positions that are predicted."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Literal

from forgetting.tasks.encode import IGNORED

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Direction = Literal["forward", "reverse"]


def frozen_copy(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy in eval mode whose parameters need no gradient: a teacher."""
    teacher = copy.deepcopy(model)
    teacher.requires_grad_(False)
    return teacher.eval()


def predicted_logits(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the logits of the predicted tokens of a causal language model.

    Args:
        logits: (B, P + T, V); P positions of a soft prompt, if any, come before the batch's own.
        labels: (B, T), -100 where nothing is predicted.

    Returns:
        (N, V) in fp32 (fp64 stays), N the number of predicted tokens, row after row.
    """
    logits = logits[:, logits.shape[1] - labels.shape[1] : -1][labels[:, 1:] != IGNORED]
    return logits if logits.element_size() > 4 else logits.float()


def teach(teacher: PreTrainedModel, batch: dict[str, torch.Tensor], labels: torch.Tensor | None = None) -> torch.Tensor:
    """Return the teacher's logits, (N, V), at the batch's predicted tokens, or at those of other ``labels``."""
    import torch

    with torch.no_grad():
        logits = teacher(**inputs(batch), use_cache=False).logits
    return predicted_logits(logits, batch["labels"] if labels is None else labels)


def inputs(batch: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Return what of a batch a forward pass without a loss takes."""
    return {key: value for key, value in batch.items() if key in ("input_ids", "attention_mask", "position_ids")}


def kl_divergence(
    teacher: torch.Tensor, student: torch.Tensor, *, direction: Direction = "forward", temperature: float = 1.0
) -> torch.Tensor:
    """Return the mean KL divergence per predicted token, in nats, a scalar; 0 where there is none.

    ``forward`` is KL(teacher ‖ student) = Σ p (ln p − ln q), ``reverse`` is KL(student ‖ teacher). With a temperature
    both logits are divided by it and the mean is multiplied by its square, so that the gradient keeps its size
    (Hinton et al. 2015, arXiv 1503.02531).

    Args:
        teacher: Logits, (N, V).
        student: Logits, (N, V).
        direction: Which of the two is averaged over.
        temperature: Of both.
    """
    import torch.nn.functional as F

    if not len(student):
        return student.sum()
    p, q = (F.log_softmax(logits / temperature, dim=-1) for logits in (teacher, student))
    if direction == "reverse":
        p, q = q, p
    return F.kl_div(q, p, reduction="batchmean", log_target=True) * temperature**2
