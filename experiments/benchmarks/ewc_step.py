"""What does EWC's step cost with 1, 10 and 100 protected tasks? Ours, and Avalanche's separate mode.

Command::

    python experiments/benchmarks/ewc_step.py

The embedded model, AdamW, a batch of 32 pretraining texts. One process, interleaved, median over the repeats of the
ratio to the naive step of the same repeat. Ours is the implicit step on Σ F_i and Σ F_i θ_i; Avalanche's is its own
``EWCPlugin.before_backward`` (a term per task in the loss, through autograd). Memory is what both store.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from forgetting.fisher import DiagonalFisher, DiagonalPenalty
from forgetting.micro.corpus import pretraining_documents
from forgetting.models import load_model
from forgetting.provenance import provenance
from forgetting.results import write_atomically
from forgetting.tasks.encode import encode_texts
from forgetting.trainer import padded_batches

OUTPUT = Path(__file__).resolve().parents[2] / "results" / "benchmarks" / "ewc_step"
TASKS = (1, 10, 100)
STRENGTH = 1000.0


class Step:
    """A training step of a copy of the model, with hooks as a method has them."""

    def __init__(self, model: torch.nn.Module, batch: dict[str, Tensor]) -> None:
        self.model = copy.deepcopy(model).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        self.batch = batch

    def penalised(self, loss: Tensor) -> Tensor:
        """The loss that is differentiated."""
        return loss

    def after(self) -> None:
        """What follows the optimizer's step."""

    def stored_bytes(self) -> int:
        """Kept for the protected tasks."""
        return 0

    def take(self) -> None:
        """Take the step."""
        self.optimizer.zero_grad()
        self.penalised(self.model(**self.batch).loss).backward()
        self.optimizer.step()
        self.after()


class Ours(Step):
    """The implicit step of the summed quadratic."""

    def __init__(self, model: torch.nn.Module, batch: dict[str, Tensor], tasks: int) -> None:
        super().__init__(model, batch)
        self.penalty = DiagonalPenalty()
        named = dict(self.model.named_parameters())
        for task in range(tasks):
            torch.manual_seed(task)
            values = {name: torch.rand_like(p) for name, p in named.items()}
            self.penalty.consolidate(DiagonalFisher(values, "empirical", 1, 1), named)

    def after(self) -> None:
        """See Step."""
        self.penalty.step(dict(self.model.named_parameters()), 1e-4 * STRENGTH)  # as the mitigation does

    def stored_bytes(self) -> int:
        """See Step."""
        return 4 * self.penalty.stored_floats()


class Avalanche(Step):
    """Its plugin, filled as after so many experiences."""

    def __init__(self, model: torch.nn.Module, batch: dict[str, Tensor], tasks: int) -> None:
        super().__init__(model, batch)
        from avalanche.training.plugins import EWCPlugin
        from avalanche.training.utils import copy_params_dict

        self.plugin = EWCPlugin(ewc_lambda=STRENGTH / 2, mode="separate")
        for task in range(tasks):
            torch.manual_seed(task)
            self.plugin.saved_params[task] = copy_params_dict(self.model)
            importances = copy_params_dict(self.model)
            for value in importances.values():
                value.data = torch.rand_like(value.data)
            self.plugin.importances[task] = importances
        self.strategy: Any = SimpleNamespace(
            clock=SimpleNamespace(train_exp_counter=tasks), model=self.model, device=torch.device("cpu"), loss=None
        )

    def penalised(self, loss: Tensor) -> Tensor:
        """See Step."""
        self.strategy.loss = loss
        self.plugin.before_backward(self.strategy)
        return self.strategy.loss

    def stored_bytes(self) -> int:
        """See Step."""
        kept = (*self.plugin.saved_params.values(), *self.plugin.importances.values())
        return sum(value.data.numel() * value.data.element_size() for part in kept for value in part.values())


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    loaded = load_model("micro")
    features = encode_texts(loaded.tokenizer, pretraining_documents(32, 0), 128)
    (batch,) = padded_batches(features, loaded.tokenizer, 32)
    kinds: dict[str, Callable[..., Step]] = {"ours": Ours, "avalanche": Avalanche}
    steps: dict[str, Step] = {"naive": Step(loaded.model, batch)}
    steps |= {f"{kind} {tasks}": make(loaded.model, batch, tasks) for kind, make in kinds.items() for tasks in TASKS}
    ratios: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(options.repeats + 1):  # the first warms up
        seconds = {}
        for name, step in steps.items():
            begun = time.perf_counter()
            step.take()
            seconds[name] = time.perf_counter() - begun
        for name in steps if repeat else ():
            ratios[name].append(seconds[name] / seconds["naive"])
    rows = {
        name: {
            "ratio": statistics.median(ratios[name]),
            "lowest": min(ratios[name]),
            "highest": max(ratios[name]),
            "stored_bytes_per_model_byte": step.stored_bytes() / (4 * loaded.model.num_parameters()),
        }
        for name, step in steps.items()
    }
    lines = ["| method and protected tasks | step / naive step | stored / model |", "|---|---|---|"]
    lines += [
        f"| {name} | {row['ratio']:.2f} | {row['stored_bytes_per_model_byte']:.0f} |" for name, row in rows.items()
    ]
    shown = "\n".join(lines) + "\n"
    record = {
        "command": f"python experiments/benchmarks/ewc_step.py --repeats {options.repeats} --threads {options.threads}",
        "results": rows,
        "batch": list(batch["input_ids"].shape),
        "provenance": provenance(),
    }
    OUTPUT.mkdir(parents=True, exist_ok=True)
    write_atomically(OUTPUT / "ewc_step.json", json.dumps(record, indent=1, sort_keys=True).encode())
    write_atomically(OUTPUT / "ewc_step.md", shown.encode())
    print(shown)


if __name__ == "__main__":
    main()
