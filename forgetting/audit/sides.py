"""What is known of the two models from their own files, and how both do on the task that was fine-tuned for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from forgetting.analysis.paired_shares import paired_shares
from forgetting.audit.compare import difference_of, difference_of_means
from forgetting.audit.load import AuditInput, weights_digest
from forgetting.audit.schema import Difference, OwnTask, Side

if TYPE_CHECKING:
    from forgetting.models import LoadedModel

CARD_FIELDS = ("license", "language", "datasets", "base_model", "library_name", "pipeline_tag", "tags", "metrics")
RECIPE_FIELDS = ("max_steps", "num_train_epochs", "train_batch_size", "total_flos", "num_input_tokens_seen")
"""Of ``trainer_state.json``, which transformers' Trainer leaves in a checkpoint."""


def model_side(given: AuditInput, which: Literal["base", "tuned"]) -> Side:
    """Describe one of the models: weights, and what its folder says of data, recipe and cost."""
    loaded: LoadedModel = getattr(given, which)
    folder = Path(loaded.name).expanduser()
    adapter = given.adapter if which == "tuned" else None
    return Side(
        name=loaded.name,
        kind="adapter" if adapter else "model",
        sha256=weights_digest(loaded.model),
        parameters=sum(parameter.numel() for parameter in loaded.model.parameters()),
        architecture=type(loaded.model).__name__,
        adapter=None if adapter is None else {key: value for key, value in adapter.items() if _plain(value)},
        card=_front_matter(folder / "README.md"),
        training=_recipe(folder),
    )


def _plain(value: Any) -> bool:
    return value is not None and isinstance(value, (str, int, float, bool, list))


def _front_matter(path: Path) -> dict[str, Any]:
    """The known fields of a model card's YAML header; empty where there is none that can be read."""
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return {}
    begin, _, rest = text.partition("---\n")
    header, end, _ = rest.partition("\n---")
    if begin.strip() or not end:
        return {}
    try:
        values = yaml.safe_load(header)
    except yaml.YAMLError:
        return {}
    if not isinstance(values, dict):
        return {}
    return {key: values[key] for key in CARD_FIELDS if _plain(values.get(key))}


def _recipe(folder: Path) -> dict[str, Any]:
    """What the trainer's state says; empty where the folder has none."""
    try:
        state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(state, dict):
        return {}
    found = {key: state[key] for key in RECIPE_FIELDS if isinstance(state.get(key), (int, float))}
    rates = [entry["learning_rate"] for entry in state.get("log_history", []) if "learning_rate" in entry]
    return found | ({"peak_learning_rate": max(rates)} if rates else {})


def own_task(given: AuditInput, level: float, cluster: str | None = None) -> OwnTask | None:
    """Score both models on the own task's test split, each with its tokenizer.

    Args:
        given: Both models and the task.
        level: Of the interval over its items, which is clustered where they share a context.
        cluster: Field that names the context; see :meth:`~forgetting.audit.load.AuditInput.own_contexts`.
    """
    from lm_eval.models.utils import resolve_max_length

    from forgetting.evaluation.scores import TaskScorer

    if given.own is None:
        return None
    scores = []
    for loaded in (given.base, given.tuned):
        longest = int(resolve_max_length(loaded.model.config, loaded.tokenizer))
        scorer = TaskScorer(given.own, loaded.tokenizer, batch_size=given.batch_size, max_length=longest)
        scores.append(scorer.score(loaded.model))
    contexts = given.own_contexts(cluster)
    before, after = (np.array(score.items) for score in scores)
    return OwnTask(
        name=given.own.name,
        metric=given.own.metric,
        n=len(given.own.test),
        clusters=None if contexts is None else len(set(contexts)),
        base=scores[0].value,
        tuned=scores[1].value,
        difference=_own_difference(before, after, level, contexts),
    )


def _own_difference(before: np.ndarray, after: np.ndarray, level: float, contexts: list[str] | None) -> Difference:
    both = np.concatenate([before, after])
    if ((both >= 0) & (both <= 1)).all():
        return difference_of(paired_shares(before, after, clusters=contexts), level)
    return difference_of_means(before, after, level, contexts)
