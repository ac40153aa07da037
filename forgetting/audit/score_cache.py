"""What a model answered to a suite's requests, kept in a folder: a base is scored once for many fine-tunes."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forgetting.audit.load import weights_digest
from forgetting.errors import UsageError
from forgetting.evaluation.encoding import encode_texts
from forgetting.evaluation.suite import most_tokens
from forgetting.provenance import library_versions, source_digest
from forgetting.results import write_atomically

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from forgetting.evaluation.budget import BatchSize
    from forgetting.evaluation.lm import Response

logger = logging.getLogger(__name__)

VERSION = 1


class ScoreCache:
    """A folder with a JSON file per model, requests, code, precision and size of batches.

    Responses are found only where all of :func:`score_key` is the same, so what is found is, bit for bit, what was
    scored then. Nothing in a file is run: it is numbers and texts, with a checksum, and the key that it was made for.

    Args:
        folder: Made where it is not there.

    Attributes:
        found: How often responses were there.

    Raises:
        UsageError: if the folder cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.found = folder, 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--cache {str(folder)!r}: cannot be a folder: {error.strerror or error}") from None

    def responses(
        self, key: dict[str, Any], kinds: Sequence[str], score: Callable[[], list[Response]]
    ) -> list[Response]:
        """Return the responses of this key: kept ones, or what ``score`` returns, which are kept then.

        A file that is damaged is told of in a line of the log, and written anew.

        Args:
            key: See :func:`score_key`.
            kinds: lm-eval's type of each request.
            score: Asks the model.
        """
        path = self.folder / f"{_digest(key)}.json"
        if path.exists():
            try:
                kept = _read(path, key, kinds)
            except (ValueError, OSError) as error:
                logger.warning(
                    "score cache: %s is passed over and written anew: %s", path, " ".join(str(error).split())
                )
            else:
                self.found += 1
                return kept
        responses = score()
        content = {"version": VERSION, "key": key, "sha256": _digest(responses), "responses": responses}
        write_atomically(path, json.dumps(content).encode())
        return responses


def score_key(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[Instance],
    batch_size: BatchSize,
) -> dict[str, Any]:
    """Return what a model's responses depend on, as JSON: each part can change them, if only in the last bits.

    ``weights`` (their digest, which has names, types and shapes, the architecture's configuration and source),
    ``prompts`` (requests, their tokens, the tokenizer's vocabulary), ``code`` (this package's files, versions of the
    libraries), ``precision`` (types, device, attention, matrix products), ``batch_size`` (an A/A run has another).
    """
    import torch

    config = {name: value for name, value in model.config.to_dict().items() if name != "_name_or_path"}
    ends = getattr(model.generation_config, "eos_token_id", None)
    source = Path(str(sys.modules[type(model).__module__].__file__))  # of a model that brought its own code
    texts = [str(text) for request in requests for text in request.args if isinstance(text, str)]
    joined = ["".join(map(str, request.args[:2])) for request in requests if request.request_type == "loglikelihood"]
    cuda = model.device.type == "cuda"
    return {
        "weights": _digest(
            [
                weights_digest(model),
                config,
                ends,
                type(model).__qualname__,
                hashlib.sha256(source.read_bytes()).hexdigest(),
            ]
        ),
        "prompts": _digest(
            [
                [[request.request_type, request.task_name, request.doc_id, list(request.args)] for request in requests],
                encode_texts(tokenizer, [*texts, *joined]),
                sorted(tokenizer.get_vocab().items()),
                sorted(tokenizer.all_special_ids),
                [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id],
                most_tokens(model, tokenizer),
            ]
        ),
        "code": _digest([source_digest(), library_versions()]),
        "precision": _digest(
            [
                sorted({str(parameter.dtype) for parameter in model.parameters()}),
                torch.cuda.get_device_name(model.device) if cuda else model.device.type,
                str(getattr(model.config, "_attn_implementation", "")),
                torch.get_float32_matmul_precision(),
            ]
        ),
        "batch_size": str(batch_size),
    }


def _read(path: Path, key: dict[str, Any], kinds: Sequence[str]) -> list[Response]:
    """Raise ValueError if the file is not what was written for this key."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or content.get("version") != VERSION or content.get("key") != key:
        raise ValueError("it is not of this model, these prompts, this code and precision")
    responses = content.get("responses")
    if not isinstance(responses, list) or content.get("sha256") != _digest(responses):
        raise ValueError("its checksum is not that of its content")
    if len(responses) != len(kinds):
        raise ValueError(f"it has {len(responses)} responses to {len(kinds)} requests")
    return [_response(kind, value) for kind, value in zip(kinds, responses, strict=True)]


def _response(kind: str, value: Any) -> Response:
    if kind == "loglikelihood" and isinstance(value, list) and [type(part) for part in value] == [float, bool]:
        return value[0], value[1]
    if kind == "loglikelihood_rolling" and isinstance(value, float):
        return value
    if kind == "generate_until" and isinstance(value, str):
        return value
    raise ValueError(f"{value!r} is no response to a {kind} request")


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
