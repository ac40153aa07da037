"""What workers do in tests of the launcher instead of runs; light, for each worker imports it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from forgetting import interruption
from forgetting.errors import UsageError


def _wait_for(file: Path) -> None:
    while not file.exists():
        time.sleep(0.01)


def killed_beside_an_idle_one(content: dict[str, Any], folder: str, *_: object) -> None:
    """The first run is over at once; the second one's worker is killed while the first one's waits for work."""
    if content["mitigation"] == "naive":
        (Path(folder) / "idle").touch()
        return
    _wait_for(Path(folder) / "idle")
    time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGKILL)


def refused_beside_a_step(content: dict[str, Any], folder: str, *_: object) -> None:
    """The second run is refused while the first is within a step, which it ends and saves."""
    with interruption.released(), interruption.held():
        if content["mitigation"] == "naive":
            (Path(folder) / "stepping").touch()
            while interruption.requested() is None:
                time.sleep(0.01)
            time.sleep(1)
            (Path(folder) / "saved").touch()
            return
        _wait_for(Path(folder) / "stepping")
        raise UsageError("no room")


def refused_beside_one_that_hangs(content: dict[str, Any], folder: str, *_: object) -> None:
    """As before, but the first never ends its step."""
    with interruption.released(), interruption.held():
        if content["mitigation"] == "naive":
            (Path(folder) / "stepping").touch()
            while True:
                time.sleep(0.01)
        _wait_for(Path(folder) / "stepping")
        raise UsageError("no room")


def never_ending(content: dict[str, Any], folder: str, *_: object) -> None:
    """It computes, and gives its interpreter away no more often than it must."""
    (Path(folder) / f"begun-{os.getpid()}").touch()
    while True:
        sum(range(1000))
