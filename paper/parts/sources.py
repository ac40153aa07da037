"""Reading what is there: summaries, records, benchmarks, and the constants of scripts."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parts.latex import Output

if TYPE_CHECKING:
    import pandas as pd

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Part:
    """What one folder of results gives the article.

    Attributes:
        key: Of ``sections/<key>.tex``, which the article includes, or else that it is not run.
        needs: Paths below ``results`` without which it is not run.
        command: Makes them.
        build: Adds macros, tables and figures, from the folder of results.
        provenance: Files below ``results`` that say which commit made them, as patterns.
    """

    key: str
    needs: tuple[str, ...]
    command: str
    build: Callable[[Path, Output], None]
    provenance: tuple[str, ...]

    def present(self, results: Path) -> bool:
        """Whether all that it needs is there."""
        return all((results / path).exists() for path in self.needs)


def read_json(path: Path) -> Any:
    """A JSON file."""
    return json.loads(path.read_text("utf-8"))


def points(summary: Path) -> pd.DataFrame:
    """A study's stored summary as a row per mitigation and view, with 95% t intervals over seeds."""
    import pandas as pd

    from forgetting.report.summary import aggregate

    frame = pd.read_csv(summary)
    frame["view"] = frame["view"].fillna("")
    return aggregate(frame)


def constant(script: str, name: str) -> Any:
    """A constant of a script that is a literal, read without running it.

    Args:
        script: Path from the repository's root.
        name: Of the constant.

    Raises:
        ValueError: if the script has no such constant.
    """
    for node in ast.parse((ROOT / script).read_text("utf-8")).body:
        if isinstance(node, ast.Assign):
            targets, value = node.targets, node.value
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            targets, value = [node.target], node.value
        else:
            continue
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return ast.literal_eval(value)
    raise ValueError(f"name: {script} has no constant {name!r}")


def found_in(path: str, pattern: str) -> str:
    """The first group of a pattern in a file of the repository.

    Raises:
        ValueError: if it is not there.
    """
    match = re.search(pattern, (ROOT / path).read_text("utf-8"))
    if match is None:
        raise ValueError(f"pattern: {pattern!r} is not in {path}")
    return match[1]


def provenances(results: Path, patterns: Iterable[str]) -> list[dict[str, Any]]:
    """What the files of the patterns, or their parts, say of the commit and the machine that made them."""
    contents = [read_json(path) for pattern in patterns for path in sorted(results.glob(pattern))]
    parts = [part for content in contents for part in content.get("found", [content])]
    return [part.get("provenance", part) for part in parts]


def commits(made: Iterable[dict[str, Any]]) -> list[str]:
    """The commits, seven characters each; a plus: with uncommitted changes."""
    gits = [provenance["git"] for provenance in made]
    return sorted(
        {git["commit"][:7] + ("+" if git["dirty"] else "") if git.get("commit") else "unknown" for git in gits}
    )


def machines(made: Iterable[dict[str, Any]]) -> list[str]:
    """The machines: processor, cores, GPU."""
    hardware = [provenance["hardware"] for provenance in made]
    return sorted({f"{h['processor']} with {h['cores']} cores and {h['gpu'] or 'no GPU'}" for h in hardware})
