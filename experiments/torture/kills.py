"""Kill −9, power cuts, signals, and a second process, at random moments of a study that is then gone on with."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

from experiments.torture.registry import Outcome, fault
from experiments.torture.study import PHASES, Process, difference, reference, warm, wrap

KILLS = 4
"""At most so many in one study, before it is let to its end."""
DRAWS = random.Random(0)

Prepare = Callable[[Callable[[str], None]], None]


def begin(folder: Path) -> Path:
    """Measure the uninterrupted study, if that was not done, and load what a study in ``folder`` needs."""
    study = folder / "study"
    reference(study)
    warm(study)
    return study


def _finish(folder: Path, causes: int) -> Outcome:
    """Go on to the end without a fault, and compare."""
    code = Process(folder).wait()
    problem = f"the last process ended with {code}" if code else difference(folder)
    return Outcome(0 if problem else causes, causes, problem)


def _killed_again_and_again(folder: Path, kill: Callable[[Process], bool], prepare: Prepare | None = None) -> Outcome:
    """Begin the study and have ``kill`` end it, up to KILLS times; then go on to its end and compare.

    Args:
        folder: Empty.
        kill: Ends a process, or sees it end; returns whether it was killed.
        prepare: See Process.
    """
    study = begin(folder)
    kills = 0
    for _ in range(KILLS):
        process = Process(study, prepare)
        if not kill(process):
            break
        kills += 1
    return _finish(study, kills) if kills else Outcome(0, 0)


@fault("kill -9 at any moment", "SIGKILL after a random time, uniform over the first 70 % of what the study takes")
def kill_at_any_moment(folder: Path) -> Outcome:
    """Without looking at what the process does."""

    def kill(process: Process) -> bool:
        time.sleep(DRAWS.uniform(0, 0.7 * reference(folder / "study")[1]))
        return process.end() == -signal.SIGKILL

    return _killed_again_and_again(folder, kill)


def named(phase: str) -> str:
    """The functions that are a phase."""
    return ", ".join(function.partition(":")[2] for function in PHASES[phase][:1])


def _in_phase(phase: str, longest: float) -> Callable[[Path], Outcome]:
    """Kill within a phase: at a random one of its calls, after a random part of ``longest`` seconds."""

    def prepare(tell: Callable[[str], None]) -> None:
        for function in PHASES[phase]:
            wrap(function, before=lambda: tell(phase))

    def cause(folder: Path) -> Outcome:
        def kill(process: Process) -> bool:
            left = DRAWS.randint(1, 4)
            while not process.ended():
                left -= len([event for event in process.events() if event == phase])
                if left <= 0:
                    time.sleep(DRAWS.uniform(0, longest))
                    break
                time.sleep(0.0005)
            return process.end() == -signal.SIGKILL

        return _killed_again_and_again(folder, kill, prepare)

    return cause


for _phase, _longest in (("training", 0.1), ("evaluation", 0.5), ("Fisher", 0.2)):
    fault(f"kill -9 in {_phase}", f"SIGKILL at a random moment of a random call of {named(_phase)}")(
        _in_phase(_phase, _longest)
    )

CALLS = ("fsync", "replace", "rename", "link", "unlink", "rmdir", "mkdir")


def _at_a_call(phase: str) -> Callable[[Path], Outcome]:
    """Kill before or after a random one of the system calls that a writing makes, so that each is met."""

    def cause(folder: Path) -> Outcome:
        def prepare(tell: Callable[[str], None]) -> None:
            left, after = [DRAWS.randint(1, 40)], DRAWS.random() < 0.5
            writing = [False]

            def counted(inner: Callable) -> Callable:
                def call(*arguments: object, **keywords: object) -> object:
                    left[0] -= writing[0]
                    if left[0] == 0 and not after:
                        os.kill(os.getpid(), signal.SIGKILL)
                    result = inner(*arguments, **keywords)
                    if left[0] == 0 and writing[0]:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return result

                return call

            for name in CALLS:
                setattr(os, name, counted(getattr(os, name)))
            for function in PHASES[phase]:
                wrap(
                    function,
                    before=lambda: writing.__setitem__(0, True),
                    after=lambda: writing.__setitem__(0, False),
                )

        def kill(process: Process) -> bool:
            DRAWS.random()  # each process draws another moment
            return process.wait() == -signal.SIGKILL

        return _killed_again_and_again(folder, kill, prepare)

    return cause


for _phase in ("checkpoint writing", "result writing"):
    fault(f"kill -9 in {_phase}", f"SIGKILL before or after a random fsync, rename or unlink of {named(_phase)}")(
        _at_a_call(_phase)
    )


@fault("power cut", "SIGKILL; then a file of the newest checkpoint is cut short, lost, or has a bit turned")
def power_cut(folder: Path) -> Outcome:
    """What was not flushed is lost in a power cut, and disks err."""

    def kill(process: Process) -> bool:
        time.sleep(DRAWS.uniform(0, 0.7 * reference(folder / "study")[1]))
        if process.end() != -signal.SIGKILL:
            return False
        checkpoints = [path for path in (folder / "study" / "checkpoints").glob("*/row-*") if path.is_dir()]
        if checkpoints:
            newest = max(checkpoints, key=lambda path: path.stat().st_mtime_ns)
            if files := sorted(newest.iterdir()):  # none where it was being deleted
                spoil(DRAWS.choice(files))
        return True

    return _killed_again_and_again(folder, kill)


def spoil(file: Path) -> None:
    """Cut a file short, delete it, or turn a bit in it."""
    content = bytearray(file.read_bytes())
    how = DRAWS.choice(("cut", "lost", "turned"))
    if how == "lost":
        file.unlink()
    elif how == "cut":
        file.write_bytes(content[: DRAWS.randrange(len(content))])
    else:
        content[DRAWS.randrange(len(content))] ^= 1 << DRAWS.randrange(8)
        file.write_bytes(content)


@fault("SIGTERM", "SIGTERM at a random moment: exit code 75; then the rest is done")
def preempted(folder: Path) -> Outcome:
    """A cluster's preemption."""
    from forgetting.interruption import EXIT_CODE

    codes: list[int] = []

    def stop(process: Process) -> bool:
        while not process.ended() and not process.events():
            time.sleep(0.001)
        time.sleep(DRAWS.uniform(0, 0.7 * reference(folder / "study")[1]))
        codes.append(process.end(signal.SIGTERM))
        return codes[-1] != 0

    def prepare(tell: Callable[[str], None]) -> None:
        wrap("forgetting.launch:launch", before=lambda: tell("launched"))

    result = _killed_again_and_again(folder, stop, prepare)
    wrong = sorted({code for code in codes if code not in (0, EXIT_CODE)})
    return Outcome(0, result.tried, f"exit codes {wrong}") if wrong else result


@fault("two processes resume one study", "a second process begins while the first runs, and is refused; the first ends")
def two_at_once(folder: Path) -> bool:
    """The first is whole in the end, and the second wrote nothing."""
    study = begin(folder)
    first = Process(study)
    while not first.ended() and not (study / ".lock").exists():
        time.sleep(0.001)
    try:
        Process(study).wait()
    except RuntimeError as error:
        refused = f"process {first.pid} on" in str(error) and "UsageError" in str(error)
    else:
        refused = False
    return first.wait() == 0 and refused and not difference(study)
