"""EWC with an exact Fisher for Avalanche's strategies on classes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from forgetting.fisher.engine import Batch
    from forgetting.fisher.estimators import Estimator
    from forgetting.fisher.penalty import Convention


class EWCPlugin:
    """EWC for Avalanche's strategies, with an exact per-example Fisher and the pretrained state protected.

    A drop-in for ``avalanche.training.plugins.EWCPlugin``, whose importances are squared gradients of batch means and
    which protects nothing of what came before its first experience. Give it to any strategy on classes
    (``SupervisedTemplate(..., plugins=[EWCPlugin(100.0, pretraining=batches)])``), with one head, several, or one that
    grows; Avalanche dispatches by the callbacks' names, so it needs no base class of theirs.

    Args:
        strength: λ, see ``forgetting.fisher.penalty``.
        convention: Whose λ it is; ``avalanche`` for one that was tuned with Avalanche's plugin.
        pretraining: Batches (pairs) like those of pretraining, on which the state before the first experience is
            protected; nothing is where not given.
        mode: ``separate`` or ``online``.
        decay: Of the earlier Fisher information, for ``online``.
        update: ``implicit``: a step after the optimizer's that is stable at any strength; ``gradient``: added to the
            loss's gradient, as Avalanche's penalty is.
        estimator: See ``forgetting.fisher.diagonal_fisher``.
        samples: Draws per example, for ``sample``.
        max_examples: Of each experience.
        seed: Of the drawn labels.

    Raises:
        ValueError: for a strength below 0, or a decay without ``online``.
    """

    def __init__(
        self,
        strength: float,
        *,
        convention: Convention = "mean",
        pretraining: Iterable[Batch] | None = None,
        mode: Literal["separate", "online"] = "separate",
        decay: float = 1.0,
        update: Literal["implicit", "gradient"] = "implicit",
        estimator: Estimator = "exact",
        samples: int = 1,
        max_examples: int | None = None,
        seed: int = 0,
    ) -> None:
        from forgetting.fisher import DiagonalPenalty

        if strength < 0:
            raise ValueError(f"strength: {strength} is negative")
        if decay < 1 and mode != "online":
            raise ValueError(f"decay: {decay} needs mode='online'")
        self.strength, self.convention, self.update = strength, convention, update
        self.estimator, self.samples, self.max_examples, self.seed = estimator, samples, max_examples, seed
        self.pretraining = pretraining
        self.penalty = DiagonalPenalty(online=mode == "online", decay=decay)
        self._consolidated = 0
        self._scale = strength

    def _consolidate(self, strategy: Any, batches: Iterable[Any]) -> None:
        import torch

        from forgetting.fisher import diagonal_fisher, fisher_weight

        fisher = diagonal_fisher(
            _view(strategy.model),
            batches,
            estimator=self.estimator,
            samples=self.samples,
            max_examples=self.max_examples,
            generator=torch.Generator().manual_seed(self.seed * 1000 + self._consolidated),
        )
        values = {name.removeprefix("model."): value for name, value in fisher.values.items()}
        weight = fisher_weight(self.convention, fisher.examples)
        self.penalty.consolidate(replace(fisher, values=values), dict(strategy.model.named_parameters()), weight)
        self._consolidated += 1

    def before_training_exp(self, strategy: Any, **_: Any) -> None:
        """Protect the pretrained state, before the first experience; convert the strength for each."""
        from forgetting.fisher import raw_strength

        if self.strength > 0 and self.pretraining is not None and self._consolidated == 0:
            self._consolidate(strategy, self.pretraining)
        self.penalty.grow(dict(strategy.model.named_parameters()))
        self._scale = raw_strength(self.strength, self.convention, examples=len(strategy.experience.dataset))

    def after_backward(self, strategy: Any, **_: Any) -> None:
        """Add the penalty's gradient, where that is asked for."""
        if self.update == "gradient":
            self.penalty.add_gradient(dict(strategy.model.named_parameters()), self._scale)

    def after_update(self, strategy: Any, **_: Any) -> None:
        """Take the implicit step, as long as the optimizer's: each group with its rate."""
        if self.update == "implicit":
            names = {id(parameter): name for name, parameter in strategy.model.named_parameters()}
            for group in strategy.optimizer.param_groups:
                named = {names[id(p)]: p for p in group["params"] if id(p) in names}
                self.penalty.step(named, group["lr"] * self._scale)

    def after_training_exp(self, strategy: Any, **_: Any) -> None:
        """Protect what the experience taught."""
        import torch
        from torch.utils.data import DataLoader

        if self.strength == 0:
            return
        dataset = strategy.experience.dataset
        loader = DataLoader(
            dataset,
            batch_size=strategy.train_mb_size,
            collate_fn=getattr(dataset, "collate_fn", None),
            generator=torch.Generator(),  # else it would draw from the one that shuffles the strategy's batches
        )
        # (x, y, task label): a multi-headed model wants the last.
        self._consolidate(strategy, ({"x": x, "task_labels": t, "labels": y} for x, y, t in loader))


def _view(model: Any) -> Any:
    """A model as Avalanche calls it: with task labels where it is multi-headed."""
    from avalanche.models import avalanche_forward
    from torch import Tensor, nn

    class View(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor, task_labels: Tensor | None = None) -> Tensor:
            return model(x) if task_labels is None else avalanche_forward(model, x, task_labels)

    return View()
