"""The Triton kernel: in the interpreter everywhere (a process of its own), on a GPU where there is one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

CHECK = Path(__file__).with_name("check_kernel.py")


def test_in_the_interpreter_it_equals_torch() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, str(CHECK), "cpu"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all agree" in done.stdout


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device: python tests/fisher/check_kernel.py cuda"
)
def test_on_a_gpu_it_equals_torch() -> None:
    done = subprocess.run([sys.executable, str(CHECK), "cuda"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
