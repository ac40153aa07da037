"""How much faster is scoring a suite after a task than lm-eval with its HFLM? Same items, same scores.

Command::

    python experiments/benchmarks/evaluation.py --model micro --repeats 3

Three ways, in one process, interleaved, median over the repeats:

- ``simple_evaluate``: lm-eval as a user calls it after every task: tasks loaded, HFLM made, ``simple_evaluate``.
- ``evaluate``: lm-eval at its best: tasks and HFLM made once, only ``lm_eval.evaluator.evaluate`` is timed.
- ``suite``: ``Suite.evaluate``; loading and the first call, which tokenises, are given apart.

Standard errors and logged samples are switched off in lm-eval; both sides have the same batch size and threads.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from forgetting.evaluation.catalogue import Catalogue, quiet
from forgetting.evaluation.suite import load_suite
from forgetting.models import load_model
from forgetting.provenance import provenance
from forgetting.results import write_atomically

OUTPUT = Path(__file__).resolve().parents[2] / "results" / "benchmarks" / "evaluation.json"


class LmEval:
    """lm-eval's own evaluation of the suite's tasks."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: argparse.Namespace) -> None:
        self.model, self.tokenizer, self.options = model, tokenizer, options
        self.lm = self._lm()
        self.tasks = self._tasks()

    def _lm(self) -> Any:
        from lm_eval.models.huggingface import HFLM

        with quiet():
            return HFLM(
                self.model,
                tokenizer=self.tokenizer,
                batch_size=self.options.batch_size,
                device=str(self.model.device),
            )

    def _tasks(self) -> dict[str, Any]:
        columns = Catalogue(self.options.data_dir).load(self.options.suite)
        return {task.task_name: task for column in columns for task in column.tasks}

    def simple_evaluate(self) -> dict[str, float]:
        """Everything that one call of lm-eval does."""
        from lm_eval.evaluator import simple_evaluate
        from lm_eval.tasks import TaskManager

        tasks, lm = list(self._tasks().values()), self._lm()
        with quiet():
            results = simple_evaluate(
                lm,
                tasks=tasks,
                task_manager=TaskManager(include_defaults=False),
                limit=self.options.limit,
                bootstrap_iters=0,
                log_samples=False,
            )
        return _scores(results)

    def evaluate(self) -> dict[str, float]:
        """Only building requests and scoring them."""
        from lm_eval.evaluator import evaluate

        with quiet():
            results = evaluate(
                self.lm, {"tasks": self.tasks}, limit=self.options.limit, bootstrap_iters=0, log_samples=False
            )
        return _scores(results)


def _scores(results: Any) -> dict[str, float]:
    return {name: scores["acc,none"] for name, scores in results["results"].items()}


def timed(function: Callable[[], dict[str, float]]) -> tuple[float, dict[str, float]]:
    """Seconds and result."""
    begun = time.perf_counter()
    result = function()
    return time.perf_counter() - begun, result


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="micro", help="embedded name, local folder or hub id")
    parser.add_argument("--suite", default="micro", help="a suite of multiple-choice tasks")
    parser.add_argument("--data-dir", type=Path, default=None, help="local folder with the suite's data")
    parser.add_argument("--limit", type=int, default=None, help="items per task")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()

    loaded = load_model(options.model)
    model, tokenizer = loaded.model.eval(), loaded.tokenizer
    lm_eval = LmEval(model, tokenizer, options)
    load_seconds = -time.perf_counter()
    suite = load_suite([options.suite], data_dir=options.data_dir, limit=options.limit)
    load_seconds += time.perf_counter()

    def evaluate_suite() -> dict[str, float]:
        return {name: score.value for name, score in suite.evaluate(model, tokenizer, options.batch_size).items()}

    first_seconds, _ = timed(evaluate_suite)
    lm_eval.evaluate()  # warm-up: neither side is timed cold
    ways = {"simple_evaluate": lm_eval.simple_evaluate, "evaluate": lm_eval.evaluate, "suite": evaluate_suite}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    scores: dict[str, dict[str, float]] = {}
    for _ in range(options.repeats):
        for way, function in ways.items():
            elapsed, scores[way] = timed(function)
            seconds[way].append(elapsed)
    median = {way: statistics.median(values) for way, values in seconds.items()}
    result = {
        "suite": options.suite,
        "model": options.model,
        "items": sum(info.n for info in suite.capabilities()),
        "batch_size": options.batch_size,
        "repeats": options.repeats,
        "median_seconds": median,
        "seconds": seconds,
        "once_seconds": {"load_suite": load_seconds, "first_evaluate": first_seconds},
        "ratio_to_suite": {way: median[way] / median["suite"] for way in ("simple_evaluate", "evaluate")},
        "max_score_difference": max(
            abs(scores["suite"][name] - scores[way][name])
            for way in ("simple_evaluate", "evaluate")
            for name in scores["suite"]
        ),
        "provenance": provenance(),
    }
    write_atomically(options.output, json.dumps(result, indent=1).encode())
    print(
        f"{options.suite} suite, {result['items']} items, batches of {options.batch_size}, "
        f"{torch.get_num_threads()} threads, median of {options.repeats}"
    )
    for way in ("simple_evaluate", "evaluate"):
        print(f"  lm-eval {way:16s} {median[way]:8.2f} s   {median[way] / median['suite']:5.1f} x")
    print(f"  Suite.evaluate           {median['suite']:8.2f} s   (once: {load_seconds + first_seconds:.2f} s)")
    print(f"  largest difference of a score: {result['max_score_difference']:.3g}")


if __name__ == "__main__":
    main()
