"""The probes: a multiple-choice lm-eval task per skill, with its items and its chance level.

``lm_eval.tasks.TaskManager(include_path=str(probe_directory()))`` finds the tasks ``micro_<skill>`` and their
common tag ``micro``.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forgetting.errors import UsageError, did_you_mean
from forgetting.micro.skills import SKILLS, ProbeItem
from forgetting.micro.world import WORLD_SEED, build_world

if TYPE_CHECKING:
    import datasets

ITEMS = 200
PROBE_SEED = 0
PREFIX = "micro_"
VERSION = 1.0

_TASK = """\
task: {name}
tag: micro
custom_dataset: !function forgetting.micro.probes.lm_eval_dataset
dataset_kwargs:
  probe: {name}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{context}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{gold}}}}"
target_delimiter: " "
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: {version}
  chance: {chance}
"""


def probe_directory() -> Path:
    """Return the folder with the lm-eval task files, for ``TaskManager(include_path=...)``."""
    return Path(__file__).resolve().parent


def probe_names() -> tuple[str, ...]:
    """Return the task names, one per skill."""
    return tuple(PREFIX + skill for skill in SKILLS)


def generate_probe(name: str) -> list[ProbeItem]:
    """Return the items of a probe as its skill generates them (what the shipped file holds)."""
    skill = SKILLS[_skill_name(name)](build_world(WORLD_SEED))
    return skill.probe(ITEMS, random.Random(f"{name}-{PROBE_SEED}"))


def load_probe(name: str) -> list[ProbeItem]:
    """Return the items of a shipped probe.

    Raises:
        UsageError: if there is no such probe.
    """
    _skill_name(name)
    lines = (probe_directory() / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [ProbeItem(**{**row, "choices": tuple(row["choices"])}) for row in map(json.loads, lines)]


def probe_chance(name: str) -> float:
    """Return the accuracy of guessing on a probe."""
    return 1 / SKILLS[_skill_name(name)].choices


def write_probes(directory: Path) -> None:
    """Write every probe's items (JSONL) and lm-eval task (YAML) into a folder."""
    for name in probe_names():
        rows = [
            {"kind": item.kind, "context": item.context, "choices": list(item.choices), "gold": item.gold}
            for item in generate_probe(name)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (directory / f"{name}.jsonl").write_text(text, encoding="utf-8")
        task = _TASK.format(name=name, version=VERSION, chance=probe_chance(name))
        (directory / f"{name}.yaml").write_text(task, encoding="utf-8")


def lm_eval_dataset(probe: str, **metadata: Any) -> dict[str, datasets.Dataset]:
    """Return a probe as lm-eval wants it (it also passes on the task's metadata)."""
    import datasets

    text = (probe_directory() / f"{probe}.jsonl").read_text(encoding="utf-8")
    return {"test": datasets.Dataset.from_list([json.loads(line) for line in text.splitlines()])}


def _skill_name(name: str) -> str:
    if name not in probe_names():
        raise UsageError(f"probe: {name!r} is not a probe{did_you_mean(name, probe_names())}")
    return name.removeprefix(PREFIX)
