"""Text to token ids by lm-eval's rule (HFLM 0.4.13), so that training and every score split text alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from forgetting.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Pair = tuple[list[int], list[int]]
"""Context ids and continuation ids."""


def prefix_token_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the token that stands before a text without context: BOS, else EOS, else ``None``."""
    return tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Encode texts with the special tokens that the tokenizer adds by itself.

    A text that already begins with the prefix token's string gets none, so that BOS is never there twice.
    """
    prefix = prefix_token_id(tokenizer)
    bos = None if prefix is None else str(tokenizer.decode(prefix))
    has_bos = [bos is not None and text.startswith(bos) for text in texts]
    encoded = iter(_encode([t for t, given in zip(texts, has_bos, strict=True) if not given], tokenizer, True))
    without = iter(_encode([t for t, given in zip(texts, has_bos, strict=True) if given], tokenizer, False))
    return [next(without if given else encoded) for given in has_bos]


def encode_pairs(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]]) -> list[Pair]:
    """Encode (context, continuation) pairs; see :func:`encode_pair`. A context that recurs is encoded once.

    Raises:
        UsageError: if a continuation has no token of its own, or an empty context has no prefix token.
    """
    split = [_move_spaces(context, continuation) for context, continuation in pairs]
    contexts = list(dict.fromkeys(context for context, _ in split if context))
    context_ids = dict(zip(contexts, encode_texts(tokenizer, contexts), strict=True))
    wholes = iter(encode_texts(tokenizer, [context + continuation for context, continuation in split if context]))
    alone = iter(_encode([continuation for context, continuation in split if not context], tokenizer, False))
    encoded = []
    for context, continuation in split:
        if context:
            ids = context_ids[context]
            pair = (list(ids), next(wholes)[len(ids) :])
        else:
            pair = _after_prefix(tokenizer, next(alone))
        if not pair[1]:
            raise UsageError(
                f"completion {continuation!r}: has no token of its own after {context[-40:]!r}; "
                "begin it with a space or a newline, and do not leave it empty"
            )
        encoded.append(pair)
    return encoded


def encode_pair(tokenizer: PreTrainedTokenizerBase, context: str, continuation: str) -> Pair:
    """Encode a context and what follows it.

    HFLM's rule: spaces at the end of the context move to the continuation; context + continuation is encoded
    as one text (with the special tokens that the tokenizer adds by itself) and is split after as many tokens
    as the context alone has. An empty context is replaced by the prefix token (BOS, else EOS), unless the
    continuation begins with it. A context of nothing but spaces counts as empty (HFLM fails on it).

    Returns:
        Context ids and continuation ids, neither of them empty.

    Raises:
        UsageError: if the continuation has no token of its own, or an empty context has no prefix token.
    """
    return encode_pairs(tokenizer, [(context, continuation)])[0]


def _encode(texts: list[str], tokenizer: PreTrainedTokenizerBase, special: bool) -> list[list[int]]:
    if not texts:
        return []
    return tokenizer(texts, add_special_tokens=special, return_attention_mask=False, verbose=False)["input_ids"]


def _move_spaces(context: str, continuation: str) -> tuple[str, str]:
    stripped = context.rstrip()
    return stripped, context[len(stripped) :] + continuation


def _after_prefix(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> Pair:
    prefix = prefix_token_id(tokenizer)
    if ids and ids[0] == prefix:
        return ids[:1], ids[1:]
    if prefix is None:
        raise UsageError("prompt '': is empty and the tokenizer has neither a BOS nor an EOS token; give a prompt")
    return [prefix], ids
