"""What does an exact diagonal Fisher cost, in units of one training step? Ours and its peers, on this machine.

Command (peers that are not installed are left out, and said to be)::

    pip install backpack-for-pytorch==1.7.1 opacus==1.6.0
    python experiments/benchmarks/fisher.py

In one process, the same batch for all, interleaved, median over the repeats of the ratio to a plain forward and
backward pass of the same repeat (1.00: transformers' loss, gradients of all parameters). Empirical Fisher information
of every parameter, unit: the sequence. Exact are, besides ours (backend ``torch``):

- ``loop``: one example at a time, autograd, squares added;
- ``vmap``: ``torch.func``: per-sample gradients of the functional model, squared;
- ``einsum``: our capture, but per-sample gradients of matrices materialised by einsum;
- ``opacus``: GradSampleModule, squares of ``grad_sample``; it has no rule for transformers' RMSNorm and leaves those
  weights out, and for tied weights it adds the squares of both uses: no cross terms;
- ``backpack``: SumGradSquared of the Linear layers only: it has no rule for attention's arithmetic, embeddings of
  transformers' models or their norms, so that its price is a lower bound.

Where the processor has AVX-512 and is not Intel's, our products are faster than those of torch's own ``linear`` in the
plain step (``forgetting/matmul.py``). What is gained by that alone is told by two rows: ``plain, our products``
is the plain step with all products of linear layers by the same routine, ``ours, torch's products`` ours without it.

``ours sample`` draws the labels from the model, as EWC does by default: other labels, so that it has no error here.
Not exact: ``avalanche``, the importances of its EWCPlugin (squares of batch means). Peers are set up outside of what is
timed, and the order within a repeat is drawn anew. Errors are relative to the oracle (batch size 1, float64): the sum
over parameters of absolute differences over the sum of values. Memory is what one call makes the greatest resident size
exceed the size before it by, in a process of its own after one call on a tiny batch, over the same of plain.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import random
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from forgetting import matmul
from forgetting.fisher import diagonal_fisher
from forgetting.fisher.capture import Capture, select_parameters
from forgetting.fisher.engine import Captured, Draw, Totals
from forgetting.fisher.uses import Product, Use, add_squares
from forgetting.provenance import provenance
from forgetting.results import write_atomically

OUTPUT = Path(__file__).resolve().parents[2] / "results" / "benchmarks" / "fisher"
VOCABULARY = 2048
CELLS = {
    "llama B16 T64": ("llama", 16, 64),
    "llama B8 T256": ("llama", 8, 256),
    "llama B32 T16": ("llama", 32, 16),
    "gpt2 tied B16 T64": ("gpt2", 16, 64),
}
SHOWN = {
    "opacus": "opacus (no RMSNorm, no cross terms)",
    "backpack": "backpack (nn.Linear only)",
    "avalanche": "avalanche (not exact)",
}
Values = dict[str, Tensor]
Method = Callable[[nn.Module, dict[str, Tensor]], Values]


def make(family: str) -> nn.Module:
    """Four layers of width 256."""
    torch.manual_seed(0)
    if family == "gpt2":
        gpt2 = GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=256,
            n_layer=4,
            n_head=4,
            n_positions=256,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            use_cache=False,
        )
        return GPT2LMHeadModel(gpt2).eval()
    llama = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=4,
        tie_word_embeddings=False,
        use_cache=False,
    )
    return LlamaForCausalLM(llama).eval()


def batch_of(rows: int, length: int) -> dict[str, Tensor]:
    """Random tokens; every one is predicted but the first."""
    ids = torch.randint(0, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "labels": ids.clone()}


def log_likelihood(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum over all predicted tokens."""
    return -functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")


def plain(model: nn.Module, batch: dict[str, Tensor]) -> Values:
    """A training step's forward and backward pass."""
    model.zero_grad(set_to_none=True)
    model(**batch).loss.backward()
    return {}


class _OurProducts(torch.autograd.Function):
    """A linear layer with all three products by our routine."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        weight = weight.detach()  # ours takes plain tensors only
        ctx.save_for_backward(x, weight)
        return matmul.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        g = grads[0]
        gw = matmul.multiply(g.flatten(0, -2).T, x.flatten(0, -2))
        return matmul.multiply(g, weight), gw, g.flatten(0, -2).sum(0) if ctx.needs_input_grad[2] else None


def prepare_products(model: nn.Module) -> nn.Module:
    """Linear layers and Conv1D with our products."""

    def forward(layer: nn.Module, x: Tensor) -> Tensor:
        weight: Any = layer.weight
        return _OurProducts.apply(x, weight if isinstance(layer, nn.Linear) else weight.T, layer.bias)

    for module in model.modules():
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
            module.forward = partial(forward, module)
    return model


def ours(model: nn.Module, batch: dict[str, Tensor]) -> Values:
    """What this package does."""
    return diagonal_fisher(model, [batch], estimator="empirical", backend="torch").values


def ours_torch(model: nn.Module, batch: dict[str, Tensor]) -> Values:
    """The same, with the products of torch's own choice."""
    with torch.backends.mkldnn.flags(enabled=False):
        return ours(model, batch)


def ours_sample(model: nn.Module, batch: dict[str, Tensor]) -> Values:
    """The same, with drawn labels."""
    diagonal_fisher(model, [batch], estimator="sample", backend="torch", generator=torch.Generator().manual_seed(0))
    return {}


def loop(model: nn.Module, batch: dict[str, Tensor]) -> Values:
    """Batch size 1."""
    named = dict(model.named_parameters())
    totals = {name: torch.zeros_like(p) for name, p in named.items()}
    for ids in batch["input_ids"].split(1):
        grads = torch.autograd.grad(log_likelihood(model(input_ids=ids).logits, ids), list(named.values()))
        for total, grad in zip(totals.values(), grads, strict=True):
            total.addcmul_(grad, grad)
    return {name: total.div_(len(batch["input_ids"])) for name, total in totals.items()}


def vmap(model: nn.Module, batch: dict[str, Tensor]) -> Values:
    """torch.func, all examples at once."""
    named = {name: p.detach() for name, p in model.named_parameters()}

    def one(parameters: Values, ids: Tensor) -> Tensor:
        logits = torch.func.functional_call(model, parameters, kwargs={"input_ids": ids[None]}).logits
        return log_likelihood(logits, ids[None])

    per_sample = torch.func.vmap(torch.func.grad(one), in_dims=(None, 0), randomness="same")(named, batch["input_ids"])
    return {name: value.square().mean(0) for name, value in per_sample.items()}


def einsum(model: nn.Module, batch: dict[str, Tensor]) -> Values:
    """Per-sample gradients of matrices, materialised."""
    chosen = select_parameters(model, None)
    totals = Totals(chosen, torch.float32)

    def products(total: Tensor, uses: Sequence[Product]) -> None:
        (use,) = uses
        rows = len(use.spans)
        G, A = use.G.view(rows, -1, use.G.shape[1]), use.A.view(rows, -1, use.A.shape[1])
        total += torch.einsum("bto,bti->boi", G, A).square().sum(0)

    def sink(name: str, uses: list[Use]) -> None:
        add_squares(totals[name], uses, products)

    engine = Captured(Capture(model, chosen, sink), Draw("empirical", 1, None), shift=True)
    engine.run([batch], next(iter(chosen.values())), None, None)
    return totals.mean(engine.examples)


def prepare_opacus(model: nn.Module) -> nn.Module:
    """Wrapped; without the weights for which it has no rule."""
    from opacus import GradSampleModule

    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.requires_grad_(False)
    return GradSampleModule(model.train(), loss_reduction="sum", strict=False)  # its hooks ignore a model in eval mode


def opacus(model: nn.Module, batch: dict[str, Tensor]) -> Values:
    """Opacus' per-sample gradients, squared."""
    log_likelihood(model(input_ids=batch["input_ids"]).logits, batch["labels"]).backward()
    values = {}
    for name, parameter in model.named_parameters():
        samples = getattr(parameter, "grad_sample", None)
        if samples is not None:
            parts = samples if isinstance(samples, list) else [samples]
            values[name.removeprefix("_module.")] = torch.stack([part.square().mean(0) for part in parts]).sum(0)
        parameter.grad_sample = parameter.grad = None  # type: ignore[attr-defined]
    return values


def prepare_backpack(model: nn.Module) -> nn.Module:
    """Linear layers extended; the embedding keeps its gradient, so that the first layer's inputs have one."""
    from backpack import extend

    model.requires_grad_(False)
    model.get_input_embeddings().weight.requires_grad_(True)  # type: ignore[operator]
    for module in model.modules():
        if isinstance(module, nn.Linear):
            extend(module).requires_grad_(True)
    return model


def backpack(model: nn.Module, batch: dict[str, Tensor]) -> Values:
    """BackPACK's sum of squared per-sample gradients, of Linear layers."""
    from backpack import backpack as context
    from backpack.extensions import SumGradSquared

    with context(SumGradSquared()):
        log_likelihood(model(input_ids=batch["input_ids"]).logits, batch["labels"]).backward()
    values = {}
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "sum_grad_squared"):
            values[name] = parameter.sum_grad_squared / len(batch["input_ids"])
            del parameter.sum_grad_squared
        parameter.grad = None
    return values


class _Logits(nn.Module):
    """A model whose output is the logits, as Avalanche expects."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.model(input_ids=input_ids).logits


def avalanche(model: nn.Module, batch: dict[str, Tensor]) -> Values:
    """The importances of Avalanche's EWCPlugin, the batch as its mini-batch."""
    from avalanche.training.plugins import EWCPlugin
    from torch.utils.data import TensorDataset

    ids = batch["input_ids"]
    dataset: Any = TensorDataset(ids, ids, torch.zeros(len(ids), dtype=torch.long))
    dataset.collate_fn = None
    wrapped = _Logits(model)
    importances = EWCPlugin(ewc_lambda=1.0).compute_importances(
        wrapped,
        lambda out, y: functional.cross_entropy(out[:, :-1].flatten(0, 1), y[:, 1:].flatten()),
        torch.optim.SGD(wrapped.parameters(), lr=0.0),
        dataset,
        torch.device("cpu"),
        len(ids),
    )
    model.zero_grad(set_to_none=True)
    model.eval()
    return {name.removeprefix("model."): value.data for name, value in importances.items()}


METHODS: dict[str, Method] = {
    "plain": plain,
    "plain, our products": plain,
    "ours": ours,
    "ours, torch's products": ours_torch,
    "ours sample": ours_sample,
    "loop": loop,
    "vmap": vmap,
    "einsum": einsum,
    "opacus": opacus,
    "backpack": backpack,
    "avalanche": avalanche,
}


PREPARE: dict[str, Callable[[nn.Module], nn.Module]] = {
    "plain, our products": prepare_products,
    "opacus": prepare_opacus,
    "backpack": prepare_backpack,
}


def prepared(family: str, method: str) -> nn.Module:
    """A model of a method's own."""
    return PREPARE.get(method, lambda model: model)(make(family))


def error(values: Values, exact: Values) -> float | None:
    """Σ|difference| / Σ value over the parameters that a method has."""
    if not values:
        return None
    difference = sum(float((values[name].double() - exact[name]).abs().sum()) for name in values)
    return difference / sum(float(exact[name].sum()) for name in values)


def measure(cell: str, methods: list[str], repeats: int) -> dict[str, dict[str, float | int | None]]:
    """Median ratio to plain, its range, and the error of every method."""
    family, rows, length = CELLS[cell]
    batch = batch_of(rows, length)
    models = {name: prepared(family, name) for name in methods}
    exact = diagonal_fisher(make(family), [batch], estimator="empirical", backend="reference").values
    errors = {name: error(METHODS[name](models[name], batch), exact) for name in methods}  # also the warm-up
    covered = {name: len(METHODS[name](models[name], batch)) for name in methods}
    ratios: dict[str, list[float]] = {name: [] for name in methods}
    for repeat in range(repeats):
        seconds = {}
        for name in random.Random(repeat).sample(methods, len(methods)):
            begun = time.perf_counter()
            METHODS[name](models[name], batch)
            seconds[name] = time.perf_counter() - begun
        for name in methods:
            ratios[name].append(seconds[name] / seconds["plain"])
    return {
        name: {
            "ratio": statistics.median(ratios[name]),
            "lowest": min(ratios[name]),
            "highest": max(ratios[name]),
            "error": errors[name],
            "parameters": covered[name] or None,
        }
        for name in methods
    }


def memory(cell: str, method: str) -> int:
    """Bytes by which one call makes this process grow at most (Linux tells, and lets the peak be reset)."""
    family, rows, length = CELLS[cell]
    model = prepared(family, method)
    METHODS[method](model, batch_of(2, 4))  # imports, and what is allocated once
    batch = batch_of(rows, length)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    METHODS[method](model, batch)
    return _status("VmHWM") - before


def _status(key: str) -> int:
    """A size of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))


def memory_apart(cell: str, method: str) -> int:
    """:func:`memory` in a process of its own."""
    command = [sys.executable, __file__, "--memory", cell, method]
    # Tensors are given back to the system as soon as they are freed: else the peak is the allocator's.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return int(done.stdout.split()[-1])


def draw(results: dict[str, Any], methods: list[str]) -> None:
    """A bar per method and cell, log scale, the plain step at 1."""
    import pandas as pd
    import seaborn

    from forgetting.report.style import legend_below, new_canvas, save, styled

    rows = [
        {"cell": cell, "method": SHOWN.get(name, name), "ratio": results[cell][name]["ratio"]}
        for cell in results
        for name in methods
        if name != "plain"
    ]
    with styled():
        canvas = new_canvas(7.2, 3.8)
        axes = canvas.subplots()
        seaborn.barplot(pd.DataFrame(rows), x="cell", y="ratio", hue="method", palette="colorblind", ax=axes)
        axes.set_yscale("log")
        ticks = [0.5, 0.7, 1, 1.5, 2, 3, 5]
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_ylim(0.5, 6)
        axes.minorticks_off()
        axes.axhline(1.0, color="black", linewidth=1)
        axes.set_xlabel("")
        axes.set_ylabel("time / plain forward + backward")
        handles, labels = axes.get_legend_handles_labels()
        if (legend := axes.get_legend()) is not None:
            legend.remove()
        legend_below(canvas, handles, labels)
        save(canvas, OUTPUT, "fisher_cpu", "Price of a diagonal Fisher", "CPU; the lower, the better")


def table(results: dict[str, Any], methods: list[str], growth: dict[str, int]) -> str:
    """Markdown."""
    lines = ["| method | " + " | ".join(results) + " | error | memory |", "|---" * (len(results) + 3) + "|"]
    for name in methods:
        cells = [f"{results[cell][name]['ratio']:.2f}" for cell in results]
        errors = [r[name]["error"] for r in results.values() if r[name]["error"] is not None]
        shown = f"{max(errors):.1e}" if errors else ""
        lines.append(
            f"| {SHOWN.get(name, name)} | {' | '.join(cells)} | {shown} | {growth[name] / growth['plain']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, write the results, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory", nargs=2, metavar=("CELL", "METHOD"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    if options.memory:
        print(memory(*options.memory))
        return
    missing = [name for name in ("opacus", "backpack", "avalanche") if importlib.util.find_spec(name) is None]
    methods = [name for name in METHODS if name not in missing]
    results = {cell: measure(cell, methods, options.repeats) for cell in CELLS}
    growth = {name: memory_apart("llama B8 T256", name) for name in methods}
    shown = table(results, methods, growth)
    record = {
        "command": f"python experiments/benchmarks/fisher.py --repeats {options.repeats} --threads {options.threads}",
        "results": results,
        "memory_bytes_llama_B8_T256": growth,
        "not_installed": missing,
        "provenance": provenance(),
    }
    OUTPUT.mkdir(parents=True, exist_ok=True)
    write_atomically(OUTPUT / "fisher_cpu.json", json.dumps(record, indent=1, sort_keys=True).encode())
    write_atomically(OUTPUT / "fisher_cpu.md", shown.encode())
    draw(results, methods)
    print(shown)
    if missing:
        print("not installed:", ", ".join(missing))


if __name__ == "__main__":
    main()
