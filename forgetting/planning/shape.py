"""A model's shape: its configuration, and how many parameters it has where; no weight is loaded or allocated."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forgetting.errors import UsageError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from forgetting.mitigations import Mitigation


@dataclass(frozen=True)
class Shape:
    """Parameters of a model, and of what a mitigation trains of it.

    Attributes:
        parameters: All; a tied one once.
        trained: Those that train.
        layers: Blocks.
        layers_kept: Blocks whose activations a backward pass needs: from the lowest with something to train upwards.
        block: Parameters of the largest block.
        outside: Parameters outside the blocks: embeddings, final norm, head.
        trained_block: Parameters that train in the block where most do.
        trained_outside: Parameters that train outside the blocks.
    """

    parameters: int
    trained: int
    layers: int
    layers_kept: int
    block: int
    outside: int
    trained_block: int
    trained_outside: int


def read_config(model: str | None, config: Path | None) -> PretrainedConfig:
    """Read a decoder's configuration.

    Args:
        model: ``micro``, a folder, or a hub id.
        config: Instead of it, a ``config.json``.

    Raises:
        UsageError: if it cannot be read, or is not of a decoder.
    """
    import transformers

    from forgetting.models import EMBEDDED, _family, embedded_path

    name = str(config) if config is not None else str(model)
    try:
        if config is not None:
            values = json.loads(config.read_text(encoding="utf-8"))
            found = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
        else:
            found = transformers.AutoConfig.from_pretrained(
                str(embedded_path(name)) if name in EMBEDDED else str(Path(name).expanduser()), trust_remote_code=False
            )
    except KeyError as error:
        raise UsageError(
            f"model {name!r}: the configuration names no {error}, as a transformers config.json does"
        ) from None
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UsageError(
            f"model {name!r}: no configuration can be read: {' '.join(str(error).split())[:160]}"
        ) from None
    family = _family(found, name)
    if family != "decoder":
        raise UsageError(f"model {name!r}: is of family {family}; memory is estimated for decoders")
    return found


def with_layers(config: PretrainedConfig, layers: int) -> PretrainedConfig:
    """Return the configuration with so many blocks."""
    shorter: Any = copy.deepcopy(config)
    shorter.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        shorter.layer_types = list(config.layer_types or ())[:layers]
    return shorter


def build(config: PretrainedConfig) -> PreTrainedModel:
    """Build the model on whatever device is in force: ``meta``, or fake tensors."""
    import torch
    import transformers

    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).train()


def trains(model: PreTrainedModel, mitigation: Mitigation, *, frozen_blocks: bool = True) -> PreTrainedModel:
    """Let train what a mitigation lets train: its adapters, or what it does not freeze.

    ``frozen_blocks=False`` leaves out ``freeze``, which counts blocks, where a part of the model stands for the whole.
    """
    from peft import get_peft_model

    from forgetting.adapters import Adapter
    from forgetting.mitigations import Compose

    for part in mitigation.parts if isinstance(mitigation, Compose) else [mitigation]:
        name = type(part).__module__.rpartition(".")[2]
        if isinstance(part, Adapter):
            model = get_peft_model(model, part.config(model))  # type: ignore[assignment]  # PeftModel forwards to it
        elif name == "bitfit" or (name == "freeze" and frozen_blocks):
            model = part.setup(model, None)  # type: ignore[arg-type]  # neither looks at the run
    return model


def shape_of(config: PretrainedConfig, mitigation: Mitigation) -> Shape:
    """Count parameters on torch's meta device."""
    import torch

    from forgetting.models import transformer_blocks

    with torch.device("meta"):
        model = trains(build(config), mitigation)
    _, blocks = transformer_blocks(model)
    sizes = [sum(p.numel() for p in block.parameters()) for block in blocks]
    trained = [sum(p.numel() for p in block.parameters() if p.requires_grad) for block in blocks]
    parameters = sum(p.numel() for p in model.parameters())
    training = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if not training:
        raise UsageError("mitigation: leaves nothing to train; there is nothing to plan")
    lowest = next((i for i, count in enumerate(trained) if count), len(blocks))
    embedded = any(p.requires_grad for p in model.get_input_embeddings().parameters())
    return Shape(
        parameters=parameters,
        trained=training,
        layers=len(blocks),
        layers_kept=len(blocks) if embedded else len(blocks) - lowest,
        block=max(sizes),
        outside=parameters - sum(sizes),
        trained_block=max(trained),
        trained_outside=training - sum(trained),
    )
