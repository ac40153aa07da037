"""What an audit starts from: a base model, a tuned one (full weights or an adapter), a suite, and the own task."""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forgetting.errors import UsageError
from forgetting.models import LoadedModel, load_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from forgetting.audit.score_cache import ScoreCache
    from forgetting.evaluation.budget import Slots
    from forgetting.evaluation.suite import Suite
    from forgetting.tasks.task import Task

PROBE = "The cat's 3 hats, naïve: 1,024 µm?\n\tdef f(x): return x"
"""A text that tokenizers of one vocabulary and two ways to split would split in two ways."""
BATCH_SIZE = 64
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True)
class AuditInput:
    """All that an audit reads.

    Attributes:
        base: The pretrained model.
        tuned: The fine-tune, in full weights: an adapter is merged into a copy of the base.
        suite: What the base model could do.
        own: What was fine-tuned for; its test split is scored. ``None`` where no data were given.
        batch_size: Sequences per forward pass.
        same_tokenizer: Whether both split every text alike; else nothing is compared token by token.
        adapter: peft's configuration of the adapter, where TUNED is one.
        suite_names, suite_dir: What the suite was loaded from.
        own_rows: Of each item of the own task's test split the row of the file that it was made of.
        slots: Of a forward pass of the suite, instead of ``batch_size`` sequences.
        cache: Where responses to the suite are kept.
    """

    base: LoadedModel
    tuned: LoadedModel
    suite: Suite
    own: Task | None
    batch_size: int
    same_tokenizer: bool
    adapter: dict[str, Any] | None = None
    suite_names: tuple[str, ...] = ()
    suite_dir: Path | None = None
    own_rows: tuple[dict[str, Any], ...] = ()
    slots: Slots | None = None
    cache: ScoreCache | None = None

    def own_contexts(self, field: str | None) -> list[str] | None:
        """The context of each item of the own task, as :func:`~forgetting.audit.items.clusters` finds a capability's.

        Args:
            field: Of the file, that names it; where no row has it, contexts are found by their length.
        """
        from forgetting.audit.items import Item, clusters

        items = [Item("own", {"doc": row, "doc_id": place}, 0.0) for place, row in enumerate(self.own_rows)]
        return clusters(items, field if any(field in row for row in self.own_rows) else None)


def load_input(
    base: str,
    tuned: str,
    *,
    suite: Sequence[str] = ("micro",),
    suite_dir: Path | None = None,
    data: Path | None = None,
    limit: int | None = None,
    batch_size: int | str = BATCH_SIZE,
    cache: Path | None = None,
    trust_remote_code: bool = False,
) -> AuditInput:
    """Load both models, the suite, and the own task.

    Args:
        base: An embedded model, a transformers folder, or a hub id.
        tuned: The same, or a folder with a peft adapter (``adapter_config.json``, ``adapter_model.safetensors``).
        suite: Suites, lm-eval tasks, or folders of lm-eval YAML files.
        suite_dir: Local folder with the suite's data.
        data: JSONL with ``prompt`` and ``completion`` (and ``choices``); a fifth of it, drawn by seed 0, is the
            test split, the same that ``forgetting run --data`` holds out.
        limit: Items per lm-eval task.
        batch_size: Sequences per forward pass; ``"auto"`` of the suite as many as fill a number of slots that is found,
            and 64 of all else.
        cache: Folder in which responses to the suite are kept, and looked for.
        trust_remote_code: Let code that came with a model run.

    Raises:
        UsageError: if a model, an adapter, a suite, the data or the folder cannot be used, or ``batch_size`` is neither
            a positive number nor ``"auto"``.
    """
    from forgetting.audit.drift import same_tokenizer
    from forgetting.evaluation.budget import found_budget, parse_batch_size
    from forgetting.evaluation.suite import load_suite

    sequences = parse_batch_size(batch_size)
    kept = None
    if cache is not None:
        from forgetting.audit.score_cache import ScoreCache  # which needs this module

        kept = ScoreCache(cache)
    own = None if data is None else _own_task(data)  # small files first: a mistake in one must not wait for models
    panel = load_suite(list(suite), data_dir=suite_dir, limit=limit)
    first = load_model(base, trust_remote_code=trust_remote_code)
    if first.family != "decoder":
        # A fine-tuned encoder is a classifier: the head that predicted masked words, and with it all that the suite
        # could ask, is gone. (A run of this package keeps both, and measures such losses itself.)
        raise UsageError(f"base {base!r}: is of the family {first.family!r}; an audit is of decoders (GPT-2, Llama)")
    folder, adapter = Path(tuned).expanduser(), None
    if (folder / ADAPTER_FILES[0]).is_file():
        adapter = _adapter_config(folder, tuned)
        second = _merged(first, folder, tuned)
    else:
        second = load_model(tuned, trust_remote_code=trust_remote_code)
    if second.family != first.family:
        raise UsageError(f"tuned {tuned!r}: is of the family {second.family!r}, and base {base!r} of {first.family!r}")
    alike = same_tokenizer(first.tokenizer, second.tokenizer, [PROBE])
    if alike:  # one object: the suite is tokenised once
        second = replace(second, tokenizer=first.tokenizer)
    return AuditInput(
        base=first,
        tuned=second,
        suite=panel,
        own=own,
        batch_size=sequences or BATCH_SIZE,
        same_tokenizer=alike,
        adapter=adapter,
        suite_names=tuple(suite),
        suite_dir=suite_dir,
        own_rows=() if own is None or data is None else _rows(data, own),
        slots=None if sequences else found_budget(first.model.device),
        cache=kept,
    )


def _rows(data: Path, own: Task) -> tuple[dict[str, Any], ...]:
    """The test items' rows, which may have more fields than an example; of rows that give one example, the first."""
    from forgetting.tasks.files import json_lines
    from forgetting.tasks.text import separated

    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for _, row in json_lines(data, "data"):
        rows.setdefault((row["prompt"], separated(row["prompt"], row["completion"])), row)
    return tuple(rows[item.prompt, item.completion] for item in own.test)


def _own_task(data: Path) -> Task:
    from forgetting.config import TaskConfig
    from forgetting.tasks.build import load_task

    return load_task(TaskConfig(name=data.stem, train=str(data)))


def _adapter_config(folder: Path, name: str) -> dict[str, Any]:
    try:
        config = json.loads((folder / ADAPTER_FILES[0]).read_text(encoding="utf-8"))
    except (ValueError, OSError):
        config = None
    if not isinstance(config, dict):
        raise UsageError(f"tuned {name!r}: adapter_config.json is not a JSON object; save the adapter again")
    if not (folder / ADAPTER_FILES[1]).is_file():
        raise UsageError(
            f"tuned {name!r}: the adapter has no {ADAPTER_FILES[1]} (pickled weights can run code); save it with "
            "save_pretrained(folder, safe_serialization=True)"
        )
    return config


def _merged(base: LoadedModel, folder: Path, name: str) -> LoadedModel:
    """The base model's copy with the adapter's change in its weights."""
    from peft import PeftModel
    from transformers import AutoTokenizer

    tokenizer: Any = base.tokenizer
    if (folder / "tokenizer.json").is_file():
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    try:
        wrapped: Any = PeftModel.from_pretrained(copy.deepcopy(base.model), str(folder))
    except (ValueError, RuntimeError, KeyError, TypeError, OSError) as error:
        problem = " ".join(str(error).split())[:160]
        raise UsageError(f"tuned {name!r}: the adapter does not fit base {base.name!r}: {problem}") from None
    if not hasattr(wrapped.base_model, "merge_and_unload"):
        raise UsageError(
            f"tuned {name!r}: adapter of type {wrapped.active_peft_config.peft_type} changes no weights and cannot be "
            "merged; give LoRA or another adapter of weights"
        )
    model = wrapped.merge_and_unload().eval().requires_grad_(True)  # peft froze what the base model's weights became
    return LoadedModel(name=name, model=model, tokenizer=tokenizer, family=base.family)


def other_base(given: AuditInput) -> list[str]:
    """A note where an adapter's files name another base model than the one it was merged into.

    Names are compared by their last part: ``owner/name`` may lie in ``./name``.
    """
    named = str((given.adapter or {}).get("base_model_name_or_path") or "")
    known = {Path(name).name for name in (given.base.name, str(given.base.model.name_or_path))}
    if not named or Path(named).name in known:
        return []
    return [
        f"The adapter's files name {named!r} as its base, and it was merged into {given.base.name!r}: if these are "
        "different weights, what is judged is no model that was trained."
    ]


def weights_digest(model: nn.Module) -> str:
    """SHA-256 of a model's parameters and buffers that are saved: names, types, shapes and bytes.

    It is of the weights as they are scored (fp32), so two files of the same weights have one digest.
    """
    import torch

    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        tensor = value.detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
