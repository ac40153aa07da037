"""Text like that which the base model was pretrained on: for replay, Fisher, early stopping and drift."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forgetting.config import PretrainingConfig
from forgetting.errors import UsageError, did_you_mean
from forgetting.models import EMBEDDED
from forgetting.tasks.files import json_lines, kind, one_line, own_path, read_utf8

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

VALIDATION_SHARE = 0.1
END_OF_TEXT = "<|endoftext|>"
SAMPLING_BATCH = 32
OWN = "pretraining"
"""Name of the held-out column of the source itself."""


@dataclass(frozen=True)
class PretrainingText:
    """Documents, whole; encoding cuts them to a number of tokens.

    A document is a text; of a vision model, an ``Example`` with an image and its class.

    Attributes:
        train: For replay and Fisher.
        validation: For early stopping.
        held_out: Column name to documents on which the change of cross-entropy is measured: ``pretraining``, and
            a column per further file, named by its stem. No document of them is in train or validation.
        notes: Where the text came from and how much of it there is.
    """

    train: list[Any]
    validation: list[Any]
    held_out: dict[str, list[Any]]
    notes: dict[str, int | str] = field(default_factory=dict)


def load_pretraining(
    config: PretrainingConfig,
    model_name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    cache_dir: Path | None,
) -> PretrainingText:
    """Load or sample pretraining text.

    Of ``documents``, a tenth (at least one) is validation, the rest train. A source with fewer documents than
    asked for is shared out in the same proportions. Exact duplicates are removed first, so that no held-out
    document is in train or validation. Text files hold documents between lines that say ``<|endoftext|>``, or,
    where there are none, between blank lines; JSONL files hold one in each line's ``text``; of a hub data set
    (``owner/name``, or ``owner/name:subset``) the training split's ``text`` is streamed.

    Args:
        config: Source and sizes.
        model_name: An embedded model has its own text by default; any other samples its own (``self``).
        model: Sampled from where the source is ``self``; left as it was found.
        tokenizer: The model's.
        cache_dir: Where samples are kept for the study's other runs; ``None`` keeps them nowhere.

    Raises:
        UsageError: one line naming the field, the file or data set, and what would be valid.
    """
    source = config.source or ("micro" if model_name in EMBEDDED else "self")
    notes: dict[str, int | str] = {"source": source, "seed": config.seed}
    if source == "micro":
        train, validation, held_out = _micro(config)
    else:
        wanted = config.documents + config.held_out_documents
        if source == "self":
            found = _cached_samples(config, wanted, model, tokenizer, cache_dir, notes)
            notes["sampled_from"] = f"{model_name}, temperature 1, at most {config.max_length} tokens"
        else:
            found = read_documents(source, "pretraining.source", wanted * 4)
        train, validation, held_out = _split(found, config, source, notes)
    columns = {OWN: held_out}
    used = {*train, *validation}
    for path in config.held_out:
        name = Path(path).stem
        if name in columns:
            raise UsageError(f"pretraining.held_out: {path!r}: there is a column {name!r} already; rename the file")
        columns[name] = _held_out(path, name, used, config, notes)
    notes |= {"train": len(train), "validation": len(validation)}
    notes |= {f"held_out_{name}": len(documents) for name, documents in columns.items()}
    return PretrainingText(train, validation, columns, notes)


def _micro(config: PretrainingConfig) -> tuple[list[str], list[str], list[str]]:
    """The embedded world's generator, whose splits share no document."""
    from forgetting.micro.corpus import pretraining_documents

    validation = max(1, round(VALIDATION_SHARE * config.documents))
    return (
        pretraining_documents(config.documents - validation, config.seed, "train"),
        pretraining_documents(validation, config.seed, "validation"),
        pretraining_documents(config.held_out_documents, config.seed, "held_out"),
    )


def _split(
    found: list[str], config: PretrainingConfig, source: str, notes: dict[str, int | str]
) -> tuple[list[str], list[str], list[str]]:
    documents = list(dict.fromkeys(found))
    if len(documents) < len(found):
        notes["duplicates_removed"] = len(found) - len(documents)
    if len(documents) < 3:
        raise UsageError(
            f"pretraining.source: {source!r} has {len(documents)} different documents; it needs at least 3, "
            f"between lines of {END_OF_TEXT} or blank lines"
        )
    random.Random(f"pretraining-{config.seed}").shuffle(documents)
    wanted = config.documents + config.held_out_documents
    held = config.held_out_documents
    if len(documents) < wanted:
        held = min(max(1, round(len(documents) * held / wanted)), len(documents) - 2)
        notes["fewer_documents_than_asked"] = f"{len(documents)} of {wanted}"
    held_out, rest = documents[:held], documents[held : held + config.documents]
    validation = max(1, round(VALIDATION_SHARE * len(rest)))
    return rest[validation:], rest[:validation], held_out


def _held_out(
    path: str, name: str, used: set[str], config: PretrainingConfig, notes: dict[str, int | str]
) -> list[str]:
    found = _read_file(own_path(path, "pretraining.held_out"), "pretraining.held_out")
    documents = list(dict.fromkeys(found))
    kept = [document for document in documents if document not in used]
    if len(kept) < len(documents):
        notes[f"{name}_removed_for_being_in_train"] = len(documents) - len(kept)
    if not kept:
        raise UsageError(f"pretraining.held_out: {path!r}: all of its documents are in the training text too")
    random.Random(f"held-out-{config.seed}").shuffle(kept)
    return kept[: config.held_out_documents]


def read_documents(source: str, where: str, limit: int) -> list[str]:
    """Documents of a text or JSONL file, or the first ``limit`` of a hub data set.

    Raises:
        UsageError: naming ``where`` and what would be valid.
    """
    path = own_path(source, where)
    looks_like_file = source.startswith((".", "/", "~")) or path.suffix in (".txt", ".text", ".md", ".jsonl")
    if path.is_file() or (looks_like_file and not path.is_dir()):
        return _read_file(path, where)
    return _stream_hub(source, where, limit)


def _read_file(path: Path, where: str) -> list[str]:
    """Documents of a text or JSONL file, stripped, empty ones left out."""
    if path.suffix == ".jsonl":
        return [document for place, row in json_lines(path, where) for document in _documents(row, place)]
    lines = read_utf8(path, where).splitlines()
    separators = {END_OF_TEXT} if any(line.strip() == END_OF_TEXT for line in lines) else {""}
    documents: list[list[str]] = [[]]
    for line in lines:
        if line.strip() in separators:
            documents.append([])
        else:
            documents[-1].append(line)
    return [text for text in ("\n".join(part).strip() for part in documents) if text]


def _documents(row: dict[str, Any], place: str) -> list[str]:
    if "text" not in row:
        raise UsageError(f"{place}: no column 'text'{did_you_mean('text', [str(key) for key in row])}")
    if not isinstance(row["text"], str):
        raise UsageError(f"{place}: column 'text' is {kind(row['text'])}, not text")
    return [row["text"].strip()] if row["text"].strip() else []


def _stream_hub(source: str, where: str, limit: int) -> list[str]:
    from datasets import load_dataset

    from forgetting.hub import advice, bound_waits

    bound_waits()
    name, _, subset = source.partition(":")
    try:
        stream = load_dataset(name, name=subset or None, split="train", streaming=True)
        rows = list(islice(iter(stream), limit))
    except Exception as error:  # datasets raises many kinds, of several libraries
        what = advice(error)
        raise UsageError(
            f"{where}: {source!r} is not 'micro', 'self', a text or JSONL file, or a hub data set that can be "
            f"loaded{f'; {what}' if what else ''}: {one_line(error)}"
        ) from None
    places: Iterable[tuple[str, Any]] = ((f"{where}: {source!r}, row {i}", row) for i, row in enumerate(rows))
    return [document for place, row in places for document in _documents(row, place)]


def _cached_samples(
    config: PretrainingConfig,
    wanted: int,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    cache_dir: Path | None,
    notes: dict[str, int | str],
) -> list[str]:
    """Samples of the model, from the cache where the same weights were sampled in the same way before."""
    settings = {"wanted": wanted, "max_length": config.max_length, "seed": config.seed, "batch": SAMPLING_BATCH}
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, weight in sorted(model.state_dict().items()):
        key.update(name.encode())
        key.update(_bytes(weight))
    notes["sample_key"] = key.hexdigest()[:16]
    if cache_dir is None:
        return sample_documents(model, tokenizer, wanted, max_length=config.max_length, seed=config.seed)
    path = cache_dir / f"self-{notes['sample_key']}.json"
    try:
        cached = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(cached, list) and all(isinstance(document, str) for document in cached):
            return cached
    except (OSError, ValueError):
        pass  # not sampled yet, or cut short by something other than our atomic write: sample again
    from forgetting.results import write_atomically

    documents = sample_documents(model, tokenizer, wanted, max_length=config.max_length, seed=config.seed)
    write_atomically(path, json.dumps(documents, ensure_ascii=False).encode())
    return documents


def _bytes(weight: torch.Tensor) -> Any:
    import torch

    return weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def sample_documents(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    count: int,
    *,
    max_length: int,
    seed: int,
    exclude: Iterable[str] = (),
    asked_by: str = "pretraining.source: 'self'",
) -> list[str]:
    """Sample different documents from a model at temperature 1, from the token that begins a document.

    Args:
        model: Put into eval mode while sampling; its mode and the global random state are restored.
        tokenizer: Its beginning- or end-of-sequence token begins a document.
        count: Documents wanted, none empty, no two the same.
        max_length: Tokens of a document, the beginning token counted.
        seed: Of the draws.
        exclude: Documents that must not be among them (held-out ones).
        asked_by: The field that asked for them, for messages.

    Raises:
        UsageError: if the tokenizer has neither token, or the model gives too few different documents in four
            times as many draws.
    """
    import torch
    from transformers import GenerationConfig

    from forgetting.evaluation.encoding import prefix_token_id

    begin = prefix_token_id(tokenizer)
    if begin is None:
        raise UsageError(
            f"{asked_by} needs a token that begins a document, and the tokenizer has neither a "
            "beginning- nor an end-of-sequence token; use text from a file"
        )
    plain = GenerationConfig(
        do_sample=True,
        top_k=0,
        max_new_tokens=max_length - 1,
        bos_token_id=begin,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else begin,
    )
    generate: Any = model.generate
    own, was_training, device = model.generation_config, model.training, model.device
    documents: dict[str, None] = {}
    excluded = {"", *exclude}
    devices = [device] if device.type == "cuda" else []
    model.eval()
    # What a model's own generation config sets (top_p, penalties) would fill in what ours leaves open.
    model.generation_config = GenerationConfig()
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            torch.manual_seed(seed)
            for _ in range(4 * count // SAMPLING_BATCH + 4):
                begins = torch.full((SAMPLING_BATCH, 1), begin, device=device)
                drawn = generate(input_ids=begins, attention_mask=torch.ones_like(begins), generation_config=plain)
                texts = tokenizer.batch_decode(drawn[:, 1:], skip_special_tokens=True)
                documents.update((text, None) for text in (t.strip() for t in texts) if text not in excluded)
                if len(documents) >= count:
                    return list(documents)[:count]
    finally:
        model.generation_config = own
        model.train(was_training)
    raise UsageError(
        f"{asked_by} gave {len(documents)} different documents where {count} are wanted; "
        "ask for fewer, or use text from a file"
    )
