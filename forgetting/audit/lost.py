"""What was lost, won back: by a few steps of practice, or by a prompt.

Practice is of general text, and of the other half of the lost capabilities' own items. The base model practises the
same, and is asked with the same prompt: what that adds to a model that lost nothing is no recovery.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from forgetting.audit.compare import PERPLEXITIES
from forgetting.audit.items import Item, clusters
from forgetting.audit.practice import halves, solved
from forgetting.errors import RunFailed, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from forgetting.audit.load import AuditInput
    from forgetting.evaluation.suite import CapabilityScore, Suite
    from forgetting.tasks.encode import Feature

STEPS = (0, 1, 2, 5, 10, 20)
RATES = (1e-5, 1e-4, 1e-3)
"""Of practice; that which lowers the loss of held-out practice most is taken."""
BATCH = 16
SHOTS = 3
LONGEST = 512
"""Tokens of a practised item."""
GENERAL, OWN = "general text", "other items of the same"


@dataclass(frozen=True, slots=True)
class RelearnPoint:
    """After some steps of practice.

    Attributes:
        step: Optimizer steps.
        score: Of the tuned model, the mean over items.
        recovered, low, high: Share of the loss that is undone, with its interval over items
            (:func:`~forgetting.analysis.recovery.recovered_share`); NaN where, on these items, none is certain.
        control: Score of the base model after the same practice.
    """

    step: int
    score: float
    recovered: float
    low: float
    high: float
    control: float


@dataclass(frozen=True, slots=True)
class Relearned:
    """One lost capability and one kind of practice.

    Attributes:
        capability: Its name.
        practice: :data:`GENERAL` or :data:`OWN`.
        learning_rate: Constant, of :data:`RATES`.
        n: Items scored, none of which is practised.
        base, tuned: Scores on these before any practice.
        points: By step, the first at 0.
    """

    capability: str
    practice: str
    learning_rate: float
    n: int
    base: float
    tuned: float
    points: tuple[RelearnPoint, ...]


@dataclass(frozen=True, slots=True)
class Prompted:
    """One lost capability with solved items before each item.

    Scores and shares are those of :func:`~forgetting.evaluation.prompting.prompt_recovery`.

    Attributes:
        capability: Its name.
        n: Items scored.
        shots: Solved items before each.
        base, tuned, base_prompted, tuned_prompted: Scores.
        recovered, low, high: (tuned_prompted − tuned) / (base − tuned), with its interval over items.
    """

    capability: str
    n: int
    shots: int
    base: float
    tuned: float
    base_prompted: float
    tuned_prompted: float
    recovered: float
    low: float
    high: float


class LostItems:
    """The lost capabilities' items: half of them to practise, half to score.

    Args:
        given: Both models, of one tokenizer, and the suite.
        lost: Its capabilities.
        cluster: Field of the items that names the context they share.
    """

    def __init__(self, given: AuditInput, lost: Sequence[str], cluster: str | None) -> None:
        self.given, self.cluster = given, cluster
        sizes = {about.name: about.n for about in given.suite.capabilities()}
        suite = given.suite.part({name: range(sizes[name]) for name in lost})
        scores = suite.evaluate(given.base.model, given.base.tokenizer, given.batch_size)
        self.metrics = {about.name: about.metric for about in suite.capabilities()}
        self.items = {
            name: [Item(task, sample, value) for (task, sample), value in zip(found, scores[name].items, strict=True)]
            for name, found in suite.samples().items()
        }
        contexts = {name: clusters(items, cluster) for name, items in self.items.items()}
        split = {name: halves(len(items), contexts[name]) for name, items in self.items.items()}
        self.practised = {name: [self.items[name][place] for place in split[name][0]] for name in split}
        chosen = {name: places for name, (_, places) in split.items() if places}
        self.suite: Suite = suite.part(chosen)
        self.contexts = {
            name: None if (labels := contexts[name]) is None else [labels[place] for place in places]
            for name, places in chosen.items()
        }
        self.base = {
            name: _mean([self.items[name][place].outcome for place in places]) for name, places in chosen.items()
        }

    def score(self, model: PreTrainedModel) -> dict[str, CapabilityScore]:
        """The mean over the scored half."""
        found = self.suite.evaluate(model, self.given.base.tokenizer, self.given.batch_size)
        return {name: _mean(score.items) for name, score in found.items()}

    def practice(self, kind: str, texts: Sequence[str], length: int) -> list[Feature]:
        """Features of general text, or of the practised half of all lost capabilities, one of each in turn."""
        from lm_eval.models.utils import resolve_max_length

        from forgetting.tasks.encode import encode_examples, encode_texts

        tokenizer = self.given.base.tokenizer
        if kind == GENERAL:
            return encode_texts(tokenizer, texts, length)
        longest = min(int(resolve_max_length(self.given.base.model.config, tokenizer)), LONGEST)
        by_name = []
        for items in self.practised.values():
            examples, whole = solved(items)
            by_name.append(encode_examples(tokenizer, examples, longest) + encode_texts(tokenizer, whole, longest))
        most = max((len(features) for features in by_name), default=0)
        return [features[place] for place in range(most) for features in by_name if place < len(features)]

    def relearn(self, practice: str, features: Sequence[Feature], level: float) -> list[Relearned]:
        """The tuned model's curve beside the base model's.

        Raises:
            UsageError: if there are fewer than eight features, or no rate keeps the loss finite.
        """
        from forgetting.analysis.recovery import recovery_table
        from forgetting.evaluation.relearning import relearning_curve

        if len(features) < 8:
            raise UsageError(f"{len(features)} documents or items are there, and it needs 8")
        order = np.random.default_rng(0).permutation(len(features))
        held, kept = (
            [features[place] for place in part] for part in (order[::4], np.delete(order, slice(None, None, 4)))
        )
        rate = self._rate(kept, held)
        options: dict[str, Any] = {"learning_rate": rate, "batch_size": BATCH}
        models = self.given.tuned.model, self.given.base.model
        tokenizer = self.given.base.tokenizer
        curve = relearning_curve(models[0], kept, tokenizer, self.score, steps=STEPS, **options)
        after = relearning_curve(models[1], kept, tokenizer, self.score, steps=STEPS[1:], **options)
        control = {0: self.base, **dict(after)}
        table = recovery_table(curve, self.base, level, self.contexts)
        found = []
        for name, rows in table.groupby("capability", sort=False):
            points = tuple(
                RelearnPoint(
                    int(row["step"]),
                    float(row["score"]),
                    float(row["recovered"]),
                    float(row["low"]),
                    float(row["high"]),
                    control[int(row["step"])][str(name)].value,
                )
                for row in rows.to_dict("records")
            )
            base = self.base[str(name)]
            found.append(Relearned(str(name), practice, rate, len(base.items), base.value, points[0].score, points))
        return found

    def _rate(self, kept: Sequence[Feature], held: Sequence[Feature]) -> float:
        """The rate at which the last step leaves the lowest loss on held-out practice."""
        from forgetting.evaluation.relearning import relearning_curve
        from forgetting.trainer import mean_loss, padded_batches

        tokenizer = self.given.base.tokenizer
        batches = padded_batches(list(held), tokenizer, self.given.batch_size)
        losses = {}
        for rate in RATES:
            try:
                ((_, loss),) = relearning_curve(
                    self.given.tuned.model,
                    kept,
                    tokenizer,
                    lambda model: mean_loss(model, batches),
                    learning_rate=rate,
                    steps=STEPS[-1:],
                    batch_size=BATCH,
                )
            except RunFailed:
                continue
            if math.isfinite(loss):
                losses[rate] = loss
        if not losses:
            raise UsageError("the tuned model's loss is not finite")
        return min(losses, key=lambda rate: losses[rate])

    def prompted(self, level: float, note: Callable[[str], None]) -> list[Prompted]:
        """Score both models with solved items before each item, taken from those that are then not scored."""
        from forgetting.evaluation.prompting import Prompt, prompt_recovery
        from forgetting.evaluation.suite import load_suite

        if whole := [name for name, metric in self.metrics.items() if metric in PERPLEXITIES]:
            note(f"No prompt stands before whole texts: {', '.join(whole)}.")
        sizes = {name: _by_task(items) for name, items in self.items.items() if name not in whole}
        few = [name for name, counts in sizes.items() if min(counts.values()) < 2 * (SHOTS + 1)]
        if few:
            note(f"No recovery by a prompt on {', '.join(few)}: fewer than {2 * (SHOTS + 1)} items.")
        names = [name for name in sizes if name not in few]
        if not names:
            return []
        limit = min(min(sizes[name].values()) for name in names) // 2
        options: dict[str, Any] = {"data_dir": self.given.suite_dir, "limit": limit, "only": names}
        plain = load_suite(self.given.suite_names, **options)
        shown = load_suite(self.given.suite_names, **options, prompt=Prompt(shots=SHOTS))
        table = prompt_recovery(
            self.given.base.model,
            self.given.tuned.model,
            self.given.base.tokenizer,
            plain,
            shown,
            batch_size=self.given.batch_size,
            level=level,
            contexts={name: clusters(_first(self.items[name], limit), self.cluster) for name in names},
        )
        columns = ("base", "tuned", "base_prompted", "tuned_prompted", "recovered", "low", "high")
        return [
            Prompted(about.name, about.n, SHOTS, *(float(table[column].iloc[place]) for column in columns))
            for place, about in enumerate(plain.capabilities())
        ]


def _mean(items: Sequence[float]) -> CapabilityScore:
    from forgetting.evaluation.suite import CapabilityScore

    return CapabilityScore(math.fsum(items) / len(items), list(items))


def _by_task(items: Sequence[Item]) -> dict[str, int]:
    tasks = [item.task for item in items]
    return {task: tasks.count(task) for task in dict.fromkeys(tasks)}


def _first(items: Sequence[Item], limit: int) -> list[Item]:
    """The first items of each task."""
    seen: dict[str, int] = {}
    kept = []
    for item in items:
        seen[item.task] = seen.get(item.task, 0) + 1
        if seen[item.task] <= limit:
            kept.append(item)
    return kept
