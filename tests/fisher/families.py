"""A small random model of every family that the rules cover, with a ragged batch of three examples for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn

VOCABULARY = 16
Batch = dict[str, Tensor]
Family = Callable[[], tuple[nn.Module, Batch]]

SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}


def text(lengths: tuple[int, ...] = (7, 4, 6), seed: int = 0) -> Batch:
    """Rows with repeated tokens, padded on the right; the first label is a prompt's."""
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths)
    ids = torch.randint(2, VOCABULARY // 2, (len(lengths), width), generator=generator)  # few: tokens repeat
    mask = (torch.arange(width)[None] < torch.tensor(lengths)[:, None]).long()
    labels = torch.where(mask.bool(), ids, -100)
    labels[:, 1] = -100
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": labels}


def images(channels: int = 3, size: int = 8) -> Batch:
    """Three images of two classes out of five."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(3, channels, size, size, generator=generator, dtype=torch.float64)
    return {"pixel_values": pixels, "labels": torch.tensor([0, 3, 0])}


def ready(model: nn.Module) -> nn.Module:
    """float64, eval; what is initialised to zero or one (biases, norms) made random, so that it cannot hide."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.dim() == 1 or not parameter.any():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model.double().eval()


def llama(tied: bool = True, **options: Any) -> tuple[nn.Module, Batch]:
    """RMSNorm, rotary positions."""
    config = transformers.LlamaConfig(**(SMALL | options), tie_word_embeddings=tied)
    return ready(transformers.LlamaForCausalLM(config)), text()


def qwen2() -> tuple[nn.Module, Batch]:
    """Biases in attention."""
    config = transformers.Qwen2Config(**SMALL, num_key_value_heads=1, tie_word_embeddings=True)
    return ready(transformers.Qwen2ForCausalLM(config)), text()


def qwen3() -> tuple[nn.Module, Batch]:
    """Norms of four-dimensional queries and keys."""
    config = transformers.Qwen3Config(**SMALL, num_key_value_heads=1, head_dim=4, tie_word_embeddings=True)
    return ready(transformers.Qwen3ForCausalLM(config)), text()


def gpt2(tied: bool = True) -> tuple[nn.Module, Batch]:
    """Conv1D, LayerNorm, learned positions."""
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=8, n_layer=2, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=1,
        tie_word_embeddings=tied,
    )  # fmt: skip
    return ready(transformers.GPT2LMHeadModel(config)), text()


def bert() -> tuple[nn.Module, Batch]:
    """Tied decoder, padding index, token types; both directions."""
    return ready(transformers.BertForMaskedLM(transformers.BertConfig(**SMALL))), text()


def bert_classifier() -> tuple[nn.Module, Batch]:
    """A label per sequence."""
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**SMALL, num_labels=3))
    return ready(model), {**text(), "labels": torch.tensor([0, 2, 1])}


def albert() -> tuple[nn.Module, Batch]:
    """One layer used twice, factorised embeddings."""
    config = transformers.AlbertConfig(**SMALL, embedding_size=6, num_hidden_groups=1)
    return ready(transformers.AlbertForMaskedLM(config)), text()


def t5(tied: bool = True) -> tuple[nn.Module, Batch]:
    """Encoder and decoder of different lengths, relative positions, shared embeddings."""
    config = transformers.T5Config(
        vocab_size=VOCABULARY, d_model=8, d_kv=4, d_ff=12, num_layers=2, num_heads=2, tie_word_embeddings=tied,
        decoder_start_token_id=0, pad_token_id=0,
    )  # fmt: skip
    batch = text()
    answers = batch["labels"][:, :4].clone()
    return ready(transformers.T5ForConditionalGeneration(config)), {
        **batch,
        "labels": answers,
        "decoder_input_ids": answers.masked_fill(answers == -100, 0).roll(1, 1),
    }


def vit() -> tuple[nn.Module, Batch]:
    """Class token, positions, a convolution of patches."""
    config = transformers.ViTConfig(
        hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4,
        num_labels=5,
    )  # fmt: skip
    return ready(transformers.ViTForImageClassification(config)), images()


def resnet() -> tuple[nn.Module, Batch]:
    """Convolutions with strides, batch norms with statistics of their own."""
    config = transformers.ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=5
    )
    model = ready(transformers.ResNetForImageClassification(config))
    generator = torch.Generator().manual_seed(0)
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.copy_(torch.rand(buffer.shape, generator=generator, dtype=buffer.dtype) + 0.5)
    return model, images()


def lora() -> tuple[nn.Module, Batch]:
    """Only the adapter's factors train."""
    import peft

    model, batch = llama()
    config = peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    return peft.get_peft_model(model, config).double().eval(), batch  # type: ignore[arg-type]


FAMILIES: dict[str, Family] = {
    "llama-tied": llama,
    "llama-untied": lambda: llama(tied=False),
    "qwen2": qwen2,
    "qwen3": qwen3,
    "gpt2-tied": gpt2,
    "gpt2-untied": lambda: gpt2(tied=False),
    "bert": bert,
    "bert-classifier": bert_classifier,
    "albert": albert,
    "t5-tied": t5,
    "t5-untied": lambda: t5(tied=False),
    "vit": vit,
    "resnet": resnet,
    "lora": lora,
}
