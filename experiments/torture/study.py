"""The small study that is tortured: run in forked processes, killed, gone on with, compared with the uninterrupted one.

The parent has imported everything and loaded the model, and never runs a backward pass: a fork then begins a study in
milliseconds, and a hundred kills take minutes.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from forgetting.config import StudyConfig, parse_study
from forgetting.results import ResultStore

EVERY = "2 steps"
MITIGATIONS = (
    "ewc:strength=100,examples=8",
    "lora:r=2,dropout=0.2,merge=false+replay:fraction=0.3,source=both+si+early_stopping:every=2,patience=2",
)


def small_study() -> StudyConfig:
    """Two tasks of the embedded model under every kind of state: penalties, buffers, dropout, kept weights."""
    return parse_study(
        {
            "name": "torture",
            "model": "micro",
            "sequence": {
                "name": "micro-5",
                "tasks": ["new_facts", "sorting"],
                "train_size": 24,
                "validation_size": 8,
                "test_size": 8,
            },
            "mitigations": list(MITIGATIONS),
            "training": {"steps": 6, "batch_size": 4, "max_length": 96, "gradient_accumulation": 1},
            "evaluation": {"suite": "micro", "limit": 4, "drift_tokens": 200},
            "pretraining": {"documents": 16, "held_out_documents": 4},
        }
    )


def warm(folder: Path) -> None:
    """Load what every process of a study in ``folder`` shares."""
    import torch

    import forgetting.avalanche.buffers
    import forgetting.fisher  # noqa: F401  # both on the way of a run, and each fork would import them anew
    from forgetting.run import prepare

    if torch.get_num_threads() != 1:  # a fork does not take other threads along
        torch.set_num_threads(1)
    prepare(small_study().runs()[0], ResultStore(folder))
    gc.freeze()


def run_here(folder: Path) -> None:
    """Run the study, or what is left of it, in this process."""
    from forgetting.study import run_study

    run_study(small_study(), folder, checkpoint_every=EVERY)


PHASES = {
    "training": ("forgetting.trainer:ContinualTrainer.training_step",),
    "evaluation": ("forgetting.evaluation.evaluator:Evaluator.evaluate",),
    "Fisher": ("forgetting.fisher:diagonal_fisher",),
    "checkpoint writing": ("forgetting.checkpoint:write_checkpoint", "forgetting.training_state:write_checkpoint"),
    "result writing": ("forgetting.results:write_atomically",),
}
"""The functions, as they are looked up, that are the phases of a study."""


def wrap(function: str, *, before: Callable[[], None], after: Callable[[], None] = lambda: None) -> None:
    """Have a function of the package, ``module:name``, do something before and after each of its calls."""
    from importlib import import_module

    place, _, path = function.partition(":")
    owner: Any = import_module(place)
    *outer, name = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    inner = getattr(owner, name)

    def called(*arguments: Any, **keywords: Any) -> Any:
        before()
        try:
            return inner(*arguments, **keywords)
        finally:
            after()

    setattr(owner, name, called)


class Process:
    """A forked process that runs the study.

    Args:
        folder: Of the study.
        prepare: Called in it first, with a function that tells the parent of an event.
    """

    def __init__(self, folder: Path, prepare: Callable[[Callable[[str], None]], None] | None = None) -> None:
        reading, writing = os.pipe()
        self.begun = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(reading)
            self._run(folder, writing, prepare)
        os.close(writing)
        os.set_blocking(reading, False)
        self._reading, self._rest = reading, b""
        self.code: int | None = None

    def _run(self, folder: Path, writing: int, prepare: Callable[[Callable[[str], None]], None] | None) -> None:
        from forgetting.interruption import EXIT_CODE, Interrupted

        code = 1
        try:
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, 1)
            os.dup2(nothing, 2)
            if prepare is not None:
                prepare(lambda event: _tell(writing, event))
            run_here(folder)
            code = 0
        except Interrupted:
            code = EXIT_CODE
        except BaseException:
            _tell(writing, "error " + json.dumps(traceback.format_exc()[-1500:]))
        finally:
            sys.stdout.flush()
            os._exit(code)

    def events(self) -> list[str]:
        """Events since the last call."""
        while True:
            try:
                part = os.read(self._reading, 65536)
            except BlockingIOError:
                break
            if not part:
                break
            self._rest += part
        *lines, self._rest = self._rest.split(b"\n")
        return [line.decode() for line in lines]

    def ended(self) -> bool:
        """Whether it is over; then ``code`` is its exit code, or minus the signal's number."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code is not None

    def end(self, number: int = signal.SIGKILL) -> int:
        """Send a signal, wait, and return the code."""
        if not self.ended():
            os.kill(self.pid, number)
        return self.wait()

    def wait(self) -> int:
        """Wait to the end, and return the code.

        Raises:
            RuntimeError: with the process's last words, if it ended by an error.
        """
        while not self.ended():
            time.sleep(0.002)
        words = [event for event in self.events() if event.startswith("error ")]
        os.close(self._reading)
        assert self.code is not None
        if words:
            raise RuntimeError(json.loads(words[0].removeprefix("error ")))
        return self.code


def _tell(writing: int, event: str) -> None:
    os.write(writing, f"{event}\n".encode())


def outcome(folder: Path) -> dict[str, Any]:
    """What must be the same: every run's R, G, items, drift and what was trained; and nothing may be left over."""
    store = ResultStore(folder)
    runs = {}
    for record in store.records():
        runs[record.run_id] = {
            "status": record.status,
            "rows": [row.model_dump(mode="json", exclude={"evaluation_seconds"}) for row in record.rows],
            "items": store.load_items(record.run_id),
            "costs": [cost.model_dump(mode="json", exclude={"seconds"}) for cost in record.cost.tasks],
            "counts": (record.cost.parameters, record.cost.trainable_parameters, record.cost.stored_floats),
        }
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    return {"runs": runs, "files": files}


@cache
def reference(folder: Path) -> tuple[dict[str, Any], float]:
    """Outcome of the uninterrupted study, and how many seconds it takes; it runs in ``folder``, which is gone after."""
    warm(folder)
    process = Process(folder)
    code = process.wait()
    seconds = time.monotonic() - process.begun
    if code != 0:
        raise RuntimeError(f"the uninterrupted study ended with {code}")
    expected = outcome(folder)
    shutil.rmtree(folder)
    return expected, seconds


def difference(folder: Path) -> str:
    """Where the study in a folder is not the uninterrupted one; empty if nowhere."""
    expected, found = reference(folder)[0], outcome(folder)
    if expected["files"] != found["files"]:
        return f"files differ: {sorted(set(expected['files']) ^ set(found['files']))}"
    for run_id, run in expected["runs"].items():
        for key, value in run.items():
            if json.dumps(found["runs"][run_id][key]) != json.dumps(value):
                return f"{run_id}: {key} differ"
    return ""
