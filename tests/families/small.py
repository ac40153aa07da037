"""A small random model of every family behind the package's convention, with a sequence for it to learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from forgetting.families import FAMILIES
from forgetting.families.base import Family
from forgetting.models import LoadedModel, ModelFamily
from forgetting.tasks.scenario import Scenario
from forgetting.tasks.task import Example, Image, Sequence, Task

VOCABULARY = 36
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A word is a token: ``w5`` to ``w35``; five special tokens."""
    special = ["<pad>", "<eos>", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: i for i, word in enumerate([*special, *(f"w{i}" for i in range(5, VOCABULARY))])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]",
    )  # fmt: skip


def processor() -> Any:
    return transformers.ViTImageProcessor(do_resize=False, image_mean=[0.5], image_std=[0.5])


def _bert() -> Any:
    return transformers.BertForMaskedLM(
        transformers.BertConfig(**SMALL, hidden_dropout_prob=0, attention_probs_dropout_prob=0)
    )


def _albert() -> Any:
    return transformers.AlbertForMaskedLM(
        transformers.AlbertConfig(**SMALL, embedding_size=6, hidden_dropout_prob=0, attention_probs_dropout_prob=0)
    )


def _t5() -> Any:
    options: dict[str, Any] = {"decoder_start_token_id": 0, "tie_word_embeddings": True}
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=VOCABULARY, d_model=8, d_kv=4, d_ff=12, num_layers=2, num_heads=2, dropout_rate=0.0,
            pad_token_id=0, eos_token_id=1, **options,
        )
    )  # fmt: skip


CLASSES = {0: "a", 1: "b", 2: "c"}


def _vit() -> Any:
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(
            hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2, image_size=8,
            patch_size=4, num_channels=1, hidden_dropout_prob=0, attention_probs_dropout_prob=0, id2label=CLASSES,
        )
    )  # fmt: skip


def _resnet() -> Any:
    return transformers.ResNetForImageClassification(
        transformers.ResNetConfig(
            num_channels=1, embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", id2label=CLASSES
        )
    )


MODELS: dict[str, tuple[ModelFamily, Any]] = {
    "bert": ("encoder", _bert),
    "albert": ("encoder", _albert),
    "t5": ("encoder_decoder", _t5),
    "vit": ("vision", _vit),
    "resnet": ("vision", _resnet),
}


def loaded(name: str) -> LoadedModel:
    family, build = MODELS[name]
    torch.manual_seed(0)
    model = build().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # zeros and ones (biases, norms) would hide mistakes
            parameter.add_(0.1 * torch.randn_like(parameter))
    reads_with = processor() if family == "vision" else tokenizer()
    return LoadedModel(name=name, model=model, tokenizer=reads_with, family=family)


def text_task(name: str, shift: int, labels: tuple[str, ...] = (" w5", " w6")) -> Task:
    examples = tuple(
        Example(f"w{7 + i} w{8 + (i + shift) % 20} w9", labels[(i + shift) % len(labels)], labels) for i in range(20)
    )
    return Task(name, examples[:12], examples[12:14], examples[14:], metric="accuracy", chance=1 / len(labels))


def image(seed: int) -> Image:
    return Image(np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8))


def image_task(name: str, first: int, labels: tuple[str, ...] = ("d", "e")) -> Task:
    examples = tuple(Example(image(first + i), labels[i % len(labels)], labels) for i in range(20))
    return Task(name, examples[:12], examples[12:14], examples[14:], metric="accuracy", chance=1 / len(labels))


def sequence(name: str) -> Sequence:
    if MODELS[name][0] == "vision":
        return Sequence("images", (image_task("one", 0), image_task("two", 100, ("f", "g", "h"))))
    return Sequence("texts", (text_task("one", 0), text_task("two", 1, (" w9", " w10", " w11"))))


def documents(name: str, count: int = 6) -> list[Any]:
    if MODELS[name][0] == "vision":
        return [Example(image(500 + i), CLASSES[i % 3], tuple(CLASSES.values())) for i in range(count)]
    return [" ".join(f"w{5 + (3 * i + j * j) % 30}" for j in range(4 + i)) for i in range(count)]


def family(name: str, scenario: Scenario | None = None) -> Family:
    base = loaded(name)
    return FAMILIES.get(base.family)(base, sequence(name), scenario)
