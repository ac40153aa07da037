"""How much faster is scoring a suite after a task than lm-eval with its HFLM? Same items, same answers.

Command::

    python experiments/benchmarks/evaluation.py --limit 16

Without shots and with five that are the same for every item of a task (lm-eval's ``first_n``), which is where a
beginning that is read once counts. HFLM is at its best: its logits cache is on (the default: choices of one token share
a row), and it is tried with the suite's batch size and with its automatic one. Ways, in one process, interleaved:

- ``simple_evaluate``: lm-eval as a user calls it after every task: tasks loaded, HFLM made, ``simple_evaluate``.
- ``evaluate``: tasks and HFLM made once, only ``lm_eval.evaluator.evaluate`` is timed; ``auto``: at its own batch size.
- ``loglikelihood``: HFLM's answers to the requests alone, without what lm-eval does around them; ``auto`` as above.
- ``suite``: ``Suite.evaluate``; ``auto``: by slots instead of sequences; ``responses``: the suite's answers alone, also
  with the products of matrices that torch chooses: what those of ``forgetting/matmul.py`` gain on this processor. What
  is done once per study, loading and tokenising, is given apart.

The ratios are what counts: on a CPU of this process's processor time, on one thread, so that what else the machine
does counts little; on a GPU of the wall clock. Each is of one round; of the rounds the median is given, with the lowest
and the highest. Standard errors and logged samples are switched off in lm-eval while it is timed. Answers are compared
once, request by request: the largest difference of a log-probability, answers that are greedy on one side alone, and
items whose outcome flips. Slots are the tokens that a model reads, padding too: what scoring costs beyond them is per
batch and per request. The file is written after every round, and rounds that it holds of the same setting count: what
is cut short goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from forgetting.evaluation.budget import found_budget
from forgetting.evaluation.catalogue import Catalogue, quiet
from forgetting.evaluation.prompting import Prompt
from forgetting.evaluation.suite import load_suite
from forgetting.models import load_model
from forgetting.provenance import provenance
from forgetting.results import write_atomically

OUTPUT = Path(__file__).resolve().parents[2] / "results" / "benchmarks" / "evaluation"
AGAINST = {
    "simple_evaluate": "suite",
    "evaluate": "suite",
    "evaluate auto": "suite",
    "suite auto": "suite",
    "loglikelihood": "responses",
    "loglikelihood auto": "responses",
    "responses, torch's products": "responses",
}
"""Which of the suite's ways each is compared with: the one that does as much."""
AIMS = {0: 2.0, 5: 5.0}
"""By shots: how many times as long HFLM should take at its best, of answers alone."""


class LmEval:
    """lm-eval's own evaluation of the suite's tasks, with the same shots."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, shots: int, options: argparse.Namespace
    ) -> None:
        self.model, self.tokenizer, self.shots, self.options = model, tokenizer, shots, options
        self.lm, self.auto = self._lm(options.batch_size), self._lm("auto")
        self.tasks = self._tasks()

    def _lm(self, batch_size: int | str) -> Any:
        from lm_eval.models.huggingface import HFLM

        with quiet():
            return HFLM(
                self.model,
                tokenizer=self.tokenizer,
                batch_size=batch_size,
                logits_cache=True,
                device=str(self.model.device),
            )

    def _tasks(self) -> dict[str, Any]:
        columns = Catalogue(self.options.data_dir).load(self.options.suite)
        tasks = {task.task_name: task for column in columns for task in column.tasks}
        for task in tasks.values():
            task.set_config("num_fewshot", self.shots)
            if self.shots:
                n = len(task.eval_docs)
                Prompt(shots=self.shots, fixed=True).apply(task, list(range(n))[: self.options.limit])
        return tasks

    def simple_evaluate(self) -> None:
        """Everything that one call of lm-eval does."""
        from lm_eval.evaluator import simple_evaluate
        from lm_eval.tasks import TaskManager

        tasks, lm = list(self._tasks().values()), self._lm(self.options.batch_size)
        manager = TaskManager(include_defaults=False)
        with quiet():
            simple_evaluate(
                lm,
                tasks=tasks,
                task_manager=manager,
                limit=self.options.limit,
                bootstrap_iters=0,
                log_samples=False,
            )

    def evaluate(self, lm: Any, log_samples: bool = False) -> Any:
        """Only building requests and scoring them."""
        from lm_eval.evaluator import evaluate

        with quiet():
            return evaluate(
                lm, {"tasks": self.tasks}, limit=self.options.limit, bootstrap_iters=0, log_samples=log_samples
            )

    def answers(self, lm: Any, requests: list[Any]) -> None:
        """Only scoring."""
        with quiet():
            lm.loglikelihood(requests, disable_tqdm=True)


def timed(function: Callable[[], Any], device: torch.device) -> tuple[float, float]:
    """Seconds of processor time, and of the wall clock."""
    wall, processor = time.perf_counter(), time.process_time()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.process_time() - processor, time.perf_counter() - wall


def own_products(function: Callable[[], Any]) -> Callable[[], Any]:
    """The same with the products of torch's own choice (see ``forgetting/matmul.py``)."""

    def called() -> None:
        with torch.backends.mkldnn.flags(enabled=False):
            function()

    return called


@contextmanager
def slots_read(model: PreTrainedModel, into: dict[str, int], name: str) -> Iterator[None]:
    """Count what the model reads within, padding too: the least that time can be in proportion to."""

    def count(module: Any, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        into[name] = into.get(name, 0) + (given["input_ids"] if "input_ids" in given else args[0]).numel()

    hook = model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def differences(
    theirs: Any, ours: dict[str, list[tuple[str, dict[str, Any]]]], scores: dict[str, float]
) -> dict[str, Any]:
    """Compare lm-eval's logged samples and scores with the suite's."""
    pairs = []
    for records in ours.values():
        logged = {(name, sample["doc_id"]): sample for name, _ in records for sample in theirs["samples"][name]}
        pairs += [(logged[name, record["doc_id"]], record) for name, record in records]
    answers = [(one, two) for a, b in pairs for one, two in zip(a["filtered_resps"], b["filtered_resps"], strict=True)]
    return {
        "max_score_difference": max(abs(theirs["results"][name]["acc,none"] - scores[name]) for name in scores),
        "max_log_prob_difference": max(abs(float(one[0]) - float(two[0])) for one, two in answers),
        "greedy_differences": sum(_true(one[1]) != _true(two[1]) for one, two in answers),
        "flips": sum(float(a["acc"]) != float(b["acc"]) for a, b in pairs),
    }


def _true(value: Any) -> bool:
    return str(value) == "True"  # lm-eval logs answers as texts


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    shots: int,
    options: argparse.Namespace,
    earlier: dict[str, Any],
) -> Iterator[dict[str, Any]]:
    """All ways at this number of shots, after every round; the rounds of an earlier part count too."""
    device = model.device
    theirs = LmEval(model, tokenizer, shots, options)
    begun = time.process_time()
    prompt = Prompt(shots=shots, fixed=True) if shots else None
    suite = load_suite([options.suite], data_dir=options.data_dir, limit=options.limit, prompt=prompt)
    load_seconds = time.process_time() - begun
    requests, slots = list(suite.requests), found_budget(device)
    first_seconds = timed(lambda: suite.evaluate(model, tokenizer, options.batch_size), device)[0]
    ways: dict[str, Callable[[], Any]] = {
        "simple_evaluate": theirs.simple_evaluate,
        "suite": lambda: suite.evaluate(model, tokenizer, options.batch_size),
        "evaluate": lambda: theirs.evaluate(theirs.lm),
        "suite auto": lambda: suite.evaluate(model, tokenizer, slots),
        "evaluate auto": lambda: theirs.evaluate(theirs.auto),
        "loglikelihood": lambda: theirs.answers(theirs.lm, requests),
        "responses": lambda: suite.responses(model, tokenizer, options.batch_size),
        "loglikelihood auto": lambda: theirs.answers(theirs.auto, requests),
        "responses, torch's products": own_products(lambda: suite.responses(model, tokenizer, options.batch_size)),
    }
    read: dict[str, int] = {}
    with slots_read(model, read, "HFLM"):
        logged = theirs.evaluate(theirs.lm, log_samples=True)  # which is the warm-up too
    with slots_read(model, read, "suite"):
        scores = {name: score.value for name, score in suite.evaluate(model, tokenizer, options.batch_size).items()}
    compared = differences(logged, suite.samples(), scores)
    suite.evaluate(model, tokenizer, slots)
    clock = "processor" if device.type == "cpu" else "wall"
    seconds: dict[str, dict[str, list[float]]] = earlier.get("seconds") or {
        way: {"processor": [], "wall": []} for way in ways
    }
    for _ in range(options.repeats):
        found = {way: timed(function, device) for way, function in ways.items()}  # whole rounds only
        for way, (processor, wall) in found.items():
            seconds[way]["processor"].append(processor)
            seconds[way]["wall"].append(wall)
        ratios = {
            way: [a / b for a, b in zip(seconds[way][clock], seconds[against][clock], strict=True)]
            for way, against in AGAINST.items()
        }
        best = min(("loglikelihood", "loglikelihood auto"), key=lambda way: statistics.median(ratios[way]))
        yield {
            "shots": shots,
            "items": sum(info.n for info in suite.capabilities()),
            "requests": len(requests),
            "slots_read": read,
            "rounds": len(seconds["suite"]["wall"]),
            "seconds": seconds,
            "once_seconds": {"load_suite": load_seconds, "first_evaluate": first_seconds},
            "ratio": {
                way: {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}
                for way, values in ratios.items()
            },
            "best": {"way": best, "ratio": statistics.median(ratios[best]), "aim": AIMS.get(shots)},
            **compared,
            "provenance": provenance(),
        }


def table(found: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| shots | way | processor s | wall s | times the suite's | lowest – highest |",
        "|---|---|---|---|---|---|",
    ]
    for part in found:
        for way, seconds in part["seconds"].items():
            processor, wall = (statistics.median(seconds[clock]) for clock in ("processor", "wall"))
            ratio = part["ratio"].get(way)
            shown = f"{ratio['median']:.1f} | {ratio['lowest']:.1f} – {ratio['highest']:.1f}" if ratio else "1 | "
            lines.append(f"| {part['shots']} | {way} | {processor:.2f} | {wall:.2f} | {shown} |")
    about = ("shots", "items", "requests", "rounds", "slots HFLM reads", "slots the suite reads", "ratio")
    compared = ("largest difference of log p, nats", "greedy differences", "flips")
    lines += ["", f"| {' | '.join((*about, *compared))} |", "|---" * 10 + "|"]
    for part in found:
        theirs, ours = part["slots_read"]["HFLM"], part["slots_read"]["suite"]
        cells = (
            *(str(part[name]) for name in ("shots", "items", "requests", "rounds")),
            f"{theirs:,} | {ours:,} | {theirs / ours:.1f}",
            f"{part['max_log_prob_difference']:.1e} | {part['greedy_differences']} | {part['flips']}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def earlier(path: Path, about: dict[str, Any]) -> list[dict[str, Any]]:
    """What the file has, where all but the number of shots was the same."""
    if not path.exists():
        return []
    content = json.loads(path.read_text())
    return list(content["found"]) if {name: content.get(name) for name in about} == about else []


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="micro", help="embedded name, local folder or hub id")
    parser.add_argument(
        "--suite", default="micro", help="a suite of multiple-choice tasks with accuracy as their metric"
    )
    parser.add_argument("--data-dir", type=Path, default=None, help="local folder with the suite's data")
    parser.add_argument("--limit", type=int, default=None, help="items per task")
    parser.add_argument("--shots", type=int, nargs="+", default=[0, 5])
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3, help="rounds, beside those that the file holds")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--output", type=Path, default=OUTPUT / "evaluation.json", help="a table is put beside it")
    options = parser.parse_args()
    if options.device == "cpu":
        torch.set_num_threads(1)  # before anything is computed: processor time is summed over threads
    loaded = load_model(options.model)
    model: Any = loaded.model.eval().to(options.device)
    about = {
        "model": options.model,
        "suite": options.suite,
        "limit": options.limit,
        "device": options.device,
        "batch_size": options.batch_size,
        "slots": found_budget(model.device).n,
        "clock": "processor" if options.device == "cpu" else "wall",
    }
    found = {part["shots"]: part for part in earlier(options.output, about)}
    for shots in options.shots:
        for part in measure(model, loaded.tokenizer, shots, options, found.get(shots, {})):
            found = dict(sorted({**found, shots: part}.items()))
            parts = list(found.values())
            write_atomically(options.output, json.dumps({**about, "found": parts}, indent=1).encode())
            write_atomically(options.output.with_suffix(".md"), table(parts).encode())
            print(f"{shots} shots, round {part['rounds']}", flush=True)
    print(table(list(found.values())))
    for part in found.values():
        best = part["best"]
        took = f"HFLM's best ({best['way']}) takes {best['ratio']:.1f} times as long"
        print(f"{part['shots']} shots: {took}; aim {best['aim']}")


if __name__ == "__main__":
    main()
