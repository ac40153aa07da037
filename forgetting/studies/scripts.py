"""The studies' scripts in ``experiments/``: finding them, and the command line that each of them has."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import math
import sys
import time
from pathlib import Path
from typing import get_args

from forgetting import interruption
from forgetting.errors import UsageError, did_you_mean
from forgetting.studies.running import conclude, run_named
from forgetting.studies.study import Scale, Study
from forgetting.verdicts import Verdict


def scripts() -> dict[str, Path]:
    """The studies' scripts by name: files of ``experiments/`` that define ``STUDY``, beside the package or here.

    Raises:
        UsageError: if there is no such folder: the scripts come with the repository, not with the package.
    """
    for folder in (Path.cwd() / "experiments", Path(__file__).resolve().parents[2] / "experiments"):
        found = {path.stem: path for path in sorted(folder.glob("*.py")) if "\nSTUDY = " in path.read_text("utf-8")}
        if found:
            return found
    raise UsageError("studies: no folder experiments/ with studies here; run this in a clone of the repository")


def headline(path: Path) -> str:
    """The first line of a script's docstring, without running it."""
    return (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or path.stem).splitlines()[0]


def load(name: str) -> Study:
    """Import a study's script.

    Raises:
        UsageError: if there is none of that name.
    """
    known = scripts()
    if name not in known:
        raise UsageError(f"study {name!r}: is none{did_you_mean(name, known)}")
    spec = importlib.util.spec_from_file_location(f"experiments.{name}", known[name])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    study = module.STUDY
    assert isinstance(study, Study) and study.name == name, f"{known[name]}: STUDY must be a Study named {name!r}"
    return study


def scale_of(text: str) -> Scale:
    """Check a scale's name.

    Raises:
        UsageError: if it is none.
    """
    if text not in get_args(Scale):
        raise UsageError(f"scale {text!r}: is none of {', '.join(get_args(Scale))}")
    return text  # type: ignore[return-value]


def print_verdicts(study: Study, verdicts: list[Verdict]) -> None:
    """A line per claim."""
    sentences = {claim.key: claim.sentence for claim in study.claims}
    for verdict in verdicts:
        print(f"{study.name}: {sentences[verdict.claim]}: {verdict.outcome.upper()}: {verdict.ours}")


def main(study: Study, description: str | None = None) -> None:
    """The command line of a study's script."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=get_args(Scale), default="laptop")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--hours", type=float, default=math.inf, help="begin no run after so many hours")
    parser.add_argument("--output", type=Path, default=Path("results"), help="folder of all studies' results")
    parser.add_argument("--draw", action="store_true", help="verdicts and figures from results alone")
    options = parser.parse_args()
    try:
        if options.draw:
            verdicts = conclude(study, options.output, options.scale)
        else:
            until = time.monotonic() + 3600 * options.hours
            verdicts = run_named(study, options.output, options.scale, workers=options.workers, until=until)
    except interruption.Interrupted as stop:
        print(f"{stop}; continue with the same command", file=sys.stderr)
        sys.exit(interruption.EXIT_CODE)
    except UsageError as error:
        sys.exit(f"error: {error}")
    print_verdicts(study, verdicts)
