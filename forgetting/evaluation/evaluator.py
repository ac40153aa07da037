"""One row of R and G: all that is measured after a task."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from forgetting.consolidation import check_rules
from forgetting.evaluation.drift import fisher_distance, weight_change
from forgetting.results import Row

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from forgetting.config import EvaluationConfig
    from forgetting.families.base import Family
    from forgetting.fisher import DiagonalFisher
    from forgetting.mitigations import Mitigation
    from forgetting.tasks.pretraining import PretrainingText
    from forgetting.tasks.task import Task

FISHER_DOCUMENTS = 128
FISHER_BATCH = 16
"""The batches change nothing but the time."""

RowItems = dict[str, dict[str, list[float]]]


@dataclass(frozen=True)
class Evaluation:
    """A row, and its per-item outcomes: ``items["R"][task]``, ``items["G"][capability]``."""

    row: Row
    items: RowItems


class Evaluator:
    """Scores every task and capability of a study; everything is tokenised once.

    Args:
        family: Of the pretrained model, which is kept unchanged as the reference of drift; its sequence's test
            splits make the columns of R.
        config: Suites, limits and batch size.
        pretraining: Its held-out texts are where drift is measured.
        max_length: Tokens per scored sequence.
    """

    def __init__(self, family: Family, config: EvaluationConfig, pretraining: PretrainingText, max_length: int) -> None:
        self.family, self.config, self.max_length = family, config, max_length
        self.base, self.sequence = family.base, family.sequence
        self.capabilities = family.capabilities(config, pretraining)
        self.scorers = [family.scorer(task, config.batch_size, max_length) for task in self.sequence.tasks]
        self.drift = family.drift(config, pretraining, max_length) if config.drift else None
        self._pretraining = pretraining
        self._base_evaluation: Evaluation | None = None
        if config.fisher_distance:
            check_rules("evaluation.fisher_distance", self.base.model)

    def base_row(self) -> Evaluation:
        """Row 0, measured once per evaluator: every run of a study starts from the same base model."""
        if self._base_evaluation is None:
            self._base_evaluation = self.evaluate(self.base.model, None, None)
        return self._base_evaluation

    @cached_property
    def _base_fisher(self) -> DiagonalFisher:
        """The base model's, with labels drawn from it, of held-out pretraining text."""
        import torch

        from forgetting.fisher import diagonal_fisher
        from forgetting.tasks.pretraining import OWN
        from forgetting.trainer import padded_batches

        documents = self._pretraining.held_out[OWN][:FISHER_DOCUMENTS]
        features = self.family.encode_pretraining(documents, self.max_length)
        batches = padded_batches(features, self.base.tokenizer, FISHER_BATCH)
        return diagonal_fisher(self.base.model, batches, estimator="sample", generator=torch.Generator().manual_seed(0))

    def estimate_seconds(self) -> float:
        """Roughly what a row takes: a batch of the first task's items, timed, for as many items as there are."""
        task = self.sequence.tasks[0]
        few = replace(task, test=task.test[: self.config.batch_size])
        scorer = self.family.scorer(few, self.config.batch_size, self.max_length)
        scorer.score(self.base.model)  # the first call also loads and checks things, once per process
        begun = time.perf_counter()
        scorer.score(self.base.model)
        per_item = (time.perf_counter() - begun) / len(few.test)
        items = sum(len(t.test) for t in self.sequence.tasks) + sum(c.n for c in self.capabilities.capabilities())
        return per_item * items

    def evaluate(self, model: PreTrainedModel, mitigation: Mitigation | None, task: Task | None) -> Evaluation:
        """Measure a row.

        Args:
            model: To be scored as it stands, and within each of the mitigation's views.
            mitigation: What it is trained with; ``None`` for the base.
            task: What it was last trained on, whose inputs and answers are texts of drift; ``None`` for the base.
        """
        begun = time.perf_counter()
        R, G, items = self._scores(model, mitigation)
        row = Row(R=R, G=G, evaluation_seconds=0.0)
        learned = task.test if task else ()
        for name, view in (mitigation.views(model) if mitigation else {}).items():
            with view:
                view_R, view_G, _ = self._scores(model, None)
                if self.drift is not None:
                    row.view_drift[name] = self.drift.measure(model, learned)
            row.views[name] = {"R": view_R, "G": view_G}
        if self.drift is not None:
            row.drift = self.drift.measure(model, learned)
            row.weight_change = weight_change(self.base.model, model)
        if self.config.fisher_distance:
            row.fisher_distance = fisher_distance(self.base.model, model, self._base_fisher)
        row.evaluation_seconds = time.perf_counter() - begun
        return Evaluation(row, items)

    def _scores(
        self, model: PreTrainedModel, mitigation: Mitigation | None
    ) -> tuple[list[float], list[float], RowItems]:
        was_training = model.training
        model.eval()
        tasks = {}
        for task, scorer in zip(self.sequence.tasks, self.scorers, strict=True):
            if mitigation is not None and mitigation.task_oracle:
                with mitigation.scoring(model, task):
                    tasks[task.name] = scorer.after(mitigation.demonstrations(task)).score(model)
            else:
                tasks[task.name] = scorer.score(model)
        capabilities = self.capabilities.evaluate(model, self.base.tokenizer, batch_size=self.config.batch_size)
        model.train(was_training)
        items: RowItems = {
            "R": {name: score.items for name, score in tasks.items()},
            "G": {name: score.items for name, score in capabilities.items()},
        }
        return [s.value for s in tasks.values()], [s.value for s in capabilities.values()], items
