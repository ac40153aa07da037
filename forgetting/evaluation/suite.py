"""Capability suites (the columns of G): lm-eval's tasks, built once and scored after every task of every run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from forgetting.errors import UsageError
from forgetting.evaluation.catalogue import SUITES, Catalogue, SuiteDefinition, TaskGroup, compiled_templates, quiet
from forgetting.results import CapabilityInfo

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.task import Task
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from forgetting.evaluation.budget import BatchSize
    from forgetting.evaluation.lm import Prepared, Response
    from forgetting.evaluation.prompting import Prompt
    from forgetting.evaluation.reader import Reader

__all__ = ["SUITES", "CapabilityScore", "Suite", "SuiteDefinition", "load_suite"]

PREFERRED_METRICS = ("acc", "exact_match", "pct_stereotype")
FEWSHOT_SEED = 1234
"""lm-eval's default: the same shots as its command line draws."""


@dataclass(frozen=True)
class CapabilityScore:
    """A capability's score.

    Attributes:
        value: lm-eval's aggregate of the main metric.
        items: A value per document, in the documents' order; for perplexities nats per word or byte.
    """

    value: float
    items: list[float]


def load_suite(
    names: Sequence[str],
    *,
    data_dir: Path | None = None,
    limit: int | None = None,
    offset: int = 0,
    reader: Reader | None = None,
    prompt: Prompt | None = None,
    only: Collection[str] | None = None,
    trust_remote_code: bool = False,
) -> Suite:
    """Load the union of suites; a capability that two names share is one column.

    Args:
        names: Suites (``micro``, ``blimp``, ``standard``), lm-eval tasks (``blimp_adjunct_island``), groups
            (``mmlu``: one column, its tasks' items one after another), tags (a column per task), or folders of
            lm-eval YAML files (a column per task).
        data_dir: Local folder with the tasks' data instead of the hub: a folder per task with a file per split
            (``hellaswag/validation.jsonl``, .json or .parquet), or one file (``adjunct_island.jsonl``) that is
            scored. Tasks that bring their own data do not need it.
        limit: Items per task, the first ones after ``offset``; all where not given.
        offset: Items per task that are passed over.
        reader: The way to read of another family than decoders.
        prompt: What stands before every item; by default what the tasks say (few-shot examples, where they have some).
        only: The columns to keep, by name; all where not given.
        trust_remote_code: Let the files of a folder name Python functions to run, and include files outside of it.

    Raises:
        UsageError: if a name means nothing (the nearest is named), data are missing (task, folder and split
            are named), a task has no item after ``offset``, or cannot take the prompt.
    """
    catalogue = Catalogue(data_dir, trust_remote_code=trust_remote_code)
    columns: dict[str, TaskGroup] = {}
    for name in names:
        columns.update({column.name: column for column in catalogue.load(name) if column.name not in columns})
    kept = [column for name, column in columns.items() if only is None or name in only]
    return Suite([_Capability(column, limit, offset, prompt) for column in kept], reader)


class Suite:
    """Capabilities whose requests are built once, tokenised once per tokenizer, and scored many times.

    Args:
        capabilities: The columns, in order.
        reader: The way to read of another family than decoders.
    """

    def __init__(self, capabilities: Sequence[_Capability], reader: Reader | None = None) -> None:
        self._capabilities, self._reader = list(capabilities), reader
        self._requests = [request for column in capabilities for request in column.requests]
        self._prepared: WeakKeyDictionary[PreTrainedTokenizerBase, dict[tuple[BatchSize, int], Prepared]] = (
            WeakKeyDictionary()
        )

    def capabilities(self) -> list[CapabilityInfo]:
        """The columns of G."""
        return [column.info for column in self._capabilities]

    def tasks(self) -> dict[str, list[str]]:
        """Names of the lm-eval tasks of each column."""
        return {column.info.name: [str(task.config.task) for task in column.tasks] for column in self._capabilities}

    def evaluate(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: BatchSize = 64
    ) -> dict[str, CapabilityScore]:
        """Score a model on every capability.

        Args:
            model: Left in the mode it was in.
            tokenizer: Its own.
            batch_size: Sequences per forward pass, or slots (of decoders).
        """
        return self.score(self.responses(model, tokenizer, batch_size))

    @property
    def requests(self) -> tuple[Instance, ...]:
        """What a model is asked, of all capabilities one after another."""
        return tuple(self._requests)

    def responses(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: BatchSize = 64
    ) -> list[Response]:
        """Return what a model answers to each of :attr:`requests`; arguments as those of :meth:`evaluate`."""
        return self._prepare(model, tokenizer, batch_size).score(model)

    def score(self, responses: Sequence[Response]) -> dict[str, CapabilityScore]:
        """Return the scores of these responses, one per request."""
        for request, response in zip(self._requests, responses, strict=True):
            request.resps = [response] * (request.repeats or 1)  # greedy: repeats would be the same
        with quiet():
            return {column.info.name: column.score() for column in self._capabilities}

    def part(self, chosen: Mapping[str, Sequence[int]]) -> Suite:
        """Return a suite of some items of each capability.

        Args:
            chosen: Positions of items, by capability; a capability that is not named is left out.
        """
        columns = [column.part(chosen[column.info.name]) for column in self._capabilities if column.info.name in chosen]
        return Suite(columns, self._reader)

    def samples(self) -> dict[str, list[tuple[str, dict[str, Any]]]]:
        """What the last :meth:`evaluate` found of each item, by capability, in the items' order.

        Returns:
            Pairs of the lm-eval task's name and lm-eval's record of a sample, as ``--log_samples`` writes it.

        Raises:
            ValueError: if nothing has been evaluated.
        """
        from forgetting.evaluation.samples import sample_record

        found = {}
        for column in self._capabilities:
            if not column.raw:
                raise ValueError("samples: nothing has been evaluated yet; call evaluate first")
            documents = [(task, requests) for task, documents in column.documents for requests in documents]
            found[column.info.name] = [
                (str(task.config.task), sample_record(task, requests, column.metric, value))
                for (task, requests), value in zip(documents, column.raw, strict=True)
            ]
        return found

    def check_length(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise UsageError if the model does not read an item whole: it would read its end alone."""
        from forgetting.evaluation.lm import tokens_read

        most = most_tokens(model, tokenizer)
        for request, tokens in zip(self._requests, tokens_read(self._requests, tokenizer), strict=True):
            if tokens > most:
                raise UsageError(
                    f"task {request.task_name!r}: item {request.doc_id} has {tokens} tokens with what stands before "
                    f"it, and the model reads {most}; give fewer shots, or a shorter instruction"
                )

    def _prepare(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: BatchSize) -> Prepared:
        from forgetting.evaluation.lm import Prepared
        from forgetting.evaluation.reader import CAUSAL

        key = batch_size, most_tokens(model, tokenizer)
        by_size = self._prepared.setdefault(tokenizer, {})
        if key not in by_size:
            reader = self._reader or CAUSAL
            by_size[key] = Prepared(self._requests, tokenizer, batch_size=key[0], max_length=key[1], reader=reader)
        return by_size[key]


def most_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return how many tokens a model reads of a request: what is longer loses its beginning."""
    from lm_eval.models.utils import resolve_max_length

    from forgetting.models import prompt_length

    return int(resolve_max_length(model.config, tokenizer)) - prompt_length(model)


class _Capability:
    """One column: its tasks' requests, and how lm-eval turns responses into a score."""

    def __init__(
        self, column: TaskGroup, limit: int | None = None, offset: int = 0, prompt: Prompt | None = None
    ) -> None:
        self.tasks = column.tasks
        self.raw: list[Any] = []  # the metric of each document at the last scoring, as lm-eval gives it
        self.documents: list[tuple[Task, list[list[Instance]]]] = []
        for task in self.tasks:
            with quiet(), compiled_templates():
                if task.get_config("num_fewshot") is None:
                    task.set_config("num_fewshot", 0)
                if prompt is not None:
                    prompt.apply(task, _after(task, limit, offset) or list(range(len(task.eval_docs)))[:limit])
                task.set_fewshot_seed(FEWSHOT_SEED)
                task.build_all_requests(limit=limit, samples=_after(task, limit, offset))
            _memoise(task)
            by_document: dict[int | None, list[Instance]] = {}
            for request in task.instances:
                by_document.setdefault(request.doc_id, []).append(request)
            requests = [sorted(group, key=lambda request: request.idx) for group in by_document.values()]
            self.documents.append((task, requests))
        first = self.tasks[0]
        self.metric = next((m for m in PREFERRED_METRICS if m in first.aggregation()), next(iter(first.aggregation())))
        self.info = CapabilityInfo(
            name=column.name,
            metric=self.metric,
            chance=self._chance(),
            n=sum(len(requests) for _, requests in self.documents),
            higher_is_better=bool(first.higher_is_better()[self.metric]),
            version=column.version,
        )

    @property
    def requests(self) -> list[Instance]:
        held = {id(request) for _, documents in self.documents for requests in documents for request in requests}
        return [request for task in self.tasks for request in task.instances if id(request) in held]

    def part(self, chosen: Sequence[int]) -> _Capability:
        """The same column of the items at these positions, in the order of all."""
        part, wanted, begun = copy.copy(self), set(chosen), 0
        part.documents, part.raw = [], []
        for task, documents in self.documents:
            kept = [requests for place, requests in enumerate(documents, start=begun) if place in wanted]
            begun += len(documents)
            if kept:
                part.documents.append((task, kept))
        n = sum(len(requests) for _, requests in part.documents)
        part.info = self.info.model_copy(update={"n": n, "chance": part._chance()})
        return part

    def score(self) -> CapabilityScore:
        """Aggregate the responses that the requests hold, after the task's first filter."""
        raw = self.raw = []
        for task, documents in self.documents:
            for ensemble in task._filters:  # what apply_filters does, of these requests
                ensemble.apply([request for requests in documents for request in requests])
            key = next(iter(documents[0][0].filtered_resps))
            for requests in documents:
                responses = [request.filtered_resps[key] for request in requests]
                raw.append(task.process_results(requests[0].doc, responses)[self.metric])
        aggregate = self.tasks[0].aggregation()[self.metric]
        items = [item_value(self.metric, value) for value in raw]
        return CapabilityScore(float(aggregate(raw)), items)

    def _chance(self) -> float:
        """The declared chance, else 1 / number of choices, else 0; the mean over items."""
        chances: list[float] = []
        for task, documents in self.documents:
            declared = (task.get_config("metadata") or {}).get("chance")
            if declared is not None:
                chances += [float(declared)] * len(documents)
            elif task.OUTPUT_TYPE == "multiple_choice":
                chances += [1 / len(task.doc_to_choice(requests[0].doc)) for requests in documents]
            else:
                chances += [0.0] * len(documents)
        return float(np.mean(chances))


def _after(task: Task, limit: int | None, offset: int) -> list[int] | None:
    """Indices of the items after ``offset``; ``None``, by which lm-eval takes the first ``limit``, where it is 0."""
    if offset == 0:
        return None
    n = len(task.eval_docs)
    if offset >= n:
        raise UsageError(f"evaluation.offset {offset}: task {task.config.task!r} has {n} items; give less than {n}")
    return list(range(offset, n if limit is None else min(n, offset + limit)))


def _memoise(task: Task) -> None:
    """Render a document's templates once: lm-eval renders them again in every ``process_results``.

    The documents are held by the task's requests, so that their identity is stable.
    """

    def once(render: Callable[..., Any]) -> Callable[..., Any]:
        rendered: dict[int, Any] = {}
        documents = {id(request.doc) for request in task.instances}

        def memoised(doc: Any, *override: Any) -> Any:
            if override or id(doc) not in documents:
                return render(doc, *override)
            if id(doc) not in rendered:
                rendered[id(doc)] = render(doc)
            return rendered[id(doc)]

        return memoised

    for name in ("doc_to_text", "doc_to_target", "doc_to_choice"):
        if hasattr(task, name):
            setattr(task, name, once(getattr(task, name)))


def item_value(metric: str, raw: Any) -> float:
    """One document's value, where lm-eval's metric may be a pair (from its logs, a list) to be aggregated."""
    if not isinstance(raw, (tuple, list)):
        return float(raw)
    if metric in ("word_perplexity", "byte_perplexity", "bits_per_byte"):
        log_prob, units = raw
        return -float(log_prob) / units
    gold, predicted = raw
    return float(gold == predicted)
