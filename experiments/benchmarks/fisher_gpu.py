"""What does an exact diagonal Fisher cost on a GPU? Llama shapes of 125M and 1B parameters, random weights, bf16.

Command, on a machine with a CUDA device (about ten minutes; torch, triton, transformers and peft are enough)::

    python experiments/benchmarks/fisher_gpu.py --output results/benchmarks/fisher

For every size and length T (B·T tokens, at least 8,192): the ratio of the median time of our Fisher (backend
``triton``) to a plain forward and backward pass that writes all gradients, interleaved, by CUDA events; the ratio of
the peak memory; the same for LoRA factors only. Apart: the kernel's TFLOP/s on matrices of its own, counting 2·B·T·O·I,
its error against float64 on a slice of a layer, and whether two runs give the same bits.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from forgetting.fisher import diagonal_fisher
from forgetting.fisher.examples import Spans
from forgetting.fisher.kernel import triton_product_squares
from forgetting.fisher.uses import Product, loop_product_squares

SIZES: dict[str, dict[str, Any]] = {
    "125M": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12},
    "1B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 16},
}
LENGTHS = (128, 512, 2048)
TOKENS = 16_384
KERNEL_SHAPES = ((2048, 2048), (2048, 8192), (8192, 2048), (768, 2048))


def make(size: str) -> nn.Module:
    """Random weights on the GPU, bf16."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32_000, max_position_embeddings=2048, use_cache=False, tie_word_embeddings=False, **SIZES[size]
    )
    with torch.device("cuda"):
        model = LlamaForCausalLM(config)
    return model.bfloat16().eval()


def milliseconds(work: Callable[[], object]) -> float:
    """Time of one call, on the GPU."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end)


def peak(work: Callable[[], object]) -> int:
    """Greatest allocation during a call, in bytes, weights included."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def compare(model: nn.Module, length: int, repeats: int) -> dict[str, Any]:
    """Ratios of time and memory to the plain step."""
    ids = torch.randint(0, 32_000, (TOKENS // length, length), device="cuda")
    batch = {"input_ids": ids, "labels": ids}

    def plain() -> None:
        model.zero_grad(set_to_none=True)
        model(**batch).loss.backward()

    def fisher() -> None:
        diagonal_fisher(model, [batch], estimator="empirical", backend="triton")

    works = {"plain": plain, "fisher": fisher}
    memory = {}
    for name, work in works.items():
        work()  # compiles and tunes
        model.zero_grad(set_to_none=True)
        memory[name] = peak(work)
        model.zero_grad(set_to_none=True)
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            times[name].append(milliseconds(work))
            if name == "plain":
                model.zero_grad(set_to_none=True)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "ratio": medians["fisher"] / medians["plain"],
        "plain_ms": medians["plain"],
        "fisher_ms": medians["fisher"],
        "memory_ratio": memory["fisher"] / memory["plain"],
        "batch": [TOKENS // length, length],
    }


def lora(size: str, length: int, repeats: int) -> dict[str, Any]:
    """The Fisher of LoRA factors, over the full model's plain step."""
    import peft

    model = make(size)
    ids = torch.randint(0, 32_000, (TOKENS // length, length), device="cuda")
    batch = {"input_ids": ids, "labels": ids}

    def plain() -> None:
        model.zero_grad(set_to_none=True)
        model(**batch).loss.backward()

    plain()
    full = statistics.median([milliseconds(plain) for _ in range(repeats)])
    model.zero_grad(set_to_none=True)
    config = peft.LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(model, config).bfloat16()

    def fisher() -> None:
        diagonal_fisher(adapted, [batch], estimator="empirical", backend="triton")

    fisher()
    adapter = statistics.median([milliseconds(fisher) for _ in range(repeats)])
    return {"ratio_to_full_step": adapter / full, "batch": [TOKENS // length, length]}


def kernel(rows: int, columns: int, length: int, repeats: int) -> dict[str, Any]:
    """Speed, error and determinism of the kernel alone."""
    spans = Spans.rows(TOKENS // length, length)
    G, A = (torch.randn(TOKENS, n, device="cuda", dtype=torch.bfloat16) for n in (rows, columns))
    total = torch.zeros(rows, columns, device="cuda")

    def work() -> None:
        triton_product_squares(total, [Product(G, A, spans)])

    work()
    milli = statistics.median([milliseconds(work) for _ in range(repeats)])
    once, twice = (torch.zeros_like(total) for _ in range(2))
    for into in (once, twice):
        triton_product_squares(into, [Product(G, A, spans)])
    piece = slice(0, 256)
    exact = torch.zeros(256, 256, device="cuda", dtype=torch.float64)
    loop_product_squares(exact, [Product(G[:, piece].double(), A[:, piece].double(), spans)])
    return {
        "O": rows,
        "I": columns,
        "T": length,
        "tflops": 2 * TOKENS * rows * columns / milli / 1e9,
        "error": float((once[piece, piece] - exact).abs().max() / exact.max()),
        "deterministic": bool(torch.equal(once, twice)),
    }


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("results/benchmarks/fisher"))
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("error: no CUDA device here; run this on a machine that has one")
    record: dict[str, Any] = {
        "command": "python experiments/benchmarks/fisher_gpu.py",
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "kernel": [kernel(*shape, length, options.repeats) for shape in KERNEL_SHAPES for length in LENGTHS],
        "models": {},
        "lora": {},
    }
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "fisher_gpu.json"
    for size in SIZES:
        model = make(size)
        for length in LENGTHS:
            record["models"][f"{size} T{length}"] = compare(model, length, options.repeats)
            path.write_text(json.dumps(record, indent=1, sort_keys=True))
        del model
        record["lora"][size] = lora(size, 512, options.repeats)
    path.write_text(json.dumps(record, indent=1, sort_keys=True))
    print(json.dumps(record, indent=1, sort_keys=True))


if __name__ == "__main__":
    main()
