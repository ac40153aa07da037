"""Task scores (the entries of R): a test split, prepared once, scored after every task."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from forgetting.evaluation.reader import CAUSAL, Reader

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from forgetting.tasks.task import Task


@dataclass(frozen=True)
class TaskScore:
    """A task's score: ``value``, higher is better, and what it is made of, in the test split's order."""

    value: float
    items: list[float]


class TaskScorer:
    """Scores models on one task's test split, which is tokenised once.

    - ``accuracy``: items are 1 where the completion's summed log-probability is the greatest of the choices' (of
      equal ones the first wins), else 0; the value is their mean.
    - ``exact_match`` (surrounding whitespace apart), ``token_f1`` (SQuAD's normalisation; Rajpurkar et al. 2016)
      and ``rouge_l`` (F-measure, no stemming; Lin 2004), each in [0, 1]: of the greedy continuation, which ends
      at EOS or after ``task.max_new_tokens``; the value is the items' mean.
    - ``perplexity``: the value is -ln perplexity = -(nats of all completions) / (their tokens); items are
      -(nats of the item's completion) · n / (all completions' tokens), n the number of items, so that here too
      the value is the items' mean. Divided by ``weights`` they are -(nats per token) of each completion.

    Args:
        task: Its test split is scored.
        tokenizer: The models'.
        batch_size: Sequences per forward pass.
        max_length: Tokens per sequence; longer prompts lose their beginning.
        reader: The family's way to read.

    Attributes:
        weights: Each item's tokens over the mean item's (1 but for ``perplexity``).

    Raises:
        UsageError: if an example cannot be encoded or does not fit into ``max_length``.
    """

    def __init__(
        self,
        task: Task,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int,
        max_length: int,
        reader: Reader = CAUSAL,
    ) -> None:
        self.task = task
        how: Any = {"tokenizer": tokenizer, "batch_size": batch_size, "max_length": max_length}
        self._remake: Callable[[Task], TaskScorer] = partial(TaskScorer, **how, reader=reader)
        self._after: tuple[str, TaskScorer] | None = None
        self.weights = [1.0] * len(task.test)
        self._gold: list[int] = []
        self._choices: list[int] = []
        if task.metric == "accuracy":
            options = [example.choices or () for example in task.test]
            self._choices = [len(choices) for choices in options]
            self._gold = [c.index(e.completion) for c, e in zip(options, task.test, strict=True)]
            pairs = [(e.prompt, choice) for e, choices in zip(task.test, options, strict=True) for choice in choices]
            groups = [index for index, choices in enumerate(options) for _ in choices]
        elif task.metric == "perplexity":
            pairs = [(example.prompt, example.completion) for example in task.test]
            groups = list(range(len(pairs)))
        else:
            # Training moves white space at a prompt's end to the completion (encode_pair): go on from there.
            prompts = [example.prompt.rstrip() for example in task.test]
            self._generations = reader.generations(prompts, **how, max_new_tokens=task.max_new_tokens)
            return
        self._likelihoods = reader.likelihoods(pairs, groups, **how)
        if task.metric == "perplexity":
            counts = self._likelihoods.counts
            self.weights = (counts / counts.mean()).tolist()

    def after(self, text: str) -> TaskScorer:
        """Return a scorer of the same items with ``text`` before every prompt; the latest one is kept."""
        if not text:
            return self
        if self._after is None or self._after[0] != text:
            test = tuple(replace(example, prompt=text + example.prompt) for example in self.task.test)
            self._after = text, self._remake(replace(self.task, test=test))
        return self._after[1]

    def score(self, model: PreTrainedModel) -> TaskScore:
        """Score a model; it is left in the mode it was in."""
        if self.task.metric == "accuracy":
            items = self._accuracy(model)
        elif self.task.metric == "perplexity":
            mean_tokens = float(self._likelihoods.counts.mean())
            items = [log_prob / mean_tokens for log_prob, _ in self._likelihoods.score(model)]
        else:
            compare = COMPARISONS[self.task.metric]
            generated = self._generations.generate(model)
            items = [compare(text, example.completion) for text, example in zip(generated, self.task.test, strict=True)]
        return TaskScore(float(np.mean(items)), items)

    def _accuracy(self, model: PreTrainedModel) -> list[float]:
        scores = iter(self._likelihoods.score(model))
        items = []
        for gold, count in zip(self._gold, self._choices, strict=True):
            log_probs = [next(scores)[0] for _ in range(count)]
            items.append(float(log_probs.index(max(log_probs)) == gold))
        return items


def exact_match(generated: str, completion: str) -> float:
    """1 where the texts are the same, surrounding whitespace apart."""
    return float(generated.strip() == completion.strip())


def token_f1(generated: str, completion: str) -> float:
    """F1 of the bags of words, lower-cased, without punctuation and articles, as in SQuAD's evaluation."""
    predicted, wanted = _squad_words(generated), _squad_words(completion)
    if not predicted or not wanted:
        return float(predicted == wanted)
    common = sum((Counter(predicted) & Counter(wanted)).values())
    return 2 * common / (len(predicted) + len(wanted))


def rouge_l(generated: str, completion: str) -> float:
    """F-measure of the longest common subsequence of words."""
    return float(_rouge().score(completion, generated)["rougeL"].fmeasure)


COMPARISONS: dict[str, Callable[[str, str], float]] = {
    "exact_match": exact_match,
    "token_f1": token_f1,
    "rouge_l": rouge_l,
}


def _squad_words(text: str) -> list[str]:
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


@cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=False)
