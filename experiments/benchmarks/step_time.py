"""What does a step of every mitigation cost, relative to naive fine-tuning, at equal tokens?

Command::

    python experiments/benchmarks/step_time.py

The embedded model learns the second of two tasks, through the package's own training loop, after the first, so that
memories, penalties and teachers are what they are in the middle of a sequence. Both tasks and the replayed text are
pretraining documents packed to rows of the same length, so that every step of every method has the same number of
tokens of its own. One process, one thread, its processor time, so that what else the machine does counts little; each
measurement has a naive one right before and right after it, and the ratio is to their mean; of a measurement the median
step, of the rounds the median ratio. What a method does before and after a task (Fisher, projections, merging) is no
part of a step; it is in the leaderboard's training time.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import torch

from forgetting.config import EvaluationConfig, PretrainingConfig, RunConfig, SequenceConfig, TrainingConfig
from forgetting.families.decoder import Decoder
from forgetting.micro.corpus import pretraining_documents
from forgetting.mitigations import build_mitigation
from forgetting.provenance import provenance
from forgetting.results import ResultStore, write_atomically
from forgetting.run import Setting, prepare, run_context, train_task
from forgetting.tasks.task import Example, Sequence, Task

OUTPUT = Path(__file__).resolve().parents[2] / "results" / "benchmarks" / "step_time"
EXAMPLES, WORDS = 128, 40

METHODS: tuple[str, ...] = (
    "naive",
    "low_lr",
    "few_steps:fraction=1",
    "early_stopping:every=1000",
    "feature_extraction",
    "freeze:first=2,embeddings=true",
    "gradual_unfreezing",
    "llrd:decay=0.7",
    "bitfit",
    "lora",
    "lora:dora=true",
    "lora:init=pissa",
    "o_lora",
    "ia3",
    "osf",
    "prompt_tuning",
    "prefix_tuning",
    "l2sp",
    "ewc:examples=16",
    "ewc:examples=16,mode=kfac",
    "si",
    "mas:examples=16",
    "rwalk:examples=16",
    "lwf",
    "kl_to_base",
    "kl_to_base:on=text",
    "sam",
    "flow",
    "replay:fraction=0.25",
    "self_replay:documents=32",
    "der",
    "derpp",
    "gem:examples=64",
    "agem:examples=64",
    "ogd:directions=16",
    "gpm:examples=16",
    "wise_ft",
    "ema",
    "task_arithmetic",
    "merge_previous",
    "fisher_merge:examples=16",
    "cumulative",
    "single_task",
)
"""All that trains; ``joint`` trains on the first task alone, ``in_context`` never, ``task_lora`` steps as ``lora``."""

FLOORS: dict[str, str] = {
    "lwf": "a teacher's forward pass: 1.33",
    "kl_to_base": "a teacher's forward pass: 1.33; on=text two models' passes on as much text: 2.33",
    "sam": "a second forward and backward pass: 2",
    "der": "a forward and backward pass on the memory's minibatch: 2",
    "derpp": "the same on two minibatches: 3",
    "gem": "a gradient per earlier state: 3 with two of them",
    "agem": "a gradient on the memory's minibatch: 2",
    "rwalk": "a running Fisher beside SI's path",
    "prompt_tuning": "20 more positions per sequence",
    "prefix_tuning": "20 more keys per layer",
    "osf": "a projection of every gradient, inside peft",
    "ogd": "two products with the stored directions",
    "gpm": "a product with each layer's basis, twice",
    "lora": "two thin products per layer, and no gradients of the weights",
    "replay": "none; the replayed text is in the batches",
    "ewc:examples=16,mode=kfac": "products of every weight with its two factors",
    "self_replay": "a pass of the model and a forward pass of the base on the sampled text: 2.33",
}
"""What a method cannot do without, as a multiple of the naive step where that is known."""


def tasks() -> tuple[Task, ...]:
    """Two tasks of pretraining text, every example as long as the others in words."""
    words = " ".join(pretraining_documents(6 * EXAMPLES, 1)).split()
    lines = [" ".join(words[i : i + WORDS]) for i in range(0, 2 * EXAMPLES * WORDS, WORDS)]
    examples = [Example(*_halves(line)) for line in lines]
    return tuple(
        Task(name, tuple(part[:-8]), tuple(part[-8:-4]), tuple(part[-4:]), metric="perplexity")
        for name, part in (("first", examples[:EXAMPLES]), ("second", examples[EXAMPLES:]))
    )


def _halves(line: str) -> tuple[str, str]:
    middle = line.index(" ", len(line) // 2)
    return line[:middle], line[middle:]


class Contender:
    """A method in the middle of a sequence."""

    def __init__(self, text: str, setting: Setting, steps: int) -> None:
        self.setting = setting
        self.config = RunConfig(
            model="micro",
            sequence=SequenceConfig(name="micro-5"),
            mitigation=text,
            seed=0,
            training=TrainingConfig(learning_rate=1e-5, steps=steps, batch_size=16, max_length=96),
        )
        self.mitigation = build_mitigation(text)
        self.model = self.mitigation.setup(copy.deepcopy(setting.base.model), run_context(self.config, setting))
        self.model, _ = train_task(self.config, setting, self.mitigation, self.model, 0, lambda step, steps: None)

    def step_seconds(self) -> float:
        """The median of the steps of the second task, but the first."""
        ends: list[float] = []
        self.model, _ = train_task(
            self.config,
            self.setting,
            self.mitigation,
            self.model,
            1,
            lambda step, steps: ends.append(time.process_time()),
        )
        return statistics.median(end - begun for begun, end in pairwise(ends))


def table(rows: dict[str, dict[str, float]]) -> str:
    """Markdown, the cheapest first."""
    lines = ["| mitigation | step / naive step | lowest – highest | what it cannot do without |", "|---|---|---|---|"]
    lines += [
        f"| `{text}` | {row['ratio']:.2f} | {row['lowest']:.2f} – {row['highest']:.2f} | "
        f"{FLOORS.get(text, FLOORS.get(text.split(':')[0], ''))} |"
        for text, row in sorted(rows.items(), key=lambda item: item[1]["ratio"])
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--methods", nargs="+", default=METHODS, help="these only")
    options = parser.parse_args()
    torch.set_num_threads(1)  # before anything is computed: processor time is summed over threads
    with tempfile.TemporaryDirectory() as folder:
        shared = RunConfig(
            model="micro",
            sequence=SequenceConfig(name="micro-5", train_size=10, test_size=10),
            mitigation="naive",
            seed=0,
            evaluation=EvaluationConfig(suite=("micro",), limit=1, drift=False),
            pretraining=PretrainingConfig(documents=200, max_length=96),
        )
        setting = prepare(shared, ResultStore(folder))
    setting = Setting(
        Decoder(setting.base, Sequence("text", tasks())), setting.pretraining, setting.evaluator, setting.cache_dir
    )
    contenders = {text: Contender(text, setting, options.steps) for text in options.methods}
    ratios: dict[str, list[float]] = {text: [] for text in options.methods}
    reference = Contender("naive", setting, options.steps)
    for number in range(options.rounds):
        before = reference.step_seconds()
        for text, contender in contenders.items():
            seconds, after = contender.step_seconds(), reference.step_seconds()
            ratios[text].append(2 * seconds / (before + after))
            before = after
        print(f"round {number + 1} of {options.rounds}", flush=True)
    rows = {
        text: {"ratio": statistics.median(values), "lowest": min(values), "highest": max(values)}
        for text, values in ratios.items()
    }
    shown = table(rows)
    record = {
        "command": f"python experiments/benchmarks/step_time.py --rounds {options.rounds} --steps {options.steps}",
        "results": rows,
        "provenance": provenance(),
    }
    print(shown)
    if set(options.methods) != set(METHODS):
        return  # a part is to look at, not to keep
    write_atomically(OUTPUT / "step_time.json", json.dumps(record, indent=1, sort_keys=True).encode())
    write_atomically(OUTPUT / "step_time.md", shown.encode())


if __name__ == "__main__":
    main()
