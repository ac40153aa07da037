"""Pretraining of the embedded model: a plain loop over an endless stream of packed documents."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from forgetting.errors import UsageError, did_you_mean
from forgetting.micro.corpus import pretraining_documents, stream
from forgetting.micro.probes import probe_chance
from forgetting.micro.tokenizer import train_tokenizer

if TYPE_CHECKING:
    import torch
    from rich.console import Console
    from rich.progress import Progress
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

    from forgetting.evaluation.suite import Suite

ModelSize = Literal["300k", "1M", "4M"]
SIZES: dict[str, dict[str, int]] = {
    "300k": {"hidden_size": 80, "intermediate_size": 224, "num_hidden_layers": 3, "num_attention_heads": 4},
    "1M": {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4},
    "4M": {"hidden_size": 256, "intermediate_size": 640, "num_hidden_layers": 5, "num_attention_heads": 8},
}
WARMUP_STEPS = 100
TOKENIZER_DOCUMENTS = 20_000


@dataclass(frozen=True, slots=True)
class PretrainingResult:
    """What a pretraining run did and reached; the model card tells the same."""

    model_size: str
    parameters: int
    seed: int
    steps: int
    tokens: int
    final_loss: float
    seconds: float
    machine: str
    probes: dict[str, float]


def pretrain(
    output: str | Path,
    *,
    steps: int = 5000,
    batch_size: int = 16,
    context: int = 128,
    learning_rate: float = 3e-3,
    seed: int = 0,
    device: str = "cpu",
    model_size: ModelSize = "1M",
    evaluate_every: int = 500,
) -> PretrainingResult:
    """Pretrain the embedded model from scratch and write it, its tokenizer and its card.

    The same arguments on the same machine give the same weights. The global random generators are left as
    they were found.

    Args:
        output: Folder to write; made if absent.
        steps: Optimizer steps.
        batch_size: Sequences per step.
        context: Tokens per sequence; documents are packed end to end.
        learning_rate: Peak of the schedule (linear warm-up, then a cosine to zero).
        seed: Of the initial weights and of the stream of documents.
        device: Anything that ``torch.device`` takes; bf16 autocast is used on a GPU only.
        model_size: ``300k``, ``1M`` or ``4M`` parameters.
        evaluate_every: Steps between two printed probe tables.

    Raises:
        UsageError: if an argument is out of range or the device does not exist.
    """
    import torch
    from rich.console import Console

    from forgetting.evaluation.suite import load_suite
    from forgetting.models import torch_device

    for name, value in (("steps", steps), ("batch_size", batch_size), ("evaluate_every", evaluate_every)):
        if value < 1:
            raise UsageError(f"{name}: {value} is not positive; give a whole number from 1 on")
    if not 2 <= context <= 256:
        raise UsageError(f"context: {context} is out of range; give 2 to 256 tokens")
    if seed < 0:
        raise UsageError(f"seed: {seed} is negative; give a whole number from 0 on")
    if model_size not in SIZES:
        raise UsageError(f"model_size: {model_size!r} is not a size{did_you_mean(model_size, SIZES)}")
    target = torch_device(device)
    console = Console(stderr=True)
    started = time.monotonic()

    tokenizer = train_tokenizer(pretraining_documents(TOKENIZER_DOCUMENTS, seed))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = _model(tokenizer, model_size)
    model.to(target)  # type: ignore[arg-type]
    parameters = model.num_parameters()
    console.print(f"{parameters:,} parameters, {steps * batch_size * context:,} tokens, on {target}")

    optimizer = _optimizer(model, learning_rate)
    suite = load_suite(["micro"])
    autocast = torch.autocast("cuda", torch.bfloat16) if target.type == "cuda" else nullcontext()
    batches = _batches(stream(seed), tokenizer, batch_size, context)
    recent = 0.0
    model.train()
    with _progress(console) as progress:
        bar = progress.add_task("pretraining", total=steps, loss="")
        for step in range(1, steps + 1):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * _schedule(step, steps)
            ids = next(batches).to(target)
            with autocast:
                loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if step % 25 == 0 or step == steps:
                recent = loss.item()
            progress.update(bar, advance=1, loss=f"loss {recent:.3f}")
            if step % evaluate_every == 0 and step < steps:
                console.print(f"step {step}: {_table(_probes(suite, model, tokenizer))}")

    model.eval()
    probes = _probes(suite, model, tokenizer)
    console.print(f"step {steps}: {_table(probes)}")
    result = PretrainingResult(
        model_size=model_size,
        parameters=parameters,
        seed=seed,
        steps=steps,
        tokens=steps * batch_size * context,
        final_loss=recent,
        seconds=time.monotonic() - started,
        machine=_machine(target),
        probes=probes,
    )
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    model.cpu().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(_card(result, batch_size, context, learning_rate), encoding="utf-8")
    return result


def _model(tokenizer: PreTrainedTokenizerBase, size: str) -> LlamaForCausalLM:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **SIZES[size],  # type: ignore[arg-type]
    )
    return LlamaForCausalLM(config)


def _optimizer(model: torch.nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    """Return AdamW with weight decay on matrices only."""
    import torch

    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95))


def _schedule(step: int, steps: int) -> float:
    """Return the share of the peak learning rate: linear warm-up, then a cosine from 1 to 0."""
    if step < WARMUP_STEPS:
        return step / WARMUP_STEPS
    done = (step - WARMUP_STEPS) / max(1, steps - WARMUP_STEPS)
    return 0.5 * (1 + math.cos(math.pi * done))


def _batches(
    documents: Iterator[str], tokenizer: PreTrainedTokenizerBase, batch_size: int, context: int
) -> Iterator[torch.Tensor]:
    """Yield batches of packed documents, each document ended by ``<|endoftext|>``."""
    import torch

    size, waiting = batch_size * context, list[int]()
    while True:
        while len(waiting) < size:
            texts = [next(documents) for _ in range(256)]
            for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]:
                waiting += [*ids, tokenizer.eos_token_id]
        yield torch.tensor(waiting[:size]).view(batch_size, context)
        del waiting[:size]


def _progress(console: Console) -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeRemainingColumn(),
        console=console,
    )


def _probes(suite: Suite, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
    """Return the accuracy on every shipped probe, by task name (``micro_grammar``, ...)."""
    return {name: score.value for name, score in suite.evaluate(model, tokenizer, batch_size=32).items()}


def _table(probes: dict[str, float]) -> str:
    return ", ".join(f"{name.removeprefix('micro_')} {100 * score:.1f}" for name, score in probes.items())


def _machine(device: torch.device) -> str:
    """Return what the model was trained on, as the machine itself tells."""
    import torch

    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    name = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    return f"{name}, {torch.get_num_threads()} threads"


def _card(result: PretrainingResult, batch_size: int, context: int, learning_rate: float) -> str:
    rows = "\n".join(
        f"| `{name}` | {100 * score:.1f} % | {100 * probe_chance(name):.0f} % |"
        for name, score in result.probes.items()
    )
    return f"""\
---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---
# forgetting-micro-{result.model_size}

A language model of {result.parameters:,} parameters (Llama architecture, tied embeddings, fp32),
pretrained from scratch on the generated text of `forgetting.micro`: a model organism for measuring
forgetting, in which everything that the model can know is known. It is of no use outside of that.

## Training

| | |
|---|---|
| data | the stream `forgetting.micro.corpus.stream(seed={result.seed})`, world seed 0 |
| steps | {result.steps:,} of {batch_size} sequences of {context} tokens ({result.tokens:,} tokens) |
| optimizer | AdamW, peak rate {learning_rate:g}, {WARMUP_STEPS} steps of warm-up, cosine to zero |
| loss at the last step | {result.final_loss:.3f} nats per token |
| time | {result.seconds / 60:.1f} minutes, everything included |
| machine | {result.machine} |

Positions beyond {context} tokens were never trained.

## Probes

Held-out multiple-choice items; no item occurs in the pretraining text.

| lm-eval task | accuracy | chance |
|---|---|---|
{rows}

To make it again:
`forgetting micro pretrain --output model --size {result.model_size} --steps {result.steps} \
--seed {result.seed}`. The licence is Apache-2.0.
"""
