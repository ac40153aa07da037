"""The real client code against the local hub; run in a process of its own, for the hub's address is read on import.

``python -m tests.robustness.hub_client FOLDER`` prints what each case gave, as JSON: the first try, and the second.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.robustness.hub_server import Hub, Repository, folder_files

FAULTS: dict[str, tuple[str | int, int]] = {
    "whole": ("whole", 0),
    "slow": ("slow", 10**9),
    "cut": ("cut", 1),
    "torn": ("cut", 200),
    "short": ("short", 1),
    "halved": ("short", 10**9),
    "stalls": ("stalls", 40),
    "error500": (500, 40),
    "gated": (403, 40),
}

TIMEOUT = 0.4
"""Seconds after which the client gives a request up."""


def main(folder: Path, kinds: Sequence[str] = ("models", "datasets"), faults: Sequence[str] = tuple(FAULTS)) -> None:
    """Serve, load everything twice, print."""
    data = "".join(f'{{"prompt": "question {i} {"x" * 90}", "completion": " yes"}}\n' for i in range(40)).encode()
    repositories: dict[str, Repository] = {}
    for name, (fault, times) in FAULTS.items():
        repositories[f"models/some/{name}"] = Repository({}, fault, times)
        repositories[f"datasets/some/{name}"] = Repository({"train.jsonl": data}, fault, times)
    hub = Hub(repositories)
    os.environ |= {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "HF_DATASETS_OFFLINE": "0",
        "HF_HOME": str(folder / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }

    from huggingface_hub import constants

    # Whole seconds are all that its variables take; here no answer takes long that comes.
    constants.HF_HUB_DOWNLOAD_TIMEOUT = constants.HF_HUB_ETAG_TIMEOUT = TIMEOUT  # type: ignore[assignment]
    import huggingface_hub.utils._http as http

    http.time = SimpleNamespace(sleep=lambda seconds: None, time=time.time)  # between its tries it would wait a minute
    import datasets.config

    datasets.config.STREAMING_READ_MAX_RETRIES = datasets.config.STREAMING_OPEN_MAX_RETRIES = 3  # of 20, 5 s apart
    datasets.config.STREAMING_READ_RETRY_INTERVAL = datasets.config.STREAMING_OPEN_RETRY_INTERVAL = 0
    from tests.models_for_tests import save_tiny

    files = folder_files(save_tiny(folder / "tiny"))
    without = {"config.json": files["config.json"], "pytorch_model.bin": b"\x80\x04" * 2000}
    for name in FAULTS:
        repositories[f"models/some/{name}"].files.update(files)
    repositories["models/some/pickles"] = Repository({**files, **without})
    del repositories["models/some/pickles"].files["model.safetensors"]
    from forgetting.config import TaskConfig
    from forgetting.errors import UsageError
    from forgetting.models import load_model
    from forgetting.tasks.build import load_task

    def tried(kind: str, name: str) -> dict[str, Any]:
        try:
            if kind == "models":
                loaded = load_model(f"some/{name}")
                return {"weights": float(sum(p.detach().double().abs().sum() for p in loaded.model.parameters()))}
            task = load_task(TaskConfig(name="t", format="hub", train=f"some/{name}"))
            return {"examples": len(task.train) + len(task.validation) + len(task.test)}
        except UsageError as error:
            return {"error": str(error)}

    results: dict[str, list[dict[str, Any]]] = {}
    for kind in kinds:
        for name in (*faults, "absent", *(["pickles"] if kind == "models" else [])):
            results[f"{kind} {name}"] = [tried(kind, name)]
            repository = repositories.get(f"{kind}/some/{name}")
            if repository is not None:
                repository.times = 0  # the hub is well again
            results[f"{kind} {name}"].append(tried(kind, name))
            print(time.strftime("%X"), kind, name, results[f"{kind} {name}"], file=sys.stderr, flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *(part.split(",") for part in sys.argv[2:]))
