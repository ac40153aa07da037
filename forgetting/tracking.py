"""Weights & Biases, when asked: offline where there is no network or key, never required."""

from __future__ import annotations

import logging
import os
import socket
from typing import TYPE_CHECKING, Any

logger = logging.getLogger(__name__)

TIMEOUT = 60.0
"""Seconds that a run waits for wandb's server, when it begins and when it ends."""

if TYPE_CHECKING:
    from forgetting.results import RunRecord


def _online() -> bool:
    """Whether wandb can be reached with a key; a run must never wait for, or fail by, a log server."""
    if os.environ.get("WANDB_MODE"):
        return os.environ["WANDB_MODE"] == "online"
    import netrc

    try:
        has_key = bool(os.environ.get("WANDB_API_KEY")) or "api.wandb.ai" in netrc.netrc().hosts
        if has_key:
            socket.create_connection(("api.wandb.ai", 443), timeout=3).close()
    except (OSError, netrc.NetrcParseError):
        return False
    return has_key


class Tracker:
    """Logs rows to wandb; without a project it does nothing.

    Args:
        project: The wandb project.
        folder: Where wandb's files go.
    """

    def __init__(self, project: str | None = None, folder: str = ".") -> None:
        self.project = project
        self.folder = folder
        self._run: Any = None

    def start(self, record: RunRecord) -> None:
        """Open (or, after an interruption, continue) the wandb run of a record."""
        if self.project is None:
            return
        try:
            self._run = self._begin(record)
        except Exception as error:  # a log server, its library or its folder: none may end a run
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        problem = " ".join(str(error).split())[:200] or type(error).__name__
        logger.warning("wandb: %s; going on without it, results are in the study's folder", problem)
        self._run = None

    def _begin(self, record: RunRecord) -> Any:
        import wandb

        return wandb.init(
            project=self.project,
            dir=self.folder,
            id=f"{record.study}-{record.run_id}",
            name=record.run_id,
            group=record.study,
            config=record.config.model_dump(mode="json"),
            mode="online" if _online() else "offline",
            resume="allow",
            # By default wandb waits for its server for as long as it takes.
            settings=wandb.Settings(
                silent=True, init_timeout=TIMEOUT, finish_timeout=TIMEOUT, finish_timeout_raises=True
            ),
        )

    def row(self, record: RunRecord) -> None:
        """Log the last row: a value per task and capability."""
        if self._run is None:
            return
        row = record.rows[-1]
        values: dict[str, float] = {f"R/{t.name}": v for t, v in zip(record.tasks, row.R, strict=True)}
        values |= {f"G/{c.name}": v for c, v in zip(record.capabilities, row.G, strict=True)}
        values |= {f"ce/{name}": drift.ce for name, drift in row.drift.items()}
        try:
            self._run.log(values, step=len(record.rows) - 1)
        except Exception as error:
            self._give_up(error)

    def finish(self, record: RunRecord) -> None:
        """Close the wandb run with the record's status."""
        if self._run is None:
            return
        try:
            self._run.summary["status"] = record.status
            self._run.finish(exit_code=0 if record.status == "finished" else 1)
            self._run = None
        except Exception as error:
            self._give_up(error)
