"""What would have helped: edits of the fine-tune, each scored on the own task and on the suite, without retraining."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from forgetting.audit.edits import STANDS_FOR, Change, Edit, layer_groups
from forgetting.audit.items import Item, clusters
from forgetting.audit.retained import Contexts, Retained, gained, retained
from forgetting.audit.slopes import GeneralSlopes, general_slopes
from forgetting.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from forgetting.analysis.stats import Interval
    from forgetting.evaluation.suite import Suite
    from forgetting.fisher import DiagonalFisher

OwnScore = Callable[["PreTrainedModel"], Sequence[float]]
"""A value per item of the own task, greater is better: ``lambda model: TaskScorer(...).score(model).items``."""

ALPHAS = (0.25, 0.5, 0.75, 0.9)
RANKS = (1, 4, 16)
SHARES = (0.01, 0.1, 0.5)


@dataclass(frozen=True, slots=True)
class Point:
    """A row of the Pareto table: one mixture of the base and the tuned weights, on both tests.

    Attributes:
        name: ``base``, ``tuned``, or the edit's.
        edit: ``None`` of the two ends.
        stands_for: The remedy that the edit stands for; empty of the ends.
        own: Mean of the own task's items.
        own_change: That minus the tuned model's; an interval over items, paired. NaN limits where no item changed.
        retention: See :func:`forgetting.audit.retained.retained`.
        retention_change: That minus the tuned model's, paired.
        efficient: No other row is at least as good in both means and better in one.
    """

    name: str
    edit: Edit | None
    stands_for: str
    own: float
    own_change: Interval
    retention: Retained
    retention_change: Retained
    efficient: bool


@dataclass(frozen=True, slots=True)
class Best:
    """The interpolation that retains most among those whose own-task score is within the margin of the tuned model's.

    It is chosen on the items of even position (of items that share a context, on every second context) and judged on
    the others: the best of several looks better than it is on the items that it was chosen on.

    Attributes:
        alpha: 1 where none but the tuned model itself is within the margin.
        margin: In the own score's unit.
        own_change: On the other half of the items, paired, against the tuned model.
        retention_change: The same.
    """

    alpha: float
    margin: float
    own_change: Interval
    retention_change: Retained


@dataclass(frozen=True, slots=True)
class Advice:
    """What :func:`advise` found.

    Attributes:
        points: ``base`` and ``tuned`` first, then the edits, in their order.
        best: See :class:`Best`.
        replay: First-order effect of replay; ``None`` where no general text was given.
        capabilities: The suite's capabilities that count; perplexities and the like do not, having no chance level.
        level: Of the intervals.
    """

    points: tuple[Point, ...]
    best: Best
    replay: GeneralSlopes | None
    capabilities: tuple[str, ...]
    level: float


def default_edits(change: Change, *, fisher: bool) -> list[Edit]:
    """Return interpolations, a revert per layer (or run of layers), truncations, and with a Fisher its masks."""
    edits = [Edit("interpolation", alpha) for alpha in ALPHAS]
    edits += [Edit("revert", layers=layers) for layers in layer_groups(change)]
    edits += [Edit("rank", rank) for rank in RANKS]
    return edits + ([Edit("fisher", share) for share in SHARES] if fisher else [])


def advise(
    change: Change,
    own: OwnScore,
    suite: Suite,
    tokenizer: PreTrainedTokenizerBase,
    *,
    edits: Sequence[Edit] | None = None,
    fisher: DiagonalFisher | None = None,
    general: Sequence[Mapping[str, Tensor]] = (),
    margin: float = 0.02,
    level: float = 0.95,
    batch_size: int = 64,
    cluster: str | None = None,
    own_contexts: Sequence[str] | None = None,
    progress: Callable[[int, int, str], None] = lambda done, total, name: None,
) -> Advice:
    """Score every edit on the own task and on the suite.

    The intervals are over items, with these very weights: they say nothing of another seed of the fine-tune, and not
    what retraining with the remedy would give (:mod:`forgetting.audit.reliability`).

    Args:
        change: Base and tuned model.
        own: Scores the own task; the same items, in the same order, at every call. At least two.
        suite: What must be retained; its capabilities with a chance level count.
        tokenizer: Both models'.
        edits: By default :func:`default_edits`.
        fisher: Of the base model, on general text; needed for edits of kind ``fisher``.
        general: Batches of general text with labels, for the first-order effect of replay.
        margin: See :class:`Best`, at least 0.
        level: Of the intervals.
        batch_size: Sequences per forward pass of the suite.
        cluster: Field of the suite's items that names their context (:func:`~forgetting.audit.items.clusters`).
        own_contexts: The context of each item of the own task; ``None`` where none share one.
        progress: Called before each scoring with how many are done, how many there are, and its name.

    Raises:
        UsageError: if no capability of the suite has items between 0 and 1.
        ValueError: if the margin is negative, an edit occurs twice, or whatever an edit cannot be made with.
    """
    from forgetting.analysis.pareto import pareto_front
    from forgetting.analysis.stats import paired_difference

    if margin < 0:
        raise ValueError(f"margin: {margin} is negative")
    chosen = list(default_edits(change, fisher=fisher is not None) if edits is None else edits)
    if repeated := [edit.name for edit in chosen if chosen.count(edit) > 1]:
        raise ValueError(f"edits: {repeated[0]!r} occurs twice; each once")
    base, tuned = Edit("interpolation", 0.0), Edit("interpolation", 1.0)
    named = {"base": base, "tuned": tuned} | {edit.name: edit for edit in chosen if edit not in (base, tuned)}
    scores: dict[str, _Scores] = {}
    for done, (name, edit) in enumerate(named.items()):
        progress(done, len(named), name)
        with change.at(edit, fisher):
            found = suite.evaluate(change.model, tokenizer, batch_size)
            scores[name] = _Scores(np.asarray(own(change.model), float), {c: s.items for c, s in found.items()})
    chance = {
        info.name: info.chance
        for info in suite.capabilities()
        if info.higher_is_better and all(0 <= x <= 1 for s in scores.values() for x in s.suite[info.name])
    }
    if not chance:
        raise UsageError("suite: has no capability that is scored between 0 and 1; advice needs one, such as 'micro'")
    scores = {name: _Scores(s.own, {c: s.suite[c] for c in chance}) for name, s in scores.items()}
    contexts = {
        name: clusters([Item(task, sample, 0.0) for task, sample in found], cluster)
        for name, found in suite.samples().items()
        if name in chance
    }
    kept = {name: retained(scores["base"].suite, s.suite, chance, level, contexts) for name, s in scores.items()}
    means = np.array([(s.own.mean(), kept[name].mean) for name, s in scores.items()])
    if np.isnan(means).any():
        raise UsageError("suite: the base model is not above chance on any capability; nothing can be retained")
    front = set(pareto_front(means).tolist())
    points = tuple(
        Point(
            name,
            None if name in ("base", "tuned") else edit,
            "" if name in ("base", "tuned") else STANDS_FOR[edit.kind],
            float(scores[name].own.mean()),
            paired_difference(scores["tuned"].own, scores[name].own, "items", level, own_contexts),
            kept[name],
            gained(scores["base"].suite, scores["tuned"].suite, scores[name].suite, chance, level, contexts),
            index in front,
        )
        for index, (name, edit) in enumerate(named.items())
    )
    alphas = {name: edit.amount for name, edit in named.items() if edit.kind == "interpolation"}
    return Advice(
        points,
        _best(scores, alphas, chance, margin, level, contexts, own_contexts),
        general_slopes(change, general) if general else None,
        tuple(chance),
        level,
    )


@dataclass(frozen=True, slots=True)
class _Scores:
    own: np.ndarray
    suite: dict[str, list[float]]

    def half(self, first: Literal[0, 1], contexts: Contexts, own_contexts: Sequence[str] | None) -> _Scores:
        chosen = {name: _half(len(items), first, contexts[name]) for name, items in self.suite.items()}
        return _Scores(
            self.own[_half(self.own.size, first, own_contexts)],
            {name: [items[place] for place in chosen[name]] for name, items in self.suite.items()},
        )


def _half(n: int, first: Literal[0, 1], labels: Sequence[str] | None) -> list[int]:
    """Positions of every second item, or of the items of every second context."""
    if labels is None:
        return list(range(first, n, 2))
    order = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    return [place for place, label in enumerate(labels) if order[label] % 2 == first]


def _best(
    scores: Mapping[str, _Scores],
    alphas: Mapping[str, float],
    chance: Mapping[str, float],
    margin: float,
    level: float,
    contexts: Contexts,
    own_contexts: Sequence[str] | None,
) -> Best:
    from forgetting.analysis.stats import paired_difference

    even, odd = ({name: score.half(half, contexts, own_contexts) for name, score in scores.items()} for half in (0, 1))
    if any(score.own.size < 1 or not all(score.suite.values()) for score in odd.values()):
        raise UsageError(
            "own task and suite: need two items each, one to choose an interpolation on, one to judge it on"
        )
    judged = {
        name: None if labels is None else [labels[place] for place in _half(len(labels), 1, labels)]
        for name, labels in contexts.items()
    }
    own_judged = None
    if own_contexts is not None:
        own_judged = [own_contexts[place] for place in _half(len(own_contexts), 1, own_contexts)]
    enough = even["tuned"].own.mean() - margin
    kept = {
        name: retained(even["base"].suite, even[name].suite, chance, level).mean
        for name in alphas
        if even[name].own.mean() >= enough
    }
    name = max(kept, key=lambda name: (np.nan_to_num(kept[name], nan=-np.inf), alphas[name]))
    return Best(
        alphas[name],
        margin,
        paired_difference(odd["tuned"].own, odd[name].own, "items", level, own_judged),
        gained(odd["base"].suite, odd["tuned"].suite, odd[name].suite, chance, level, judged),
    )


def check_empty(folder: Path) -> None:
    """Check that a model can be saved in a folder.

    Raises:
        UsageError: if it holds something, or is no folder.
    """
    try:
        taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    except OSError as error:
        raise UsageError(f"save-best {str(folder)!r}: cannot be read ({error.strerror or error})") from None
    if taken:
        raise UsageError(f"save-best {str(folder)!r}: is not an empty folder; give a new one")


def save_best(change: Change, tokenizer: PreTrainedTokenizerBase, alpha: float, folder: str | Path) -> Path:
    """Write base + α Δ as an ordinary model folder: configuration, safetensors and tokenizer.

    Args:
        change: Base and tuned model.
        tokenizer: Saved beside the weights.
        alpha: In [0, 1]; such as :attr:`Best.alpha`.
        folder: Must not exist, or be empty.

    Returns:
        The folder.

    Raises:
        UsageError: if the folder holds something, or cannot be written.
        ValueError: if alpha is out of range.
    """
    folder = Path(folder)
    edit = Edit("interpolation", alpha)
    check_empty(folder)
    try:
        with change.at(edit):
            change.model.save_pretrained(folder, safe_serialization=True)
        tokenizer.save_pretrained(folder)
    except OSError as error:
        raise UsageError(f"save-best {str(folder)!r}: cannot be written ({error.strerror or error})") from None
    return folder
