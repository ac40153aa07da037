"""Frozen layers: the first n blocks, all but the last n, the embeddings, or a name pattern."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, field_validator

from forgetting.errors import UsageError
from forgetting.mitigations.base import Mitigation, Options, RunContext

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from forgetting.tasks.task import Task


class FreezeOptions(Options):
    """Options of freeze."""

    first: int = Field(default=0, ge=0, description="freeze the first n transformer blocks")
    all_but_last: int | None = Field(
        default=None, ge=0, description="freeze everything before the last n blocks, embeddings included"
    )
    embeddings: bool = Field(default=False, description="freeze token and position embeddings (a tied head too)")
    pattern: str | None = Field(default=None, description="freeze parameters whose name matches this regex anywhere")

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"is not a regular expression: {error}") from None
        return value


class Freeze(Mitigation[FreezeOptions]):
    """Parameters that are frozen get no gradient, and so stay as they are, bit for bit."""

    summary: ClassVar[str] = "keep the first blocks, all but the last, the embeddings or a name pattern fixed"
    paper: ClassVar[str] = (
        "Yosinski et al. 2014, arXiv 1411.1792; Zheng et al. 2025, Spurious forgetting, arXiv 2501.13453"
    )
    equation: ClassVar[str] = "θ_S ← θ_S for S the frozen set"
    Options: ClassVar[type[Options]] = FreezeOptions
    null: ClassVar[dict[str, Any] | None] = {"first": 0}

    def check(self, chain: Sequence[Mitigation]) -> None:
        """Freezing before LoRA would miss the adapters."""
        names = [type(part).__name__ for part in chain]
        if "LoRA" in names and names.index("LoRA") > chain.index(self):
            raise UsageError(
                "mitigation 'freeze': stands before 'lora', whose adapters it would miss; write lora+freeze"
            )

    def setup(self, model: PreTrainedModel, context: RunContext) -> PreTrainedModel:
        """Freeze."""
        self._freeze(super().setup(model, context))
        return model

    def before_task(self, model: PreTrainedModel, task: Task) -> PreTrainedModel:
        """Freeze again: a part before this one may have added parameters."""
        self._freeze(model)
        return model

    def _freeze(self, model: PreTrainedModel) -> None:
        from forgetting.models import transformer_blocks

        prefix, blocks = transformer_blocks(model)
        options, count = self.options, len(blocks)
        for field, value in (("first", options.first), ("all_but_last", options.all_but_last)):
            if value is not None and value > count:
                raise UsageError(f"mitigation 'freeze': {field} = {value}: the model has {count} blocks")
        first = options.first
        embeddings = options.embeddings
        if options.all_but_last is not None:
            first, embeddings = max(first, count - options.all_but_last), True
        frozen_blocks = tuple(f"{prefix}.{i}." for i in range(first))
        inputs = model.get_input_embeddings()
        embedding_ids = {id(p) for p in inputs.parameters()} if embeddings else set()
        matched = False
        for name, parameter in model.named_parameters():
            before_blocks = embeddings and ("embed" in name or ".wpe" in name) and not name.startswith(prefix)
            by_pattern = options.pattern is not None and re.search(options.pattern, name) is not None
            matched |= by_pattern
            if name.startswith(frozen_blocks) or id(parameter) in embedding_ids or before_blocks or by_pattern:
                parameter.requires_grad_(False)
        if options.pattern is not None and not matched:
            raise UsageError(f"mitigation 'freeze': pattern = {options.pattern!r}: matches no parameter of the model")
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise UsageError("mitigation 'freeze': freezes every parameter; leave something to train")
