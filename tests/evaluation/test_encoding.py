"""encode_pair is HFLM's rule, for tokenizers with and without a BOS of their own."""

from __future__ import annotations

import pytest
from lm_eval.models.huggingface import HFLM
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from forgetting.errors import UsageError
from forgetting.evaluation.encoding import encode_pair, encode_pairs, encode_texts, prefix_token_id
from tests.models_for_tests import tiny_llama, tiny_tokenizer


def with_bos() -> PreTrainedTokenizerFast:
    """A tokenizer that puts ``<pad>`` (here its BOS) before every text."""
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<pad> $A", special_tokens=[("<pad>", 0)])
    tokenizer.bos_token = "<pad>"
    return tokenizer


PAIRS = [
    ("w2 w3", " w4 w5"),
    ("w2 w3 ", "w4"),
    ("w2 \n", "w4 w5"),
    ("<pad> w2 w3", " w4"),
    ("w2 w3", " w6"),
]


@pytest.mark.parametrize("tokenizer", [tiny_tokenizer(), with_bos()], ids=["plain", "bos"])
def test_pairs_are_split_as_hflm_splits_them(tokenizer: PreTrainedTokenizerFast) -> None:
    hflm = HFLM(tiny_llama(), tokenizer=tokenizer, device="cpu")
    expected = [hflm._encode_pair(*pair) for pair in PAIRS]
    assert encode_pairs(tokenizer, PAIRS) == expected
    assert [encode_pair(tokenizer, *pair) for pair in PAIRS] == expected
    texts = ["w2 w3", "<pad> w2", "<eos> w2"]
    assert encode_texts(tokenizer, texts) == [hflm.tok_encode(text) for text in texts]


def test_an_empty_context_becomes_the_prefix_token() -> None:
    plain, bos = tiny_tokenizer(), with_bos()
    assert (prefix_token_id(plain), prefix_token_id(bos)) == (1, 0)  # EOS where there is no BOS
    assert encode_pair(plain, "", "w2 w3") == ([1], [2, 3])
    assert encode_pair(bos, "", "w2 w3") == ([0], [2, 3])
    assert encode_pair(bos, " \n", "w2") == ([0], [2])
    assert encode_pair(bos, "", "<pad> w2 w3") == ([0], [2, 3])


def test_what_cannot_be_encoded_is_named() -> None:
    tokenizer = tiny_tokenizer()
    with pytest.raises(UsageError, match="completion '': has no token of its own after 'w2 w3'"):
        encode_pair(tokenizer, "w2 w3", "")
    tokenizer.eos_token = None
    with pytest.raises(UsageError, match="prompt '': is empty"):
        encode_pair(tokenizer, "", "w2")
