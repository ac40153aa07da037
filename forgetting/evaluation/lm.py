"""SharedContextLM: lm-eval's language-model interface, where choices of one item share its context's compute."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import LM
from lm_eval.models.utils import normalize_gen_kwargs, resolve_max_length
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from forgetting.errors import UsageError
from forgetting.evaluation.budget import BatchSize, found_budget, parse_batch_size
from forgetting.evaluation.encoding import encode_pairs, encode_texts, prefix_token_id
from forgetting.evaluation.likelihood import PreparedLikelihoods
from forgetting.evaluation.reader import CAUSAL, CausalReader, Generations, Likelihoods, Reader, truncate_pairs

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Response = tuple[float, bool] | float | str
"""What lm-eval expects for a loglikelihood, a loglikelihood_rolling, a generate_until request."""


class Prepared:
    """Requests of any kinds, tokenised and packed once, to be scored with any model of the same tokenizer.

    Args:
        requests: lm-eval's instances. Those of one document share a row; where they name no document, those
            of one context do. What all of a task begin with (the same solved examples, an instruction) decoders read
            once per model, where it is at least half of what they read.
        tokenizer: The models'.
        batch_size: Sequences per forward pass, or slots (of decoders).
        max_length: Tokens that a model reads at most; what is longer loses its beginning, as in HFLM.
        reader: The family's way to read.

    Raises:
        UsageError: for a request that cannot be scored (an empty continuation, one longer than ``max_length``,
            sampling instead of greedy decoding, a kind that the family cannot answer).
    """

    def __init__(
        self,
        requests: Sequence[Instance],
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: BatchSize,
        max_length: int,
        reader: Reader = CAUSAL,
    ) -> None:
        if not isinstance(reader, CausalReader) and not isinstance(batch_size, int):
            raise ValueError(f"batch_size {batch_size}: only decoders take slots; give a number of sequences")
        self.n, self._reader, self._tokenizer = len(requests), reader, tokenizer
        self._how: Any = {"batch_size": batch_size, "max_length": max_length}
        kinds: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            kinds.setdefault(request.request_type, []).append(index)
        self._choices = self._prepare_likelihoods(requests, kinds.pop("loglikelihood", []))
        self._rolling = self._prepare_rolling(requests, kinds.pop("loglikelihood_rolling", []))
        self._generations = self._prepare_generations(requests, kinds.pop("generate_until", []))
        if kinds:
            raise UsageError(f"request type {next(iter(kinds))!r}: is not one of lm-eval's")

    def score(self, model: PreTrainedModel) -> list[Response]:
        """Return the responses, in the order of the requests."""
        responses: list[Response] = [""] * self.n
        indices, likelihoods = self._choices
        for index, score in zip(indices, likelihoods.score(model), strict=True):
            responses[index] = score
        indices, likelihoods = self._rolling
        for index in indices:
            responses[index] = 0.0
        for index, (log_prob, _) in zip(indices, likelihoods.score(model), strict=True):
            responses[index] += log_prob  # type: ignore[operator]  # a float was put there
        for indices, generations in self._generations:
            for index, text in zip(indices, generations.generate(model), strict=True):
                responses[index] = text
        return responses

    def _prepare_likelihoods(self, requests: Sequence[Instance], indices: list[int]) -> tuple[list[int], Likelihoods]:
        pairs = [requests[index].args[:2] for index in indices]
        groups: list[Hashable] = []
        for index in indices:
            document = (requests[index].task_name, requests[index].doc_id)
            groups.append(document if document != (None, None) else requests[index].args[0])
        if isinstance(self._reader, CausalReader):
            tasks = [str(requests[index].task_name) for index in indices]
            return indices, self._reader.likelihoods(pairs, groups, self._tokenizer, **self._how, families=tasks)
        return indices, self._reader.likelihoods(pairs, groups, self._tokenizer, **self._how)

    def _prepare_rolling(
        self, requests: Sequence[Instance], indices: list[int]
    ) -> tuple[list[int], PreparedLikelihoods]:
        """Windows of every text; ``indices`` repeats a text's index for each."""
        if indices and not isinstance(self._reader, CausalReader):
            raise UsageError("evaluation.suite: a task asks for the probability of whole texts, which decoders have")
        prefix = prefix_token_id(self._tokenizer)
        if indices and prefix is None:
            raise UsageError("tokenizer: has neither a BOS nor an EOS token to stand before a text's first token")
        owners, windows = [], []
        texts = encode_texts(self._tokenizer, [requests[index].args[0] for index in indices])
        for index, ids in zip(indices, texts, strict=True):
            for window in get_rolling_token_windows(ids, prefix, self._how["max_length"], context_len=1):
                owners.append(index)
                windows.append(make_disjoint_window(window))
        sequences = truncate_pairs(windows, self._how["max_length"])
        return owners, PreparedLikelihoods(sequences, range(len(windows)), self._how["batch_size"])

    def _prepare_generations(
        self, requests: Sequence[Instance], indices: list[int]
    ) -> list[tuple[list[int], Generations]]:
        by_options: dict[_Options, list[int]] = {}
        for index in indices:
            by_options.setdefault(_Options.of(requests[index].args[1]), []).append(index)
        return [
            (
                members,
                self._reader.generations(
                    [requests[index].args[0] for index in members],
                    self._tokenizer,
                    **self._how,
                    max_new_tokens=options.max_new_tokens,
                    until=options.until,
                ),
            )
            for options, members in by_options.items()
        ]


@dataclass(frozen=True)
class _Options:
    until: tuple[str, ...]
    max_new_tokens: int

    @classmethod
    def of(cls, arguments: dict[str, Any]) -> _Options:
        normal = dict(normalize_gen_kwargs(arguments))
        if normal.get("do_sample") or float(normal.get("temperature") or 0) > 0:
            raise UsageError("generation_kwargs: the task samples (do_sample or temperature); only greedy decoding is")
        return cls(tuple(stop for stop in normal["until"] if stop), int(normal["max_gen_toks"]))


def tokens_read(requests: Sequence[Instance], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return how many tokens a decoder reads of each request, and room for what it may generate.

    The last token of a continuation is predicted, and not read; a text that is scored in windows counts 0.
    """
    tokens = [0] * len(requests)
    pairs = [i for i, request in enumerate(requests) if request.request_type == "loglikelihood"]
    for i, (context, target) in zip(pairs, encode_pairs(tokenizer, [requests[i].args[:2] for i in pairs]), strict=True):
        tokens[i] = len(context) + len(target) - 1
    written = [i for i, request in enumerate(requests) if request.request_type == "generate_until"]
    for i, ids in zip(written, encode_texts(tokenizer, [requests[i].args[0] for i in written]), strict=True):
        tokens[i] = len(ids) + _Options.of(requests[i].args[1]).max_new_tokens
    return tokens


class SharedContextLM(LM):
    """A causal language model for lm-eval that computes what an item's choices share once.

    Same results as HFLM's, in the order of the requests; deterministic; the model is left in the mode it was in.

    Args:
        model: A causal transformers model (or a peft model of one).
        tokenizer: Its tokenizer.
        batch_size: Sequences per forward pass; or ``"auto"``, as lm-eval spells it: as many as fill a number of slots,
            which is halved for as long as memory runs out.
        max_length: Tokens that the model reads at most; by default what its configuration says.

    Raises:
        UsageError: if ``batch_size`` is neither.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int | str = 64,
        max_length: int | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.batch_size = parse_batch_size(batch_size) or found_budget(model.device)
        self.max_length = max_length or resolve_max_length(model.config, tokenizer)

    def prepare(self, requests: Sequence[Instance]) -> Prepared:
        """Tokenise and pack requests once; ``prepared.score(model)`` scores them with any model."""
        return Prepared(requests, self.tokenizer, batch_size=self.batch_size, max_length=self.max_length)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Return (log p of the continuation given the context in nats, whether it is the greedy one)."""
        return self.prepare(requests).score(self.model)  # type: ignore[return-value]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Return log p of whole texts in nats; long ones in windows that predict each token once."""
        return self.prepare(requests).score(self.model)  # type: ignore[return-value]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Return greedy continuations, cut at EOS and at the stop strings."""
        return self.prepare(requests).score(self.model)  # type: ignore[return-value]
