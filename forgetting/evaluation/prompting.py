"""Is it gone, or not asked for? Capabilities scored with examples or an instruction before every item."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from forgetting.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd
    from lm_eval.api.task import Task
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from forgetting.evaluation.suite import Suite


@dataclass(frozen=True)
class Prompt:
    """What stands before every item of a capability, for :func:`forgetting.evaluation.suite.load_suite`.

    Attributes:
        shots: Solved items in lm-eval's few-shot format, drawn per item by lm-eval's seeded sampler from those items
            of the scored split that are not scored themselves (nor equal to one that is).
        instruction: A text before the shots, with the white space that ends it; a task's own description follows it.
        fixed: Whether every item gets the same shots, the first of those items (lm-eval's sampler ``first_n``): they
            are then read once per model.

    Raises:
        UsageError: if there is neither, or ``shots`` is negative.
    """

    shots: int = 0
    instruction: str = ""
    fixed: bool = False

    def __post_init__(self) -> None:
        if self.shots < 0 or not (self.shots or self.instruction):
            raise UsageError(f"prompt: has {self.shots} shots and no instruction; give either")

    def apply(self, task: Task, scored: list[int]) -> None:
        """Change a task whose requests are not built yet.

        Args:
            task: lm-eval's.
            scored: Indices of the items that will be scored.

        Raises:
            UsageError: if the task does not take a prompt, or leaves too few items for the shots.
        """
        from lm_eval.api.samplers import ContextSampler, FirstNSampler
        from lm_eval.api.task import ConfigurableTask

        name = task.config.task
        if not isinstance(task, ConfigurableTask) or task.OUTPUT_TYPE == "loglikelihood_rolling":
            raise UsageError(f"task {name!r}: scores whole texts or builds its own prompts; nothing can stand before")
        if self.instruction:
            task.set_config("description", self.instruction + (task.get_config("description") or ""))
        if not self.shots:
            return
        documents = list(task.eval_docs)
        taken = {repr(documents[index]) for index in scored}
        pool = [document for document in documents if repr(document) not in taken]
        if len(pool) <= self.shots:  # lm-eval draws one more than it shows
            raise UsageError(
                f"task {name!r}: {len(pool)} of {len(documents)} items are not scored, and {self.shots} shots need "
                f"{self.shots + 1}; lower limit, or the shots"
            )
        task.set_config("num_fewshot", self.shots)
        task.sampler = FirstNSampler(pool) if self.fixed else ContextSampler(pool)


def prompt_recovery(
    base_model: PreTrainedModel,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    plain: Suite,
    prompted: Suite,
    *,
    batch_size: int = 64,
    level: float = 0.95,
    contexts: Mapping[str, Sequence[str] | None] | None = None,
) -> pd.DataFrame:
    """Score two models on a suite with and without a prompt: what a prompt brings back was not erased.

    Forgetting that a prompt undoes is of the task that the model takes itself to be asked, not of what it can do
    (Kotha, Springer & Raghunathan 2023, arXiv 2309.10105; Zheng et al. 2025, arXiv 2501.13453; with a prefix that
    is the same for all tasks, Sun & Gao 2024, arXiv 2411.11932). The base model with the prompt is the control: what
    the prompt adds to it is not recovery.

    Args:
        base_model: Left in the mode it was in.
        model: The tuned model, the same.
        tokenizer: Both models'.
        plain: ``load_suite(names, limit=…)``.
        prompted: ``load_suite(names, limit=…, prompt=Prompt(…))`` with the same names, limit and offset.
        batch_size: Sequences per forward pass.
        level: Confidence level.
        contexts: By capability the context of each item; by default, and where ``None``, items are independent.

    Returns:
        A row per capability: ``capability``, ``base``, ``tuned``, ``base_prompted``, ``tuned_prompted``, and
        ``recovered`` with its limits ``low`` and ``high``: (tuned_prompted − tuned) / (base − tuned), of the items'
        means (:func:`forgetting.analysis.recovery.recovered_share`; NaN where nothing was lost).

    Raises:
        ValueError: if the suites have not the same capabilities and numbers of items.
        UsageError: if an item with its prompt is longer than a model reads: it would lose the prompt.
    """
    import pandas as pd

    from forgetting.analysis.recovery import recovered_share

    columns, others = ([(c.name, c.n) for c in suite.capabilities()] for suite in (plain, prompted))
    if columns != others:
        raise ValueError(f"plain and prompted: have the capabilities {columns} and {others}; need the same items")
    for each in (base_model, model):
        prompted.check_length(each, tokenizer)
    base, tuned, base_prompted, tuned_prompted = (
        suite.evaluate(each, tokenizer, batch_size) for suite in (plain, prompted) for each in (base_model, model)
    )
    rows = []
    for name, _ in columns:
        after, before, wanted = (scores[name].items for scores in (tuned_prompted, tuned, base))
        share = recovered_share(after, before, wanted, level, (contexts or {}).get(name))
        rows.append(
            {
                "capability": name,
                "base": base[name].value,
                "tuned": tuned[name].value,
                "base_prompted": base_prompted[name].value,
                "tuned_prompted": tuned_prompted[name].value,
                "recovered": share.mean,
                "low": share.low,
                "high": share.high,
            }
        )
    return pd.DataFrame(rows)
