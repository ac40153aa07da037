"""Where a result comes from: versions, git state, hardware, memory."""

from __future__ import annotations

import hashlib
import os
import platform
import resource
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from forgetting.distributed import sharded, world_size

LIBRARIES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "lm-eval",
    "avalanche-lib",
    "numpy",
    "scipy",
)


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def library_versions() -> dict[str, str | None]:
    """Installed versions of what numbers depend on; nothing is imported."""
    return {name: _version(name) for name in LIBRARIES}


def code_state() -> dict[str, Any]:
    """What ran, without a look at the hardware: versions, git state, platform and command. Imports no library."""
    commit = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return {
        "package": _version("forgetting"),
        "libraries": library_versions(),
        "python": platform.python_version(),
        "git": {"commit": commit, "dirty": bool(changes)} if commit else None,
        "platform": platform.platform(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def source_digest() -> str:
    """SHA-256 of the package's Python files as they are, names and contents: also where there is no git."""
    root, digest = Path(__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def processes() -> dict[str, Any]:
    """Of several processes that train one model: how many, and what of the weights each has; nothing of one."""
    if world_size() == 1:
        return {}
    return {"processes": {"number": world_size(), "weights": "sharded (FSDP2)" if sharded() else "replicated (DDP)"}}


def provenance(notes: dict[str, Any] | None = None) -> dict[str, Any]:
    """Everything that is needed to tell where a number was made.

    Args:
        notes: Of the pretraining text (where it came from).
    """
    import torch

    cuda = torch.cuda.is_available()
    return {
        **code_state(),
        "hardware": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if cuda else None,
            **processes(),
        },
        "pretraining_text": notes or {},
    }


def peak_memory_bytes() -> int:
    """Peak of the GPU's allocator, or of the process's resident set where there is no GPU."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)  # kilobytes on Linux
