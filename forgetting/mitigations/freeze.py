"""Frozen layers: the first n blocks, all but the last n, the embeddings, or a name pattern."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, field_validator

from forgetting.errors import UsageError
from forgetting.mitigations.base import Mitigation, Options, Processes, RunContext

if TYPE_CHECKING:
    from torch import nn
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
    processes: ClassVar[Processes] = "sharded"
    null: ClassVar[dict[str, Any] | None] = {"first": 0}

    def __init__(self, options: FreezeOptions) -> None:
        super().__init__(options)
        self._adapted = False

    def check(self, chain: Sequence[Mitigation]) -> None:
        """Freezing before an adapter is made would miss it."""
        from forgetting.adapters import Adapter

        for part in chain:
            if isinstance(part, Adapter):
                if chain.index(part) > chain.index(self):
                    raise UsageError(
                        f"mitigation 'freeze': stands before {part.name!r}, whose parameters it would miss; "
                        f"write {part.name}+freeze"
                    )
                self._adapted = True

    def check_model(self, model: PreTrainedModel) -> None:
        """The blocks and names must exist, and something must be left to train.

        Behind an adapter this waits for ``setup``: the model as it is pretrained has not the adapter's parameters.
        """
        if not self._adapted:
            frozen = {id(parameter) for parameter in self._frozen(model)}
            self._something_left(p for p in model.parameters() if id(p) not in frozen)

    @staticmethod
    def _something_left(parameters: Iterable[nn.Parameter]) -> None:
        if not any(parameter.requires_grad for parameter in parameters):
            raise UsageError("mitigation 'freeze': freezes every parameter; leave something to train")

    def setup(self, model: PreTrainedModel, context: RunContext) -> PreTrainedModel:
        """Freeze."""
        super().setup(model, context)
        model = self._freeze(model)
        self._something_left(model.parameters())
        return model

    def before_task(self, model: PreTrainedModel, task: Task) -> PreTrainedModel:
        """Freeze again: a part before this one may have added parameters."""
        return self._freeze(model)

    def _freeze(self, model: PreTrainedModel) -> PreTrainedModel:
        for parameter in self._frozen(model):
            parameter.requires_grad_(False)
        return model

    def _frozen(self, model: PreTrainedModel) -> list[nn.Parameter]:
        from forgetting.models import transformer_blocks

        prefix, blocks = transformer_blocks(model)
        options, count = self.options, len(blocks)
        for field, value in (("first", options.first), ("all_but_last", options.all_but_last)):
            if value is not None and value > count:
                raise UsageError(f"mitigation 'freeze': {field} = {value}: the model has {count} blocks")
        first, embeddings = options.first, options.embeddings
        if options.all_but_last is not None:
            first, embeddings = max(first, count - options.all_but_last), True
        frozen_blocks = tuple(f"{prefix}.{i}." for i in range(first))
        embedding_ids = {id(p) for p in model.get_input_embeddings().parameters()} if embeddings else set()
        found, matched = [], options.pattern is None
        for name, parameter in model.named_parameters():
            # Learned positions stand beside the token embedding under other names (wpe, position_embeddings).
            is_embedding = embeddings and ("embed" in name or ".wpe" in name) and not name.startswith(prefix)
            by_pattern = options.pattern is not None and re.search(options.pattern, name) is not None
            matched |= by_pattern
            if name.startswith(frozen_blocks) or id(parameter) in embedding_ids or is_embedding or by_pattern:
                found.append(parameter)
        if not matched:
            raise UsageError(f"mitigation 'freeze': pattern = {options.pattern!r}: matches no parameter of the model")
        return found
