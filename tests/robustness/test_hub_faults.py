"""The hub, whole, slow, cut short, silent and failing: real client code against a local server of its API."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
DAMAGED = "came damaged, and was deleted from the cache; try again"
NO_ANSWER = "the hub did not answer, or not in full; try again"


@pytest.fixture(scope="module")
def tries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Two tries of every case: with the fault, and after the hub is well again."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.robustness.hub_client", str(tmp_path_factory.mktemp("hub"))],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=540,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("kind", "case"),
    [("models", "slow"), ("models", "cut"), ("datasets", "slow"), ("datasets", "cut"), ("datasets", "short")],
)
def test_what_is_slow_or_breaks_off_once_is_loaded_whole(tries: dict[str, Any], kind: str, case: str) -> None:
    whole = tries[f"{kind} whole"][0]
    assert "error" not in whole and tries[f"{kind} {case}"] == [whole, whole]


@pytest.mark.parametrize(
    ("kind", "case", "said"),
    [
        ("models", "short", DAMAGED),
        ("models", "halved", DAMAGED),
        ("datasets", "halved", "split 'train': ended before it was read whole"),
        *(
            (kind, case, said)
            for kind in ("models", "datasets")
            for case, said in (
                ("torn", NO_ANSWER),
                ("stalls", NO_ANSWER),
                ("error500", "the hub failed (status 500); try again later"),
                ("gated", "the hub refuses it; accept its terms on its page and log in"),
            )
        ),
    ],
)
def test_a_failing_hub_is_one_line_and_a_second_try_is_whole(
    tries: dict[str, Any], kind: str, case: str, said: str
) -> None:
    first, second = tries[f"{kind} {case}"]
    assert f"'some/{case}'" in first["error"] and said in first["error"] and "\n" not in first["error"]
    assert second == tries[f"{kind} whole"][0]


@pytest.mark.parametrize("kind", ["models", "datasets"])
def test_a_name_that_the_hub_does_not_have(tries: dict[str, Any], kind: str) -> None:
    for answer in tries[f"{kind} absent"]:
        assert (
            "'some/absent'" in answer["error"] and "the hub has none of that name, or a private one" in answer["error"]
        )


def test_a_model_that_holds_pickles_only_is_refused_with_the_conversion(tries: dict[str, Any]) -> None:
    for answer in tries["models pickles"]:
        assert "pickled weights can run code" in answer["error"] and "save_pretrained(folder)" in answer["error"]
