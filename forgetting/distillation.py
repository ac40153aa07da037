"""What distillation and its kin compare: two models' predictions at the positions that are predicted."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from forgetting.tasks.encode import BOOKKEEPING, IGNORED, Collator

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from forgetting.families.wrapper import Heads

Direction = Literal["forward", "reverse"]


def frozen_copy(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy in eval mode whose parameters need no gradient: a teacher."""
    teacher = copy.deepcopy(model)
    teacher.requires_grad_(False)
    return teacher.eval()


def task_heads(model: PreTrainedModel) -> Heads | None:
    """The heads that tasks added to a model: new, a head predicts what it began with; ``None`` where there are none."""
    return getattr(model, "heads", None)


def watched_divergence(
    teacher: PreTrainedModel, outputs: Any, batch: dict[str, torch.Tensor], heads: Iterable[int], **options: Any
) -> torch.Tensor | float:
    """Return the sum over heads of :func:`kl_divergence` between two models' predictions on all rows, in nats.

    Args:
        teacher: Without gradient; it watches the heads (``forgetting.families.wrapper.Heads``), as the student does.
        outputs: The student's, of the batch.
        batch: What the student saw.
        heads: Which are compared.
        options: Of :func:`kl_divergence`.
    """
    import torch

    with torch.no_grad():
        taught = teacher(**inputs(batch), use_cache=False).watched
    pairs = [(taught[head].flatten(0, 1), outputs.watched[head].flatten(0, 1)) for head in heads]
    return sum((kl_divergence(p.float(), q.float(), **options) for p, q in pairs), 0.0)


def predicted_logits(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the logits of the predicted tokens, or classes (of every family: see ``forgetting.families``).

    Args:
        logits: (B, P + T, V); P positions of a soft prompt, if any, come before the batch's own.
        labels: (B, T), -100 where nothing is predicted.

    Returns:
        (N, V) in fp32 (fp64 stays), N the number of predicted labels, row after row.
    """
    logits = logits[:, logits.shape[1] - labels.shape[1] : -1][labels[:, 1:] != IGNORED]
    return logits if logits.element_size() > 4 else logits.float()


def at_predicted(values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return those of ``values`` (B, T) that stand at predicted tokens, (N,), in the order of the logits."""
    return values[:, 1:][labels[:, 1:] != IGNORED]


def token_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the loss of each predicted token, (N,), in nats; arguments as of :func:`predicted_logits`."""
    import torch.nn.functional as F

    return F.cross_entropy(predicted_logits(logits, labels), at_predicted(labels, labels), reduction="none")


def predict(model: PreTrainedModel, batch: dict[str, torch.Tensor], labels: torch.Tensor | None = None) -> torch.Tensor:
    """Return the model's logits, (N, V), at the batch's predicted tokens, or at those of other ``labels``."""
    logits = model(**inputs(batch), use_cache=False).logits
    return predicted_logits(logits, batch["labels"] if labels is None else labels)


def teach(teacher: PreTrainedModel, batch: dict[str, torch.Tensor], labels: torch.Tensor | None = None) -> torch.Tensor:
    """Return what :func:`predict` does, of a teacher: no gradient goes through it."""
    import torch

    with torch.no_grad():
        return predict(teacher, batch, labels)


def inputs(batch: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Return what of a batch a forward pass without a loss takes."""
    return {key: value for key, value in batch.items() if key not in ("labels", *BOOKKEEPING)}


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


class ExampleLoss(NamedTuple):
    """How well a model predicts an example.

    Attributes:
        length: Its tokens.
        predicted: Those that are predicted.
        loss: Their mean loss, in nats; 0 where there is none.
    """

    length: int
    predicted: int
    loss: float


def example_losses(
    model: PreTrainedModel, features: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, batch_size: int
) -> list[list[ExampleLoss]]:
    """Return a model's loss on each example of each feature; a packed row has several.

    Args:
        model: In the mode in which it is to predict.
        features: See ``forgetting.tasks.encode``.
        tokenizer: For its padding token.
        batch_size: Features per forward pass.
    """
    import torch

    collate, found = Collator.for_tokenizer(tokenizer), []
    for begin in range(0, len(features), batch_size):
        rows = features[begin : begin + batch_size]
        batch = {key: value.to(model.device) for key, value in collate(rows).items()}
        predicted = batch["labels"] != IGNORED
        losses = torch.zeros(predicted.shape, dtype=torch.float64)
        with torch.no_grad():
            logits = model(**inputs(batch), use_cache=False).logits
        losses[:, 1:][predicted[:, 1:].cpu()] = token_losses(logits, batch["labels"]).double().cpu()
        for row, its_losses, its_predicted in zip(rows, losses, predicted.cpu(), strict=True):
            lengths = row.get("segments", [len(row["labels"])])
            ends = torch.tensor(lengths).cumsum(0).tolist()
            examples = []
            for length, end in zip(lengths, ends, strict=True):
                part = slice(end - length, end)
                count = int(its_predicted[part].sum())
                examples.append(ExampleLoss(length, count, float(its_losses[part].sum()) / max(count, 1)))
            found.append(examples)
    return found
