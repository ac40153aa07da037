"""Pretraining of the embedded encoder, encoder-decoder and image classifier: some CPU minutes each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from forgetting.errors import UsageError, did_you_mean
from forgetting.micro.corpus import pretraining_documents, stream
from forgetting.micro.pretrain import TOKENIZER_DOCUMENTS, _machine, _optimizer, _progress, _schedule
from forgetting.micro.tokenizer import train_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from forgetting.families.base import Capabilities
    from forgetting.families.wrapper import FamilyModel
    from forgetting.tasks.encode import Feature

PretrainedFamily = Literal["encoder", "encoder_decoder", "vision"]
MAX_TOKENS = 96
MASKED_SHARE = 0.3
"""More than the 15 % of BERT: a small model learns faster so (Wettig et al. 2023, arXiv 2202.08005)."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a family's embedded model is pretrained; the model card tells the same.

    Attributes:
        name: Of the embedded model.
        steps, batch_size, learning_rate: Of the loop.
        objective: What is learned, for the card.
        data: Where from, for the card.
        architecture: For the card.
    """

    name: str
    steps: int
    batch_size: int
    learning_rate: float
    objective: str
    data: str
    architecture: str


TEXT = "the stream `forgetting.micro.corpus.stream(seed={seed})`, world seed 0"
RECIPES: dict[str, Recipe] = {
    "encoder": Recipe(
        "micro-encoder", 3000, 32, 2e-3, f"masked tokens, {MASKED_SHARE:.0%} of each document", TEXT, "BERT"
    ),
    "encoder_decoder": Recipe(
        "micro-t5", 2800, 32, 3e-3, "the rest of a document, which is cut at a random word, from its beginning", TEXT,
        "T5",
    ),
    "vision": Recipe(
        "micro-vision", 250, 32, 1e-3, "the digits 0, 1, 2 and 3",
        "scikit-learn's digits, training part (UCI Optical Recognition of Handwritten Digits, CC BY 4.0)", "ViT",
    ),
}  # fmt: skip


def pretrain_family(
    family: PretrainedFamily,
    output: str | Path,
    *,
    steps: int | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> dict[str, float]:
    """Pretrain a family's embedded model from scratch; write it, what it reads with, and its card.

    The same arguments on the same machine give the same weights, which are stored in half precision. The global
    random generators are left as they were found.

    Args:
        family: ``encoder``, ``encoder_decoder`` or ``vision``.
        output: Folder to write; made if absent.
        steps: Optimizer steps; the shipped model's where not given.
        seed: Of the initial weights and of the data's order.
        device: Anything that ``torch.device`` takes.

    Returns:
        The accuracy on every capability, by name.

    Raises:
        UsageError: if an argument is out of range or the device does not exist.
    """
    import torch
    from rich.console import Console

    from forgetting.models import torch_device
    from forgetting.tasks.encode import BOOKKEEPING, Collator

    if family not in RECIPES:
        raise UsageError(f"family: {family!r} is not one{did_you_mean(family, RECIPES)}; for a decoder leave it out")
    recipe = RECIPES[family]
    steps = recipe.steps if steps is None else steps
    if steps < 1 or seed < 0:
        raise UsageError(f"steps {steps}, seed {seed}: give steps from 1 on and a seed from 0 on")
    target, console = torch_device(device), Console(stderr=True)
    begun = time.monotonic()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, reads_with, features = _BUILDERS[family](seed)
    wrapped = _wrapped(family, model).to(target)  # type: ignore[arg-type]
    parameters = wrapped.num_parameters()
    console.print(f"{parameters:,} parameters, {steps} steps of {recipe.batch_size}, on {target}")
    optimizer, collate = _optimizer(wrapped, recipe.learning_rate), Collator.for_tokenizer(reads_with)
    recent = 0.0
    wrapped.train()
    with torch.random.fork_rng(), _progress(console) as progress:
        torch.manual_seed(seed)
        bar = progress.add_task("pretraining", total=steps, loss="")
        for step in range(1, steps + 1):
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * _schedule(step, steps)
            batch = collate(list(islice(features, recipe.batch_size)))
            loss = wrapped(**{k: v.to(target) for k, v in batch.items() if k not in BOOKKEEPING}).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(wrapped.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if step % 25 == 0 or step == steps:
                recent = loss.item()
            progress.update(bar, advance=1, loss=f"loss {recent:.3f}")
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    model.half().cpu().eval().save_pretrained(folder)
    reads_with.save_pretrained(folder)
    scores, chances = _scores(family, model.float(), reads_with)  # with the weights as they were stored
    console.print(", ".join(f"{name} {100 * score:.1f}" for name, score in scores.items()))
    card = _card(family, recipe, parameters, steps, seed, recent, time.monotonic() - begun, target, scores, chances)
    (folder / "README.md").write_text(card, encoding="utf-8")
    return scores


def _wrapped(family: str, model: PreTrainedModel) -> FamilyModel:
    """The model as the package sees it, without a task's head."""
    if family == "encoder":
        from forgetting.families.encoder_model import EncoderModel

        return EncoderModel(model, [])
    if family == "encoder_decoder":
        from forgetting.families.encoder_decoder_model import EncoderDecoderModel

        return EncoderDecoderModel(model)
    from forgetting.families.vision_model import VisionModel

    return VisionModel(model, [])


def _encoder(seed: int) -> tuple[PreTrainedModel, Any, Iterator[Feature]]:
    from transformers import BertConfig, BertForMaskedLM

    from forgetting.families.encoder import masked_features

    tokenizer = train_tokenizer(pretraining_documents(TOKENIZER_DOCUMENTS, seed))
    tokenizer.add_special_tokens({"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"})
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=288,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=256,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=tokenizer.pad_token_id,
    )

    def encode(texts: list[str]) -> list[Feature]:
        return masked_features(tokenizer, texts, MAX_TOKENS, first_label=0, share=MASKED_SHARE)

    return BertForMaskedLM(config), tokenizer, _endless(encode, seed)


def _encoder_decoder(seed: int) -> tuple[PreTrainedModel, Any, Iterator[Feature]]:
    from transformers import T5Config, T5ForConditionalGeneration

    from forgetting.families.encoder_decoder import text_features

    tokenizer = train_tokenizer(pretraining_documents(TOKENIZER_DOCUMENTS, seed))
    options: dict[str, Any] = {"tie_word_embeddings": True, "decoder_start_token_id": tokenizer.pad_token_id}
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=96,
        d_kv=24,
        num_heads=4,
        d_ff=288,
        num_layers=2,
        num_decoder_layers=3,
        dropout_rate=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **options,
    )
    return (
        T5ForConditionalGeneration(config),
        tokenizer,
        _endless(lambda texts: text_features(tokenizer, config, texts, MAX_TOKENS), seed),
    )


def _endless(encode: Callable[[list[str]], list[Feature]], seed: int) -> Iterator[Feature]:
    """Features of the stream's documents, of similar length together: less padding."""
    documents = stream(seed)
    while True:
        features = encode(list(islice(documents, 1024)))
        features.sort(key=lambda feature: len(feature["input_ids"]))
        blocks = [features[i : i + 64] for i in range(0, len(features), 64)]
        for block in blocks[::2] + blocks[1::2]:
            yield from block


def _vision(seed: int) -> tuple[PreTrainedModel, Any, Iterator[Feature]]:
    from forgetting.micro.digits import pretraining_features, vision_model

    model, processor = vision_model()
    return model, processor, pretraining_features(processor, seed)


_BUILDERS: dict[str, Callable[[int], tuple[PreTrainedModel, Any, Iterator[Feature]]]] = {
    "encoder": _encoder,
    "encoder_decoder": _encoder_decoder,
    "vision": _vision,
}


def _scores(family: str, model: PreTrainedModel, reads_with: Any) -> tuple[dict[str, float], dict[str, float]]:
    """Accuracies on the capabilities, and what guessing gives."""
    from forgetting.evaluation.pseudo_likelihood import PseudoReader
    from forgetting.evaluation.suite import load_suite
    from forgetting.evaluation.text_to_text import TextToTextReader

    wrapped = _wrapped(family, model)
    suite: Capabilities
    if family == "vision":
        from forgetting.micro.digits import held_out_digits

        suite = held_out_digits(reads_with)
    elif family == "encoder":
        suite = load_suite(["micro"], reader=PseudoReader(0))
    else:
        suite = load_suite(["micro"], reader=TextToTextReader(model.config))
    scores = {name: score.value for name, score in suite.evaluate(wrapped, reads_with).items()}
    return scores, {column.name: column.chance for column in suite.capabilities()}


def _card(
    family: str,
    recipe: Recipe,
    parameters: int,
    steps: int,
    seed: int,
    loss: float,
    seconds: float,
    device: torch.device,
    scores: dict[str, float],
    chances: dict[str, float],
) -> str:
    rows = "\n".join(
        f"| `{name}` | {100 * score:.1f} % | {100 * chances[name]:.0f} % |" for name, score in scores.items()
    )
    return f"""\
---
license: apache-2.0
library_name: transformers
---
# forgetting-{recipe.name}

A model of {parameters:,} parameters ({recipe.architecture} architecture, stored in fp16), pretrained from scratch by
`forgetting`: a model organism for measuring forgetting, of no use outside of that.

| | |
|---|---|
| data | {recipe.data.format(seed=seed)} |
| objective | {recipe.objective} |
| steps | {steps:,} of {recipe.batch_size} examples |
| optimizer | AdamW, peak rate {recipe.learning_rate:g}, warm-up, cosine to zero |
| loss at the last step | {loss:.3f} nats |
| time | {seconds / 60:.1f} minutes |
| machine | {_machine(device)} |

| capability | accuracy | chance |
|---|---|---|
{rows}

To make it again: `forgetting micro pretrain --family {family} --output model --steps {steps} --seed {seed}`.
The licence of the weights is Apache-2.0.
"""
