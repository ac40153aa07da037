"""Offline, two threads at most, and the real data where a developer has them."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["OMP_NUM_THREADS"] = "1"  # two workers on two cores: more threads would fight

import pytest

if TYPE_CHECKING:
    from forgetting.results import ResultStore

REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

_modules_seen = 0


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Keep the libraries out of garbage collection, wherever more of them were imported.

    Accelerate collects garbage before every training: of torch and transformers there is none, and to look took 0.3 s.
    """
    global _modules_seen
    if len(sys.modules) > _modules_seen + 100:
        gc.collect()
        gc.freeze()
        _modules_seen = len(sys.modules)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Real data sets and models that developers keep beside the repository."""
    if not REAL_DATA.is_dir():
        pytest.skip("the real data sets are not beside this checkout (../shared/data)")
    return REAL_DATA


@pytest.fixture(scope="session")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> ResultStore:
    """The tiny study (``tests/tiny_study.py``), run in this process."""
    from forgetting.results import ResultStore
    from forgetting.study import run_study
    from tests.tiny_study import tiny_study

    folder = tmp_path_factory.mktemp("one") / "tiny"
    run_study(tiny_study(), folder)
    return ResultStore(folder)
