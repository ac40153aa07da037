"""Pretrained models: the embedded one, a local transformers folder, or a hub id."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from forgetting.distributed import sharded
from forgetting.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EMBEDDED: dict[str, str] = {
    "micro": "decoder: Llama architecture, about 1M parameters, pretrained on the embedded world (in the package)",
    "micro-encoder": "encoder: BERT architecture, about 0.5M parameters, on the text of the same world",
    "micro-t5": "encoder-decoder: T5 architecture, about 0.6M parameters, on the text of the same world",
    "micro-vision": "vision: ViT architecture, about 0.1M parameters, on four of scikit-learn's digits",
}

ModelFamily = Literal["decoder", "encoder", "encoder_decoder", "vision"]


@dataclass(frozen=True)
class LoadedModel:
    """A model in fp32, on the best device, in eval mode, with its tokenizer.

    Attributes:
        tokenizer: Of an image classifier, its image processor.
        family: Decided by the architecture that its configuration names.
        trust_remote_code: Whether code that came with it, and with the study's other data, may run.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    family: ModelFamily = "decoder"
    trust_remote_code: bool = False


def embedded_path(name: str) -> Path:
    """Folder of an embedded model."""
    return Path(__file__).parent / "micro" / name.replace("micro", "model", 1)


def _family(config: Any, name: str) -> ModelFamily:
    """The family of the architecture that a folder says it holds; where it says none, of the model's type.

    Raises:
        UsageError: if it is of none.
    """
    from transformers.models.auto import modeling_auto as auto

    families: dict[ModelFamily, Any] = {
        "decoder": auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "encoder": auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        "encoder_decoder": auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        "vision": auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    }
    ends: dict[str, ModelFamily] = {
        "CausalLM": "decoder",
        "LMHeadModel": "decoder",
        "ForMaskedLM": "encoder",
        "ForPreTraining": "encoder",
        "ForImageClassification": "vision",
    }
    architectures = getattr(config, "architectures", None) or []
    for architecture in architectures:
        if getattr(config, "is_encoder_decoder", False) and architecture.endswith("ForConditionalGeneration"):
            return "encoder_decoder"
        for end, family in ends.items():
            if architecture.endswith(end):
                return family
    known = [family for family, names in families.items() if config.model_type in names]
    if known and not architectures:
        return "encoder_decoder" if "encoder_decoder" in known else known[0]
    holds = architectures[0] if architectures else f"architecture {config.model_type!r}"
    raise UsageError(
        f"model {name!r}: holds {holds}, which is not a model for causal or masked language modelling, "
        "text-to-text generation or image classification; give one such as GPT-2, BERT, T5 or ViT"
    )


def _check_folder(folder: Path, name: str) -> None:
    """Refuse, before any weight is read, a folder that cannot be loaded whole and safely."""
    config = folder / "config.json"
    if not config.is_file():
        raise UsageError(f"model {name!r}: the folder has no config.json; give a transformers model folder")
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
        architectures = values.get("architectures") or []
    except (ValueError, OSError, AttributeError, RecursionError):
        raise UsageError(f"model {name!r}: config.json is not JSON; download the model again") from None
    if not isinstance(architectures, list):
        raise UsageError(f"model {name!r}: config.json: architectures = {architectures!r:.60} is not a list of names")
    if (folder / "adapter_config.json").is_file():
        raise UsageError(
            f"model {name!r}: the folder holds an adapter (adapter_config.json), which names another model to load; "
            "merge the adapter into its model, and save that"
        )
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            outside = [shard for shard in shards if Path(shard).name != shard or not shard.endswith(".safetensors")]
        except (ValueError, OSError, KeyError, TypeError, AttributeError, RecursionError):
            shards, outside = [], []
        if not shards:
            raise UsageError(f"model {name!r}: {index.name} is not a safetensors index; download it again")
        if outside:
            raise UsageError(
                f"model {name!r}: {index.name} names {outside[0]!r}; it can name safetensors files of the folder alone"
            )
        missing = [shard for shard in shards if not (folder / shard).is_file()]
        if missing:
            raise UsageError(
                f"model {name!r}: {len(missing)} of {len(shards)} weight files are missing ({missing[0]}); "
                "the download is not complete, download it again"
            )
    else:
        shards = ["model.safetensors"]
    if not (folder / shards[0]).is_file():
        if list(folder.glob("*.bin")) or list(folder.glob("*.pt")) or list(folder.glob("*.pth")):
            raise UsageError(
                f"model {name!r}: holds pickled weights only, which can run code; convert it where you trust it: "
                "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, safe_serialization=True)"
            )
        raise UsageError(f"model {name!r}: the folder has no {shards[0]}; download the model again")
    for shard in shards:
        _check_safetensors(folder / shard, name)
    if any(str(architecture).endswith("ForImageClassification") for architecture in architectures):
        if not (folder / "preprocessor_config.json").is_file():
            raise UsageError(
                f"model {name!r}: the folder has no preprocessor_config.json; save the image processor beside the model"
            )
        return
    if not any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise UsageError(f"model {name!r}: the folder has no tokenizer.json; save the tokenizer beside the model")


def _check_safetensors(path: Path, name: str) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt"):
            pass
    except (SafetensorError, OSError):
        raise UsageError(
            f"model {name!r}: {path.name} is cut short or not safetensors ({path.stat().st_size} bytes); "
            "download it again"
        ) from None


def load_model(name: str, *, trust_remote_code: bool = False) -> LoadedModel:
    """Load a model of any family and what it reads with (``forgetting.families``).

    Args:
        name: ``micro`` or another embedded one, a local transformers folder, or a hub id such as
            ``HuggingFaceTB/SmolLM2-135M``.
        trust_remote_code: Let the model's own code run. Off unless the user sets it.

    Raises:
        UsageError: one line, if the model is missing, half-downloaded, pickled only, of another architecture,
            or the hub has or gives none.
    """
    import torch
    import transformers
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    if name in EMBEDDED:
        path = str(embedded_path(name))
    elif Path(name).expanduser().is_dir():
        path = str(Path(name).expanduser())
    elif name.startswith((".", "/", "~")) or Path(name).exists():
        raise UsageError(f"model {name!r}: is not a folder; give a transformers model folder, a hub id or 'micro'")
    else:
        path = name
    local = path != name or Path(path).is_dir()
    if local:
        _check_folder(Path(path), name)
    elif not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise UsageError(
            f"model {name!r}: is neither a folder nor a hub id (owner/name); embedded: {', '.join(EMBEDDED)}"
        )
    if trust_remote_code:
        print(
            f"WARNING: trust_remote_code is ON: code that came with {name!r} runs here, with all your rights",
            file=sys.stderr,
        )
    if not local:
        from forgetting.hub import bound_waits

        bound_waits()
    try:
        config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        family = _family(config, name)
        auto: Any = {
            "decoder": transformers.AutoModelForCausalLM,
            "encoder": transformers.AutoModelForMaskedLM,
            "encoder_decoder": transformers.AutoModelForSeq2SeqLM,
            "vision": transformers.AutoModelForImageClassification,
        }[family]
        reads_with: Any = transformers.AutoImageProcessor if family == "vision" else transformers.AutoTokenizer
        tokenizer = reads_with.from_pretrained(path, trust_remote_code=trust_remote_code)
        loaded: Any = auto.from_pretrained(
            path,
            config=config,
            dtype=torch.float32,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
        )
    except UsageError:
        raise
    except Exception as error:
        problem = " ".join(str(error).split())
        shown = problem if len(problem) <= 160 else problem[:157] + "..."
        if "contains custom code" in problem:
            raise UsageError(
                f"model {name!r}: needs code that came with it; where you have read it and trust it, "
                "set trust_remote_code (--trust-remote-code)"
            ) from None
        if local:
            raise UsageError(f"model {name!r}: the folder cannot be loaded: {shown}") from None
        from forgetting.hub import DAMAGED, advice, drop_damaged, holds_pickles_only

        what = advice(error)
        if what is None and drop_damaged("models", name):
            what = DAMAGED
        if what is None and holds_pickles_only(name):
            raise UsageError(
                f"model {name!r}: has no safetensors on the hub, and pickled weights can run code; convert it where "
                f"you trust it: AutoModelForCausalLM.from_pretrained({name!r}).save_pretrained(folder), and give it"
            ) from None
        near = did_you_mean(name, EMBEDDED)
        hint = near if "did you mean" in near or what is None else f"; {what}"
        raise UsageError(f"model {name!r}: no such folder, and the hub gave nothing{hint}: {shown}") from None
    model, info = loaded  # a pair, with output_loading_info
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise UsageError(
            f"model {name!r}: {len(missing)} weights are missing from its files ({missing[0]}); download it again"
        )
    if not sharded():  # a sharded one is moved part by part
        model.to("cuda" if torch.cuda.is_available() else "cpu")
    model.eval()
    return LoadedModel(name, model, tokenizer, family, trust_remote_code)


def torch_device(name: str) -> torch.device:
    """Return the device of that name.

    Raises:
        UsageError: if it is not one, or not here.
    """
    import torch

    try:
        target = torch.device(name)
    except RuntimeError:
        raise UsageError(f"device: {name!r} is not a device; give 'cpu', 'cuda' or 'cuda:N'") from None
    if target.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device: {name!r} was asked for, but no CUDA device is available; give 'cpu'")
    return target


def prompt_length(model: nn.Module) -> int:
    """Return how many virtual tokens (a soft prompt, a prefix) a model reads before its input; 0 while they are off.

    peft puts them there. It takes no 4D attention mask beside them, and no left padding beside a soft prompt.
    """
    config = getattr(model, "active_peft_config", None)
    if config is None or not config.is_prompt_learning or model._adapters_disabled:
        return 0
    return int(config.num_virtual_tokens)


def logits_before(model: nn.Module) -> int:
    """Return how many logits come before the input's: one per token of a soft prompt, none for a prefix."""
    config: Any = getattr(model, "active_peft_config", None)
    return 0 if config is None or config.peft_type == "PREFIX_TUNING" else prompt_length(model)


def transformer_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Return the name and list of the model's blocks: its longest ModuleList.

    Raises:
        UsageError: if the model has none.
    """
    from torch import nn

    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise UsageError(
            f"model {type(model).__name__}: has no list of blocks; freeze by pattern is not possible either"
        )
    return max(lists, key=lambda item: len(item[1]))


def layer_name(name: str, parameter: nn.Parameter, model: PreTrainedModel) -> str:
    """Return which layer a parameter is part of: ``embeddings``, ``block <i>``, ``final norm`` or ``head``.

    A tied head is part of the embeddings, and so are learned positions; a normalisation right after the embeddings
    too, where its name says so.
    """
    if any(parameter is p for p in model.get_input_embeddings().parameters()):
        return "embeddings"
    head = model.get_output_embeddings()
    if head is not None and any(parameter is p for p in head.parameters()):
        return "head"
    if name.startswith("heads.") or re.search(r"\.(cls|predictions)\.", name):  # a task's; a masked language model's
        return "head"
    if block := re.search(r"\.(\d+)\.", name):
        return f"block {block[1]}"
    return "final norm" if re.search(r"norm|ln", name) and "embed" not in name else "embeddings"


def parameter_depths(model: PreTrainedModel) -> dict[str, int]:
    """Return each parameter's depth by name: 0 for embeddings, i + 1 for block i of L, L + 1 for final norm and head.

    Raises:
        UsageError: if the model has no list of blocks.
    """
    top = len(transformer_blocks(model)[1]) + 1
    depths = {}
    for name, parameter in model.named_parameters():
        layer = layer_name(name, parameter, model)
        depths[name] = int(layer.split()[1]) + 1 if layer.startswith("block") else 0 if layer == "embeddings" else top
    return depths


def untied_head(model: PreTrainedModel) -> nn.Module:
    """Return the output head, whose weights become its own where they were shared with the embedding.

    Raises:
        UsageError: if the model has none.
    """
    from torch import nn

    head = model.get_output_embeddings()
    if head is None:
        raise UsageError(f"model {type(model).__name__}: has no output head")
    elsewhere = {id(p) for module in model.modules() if module is not head for p in module.parameters(recurse=False)}
    for name, parameter in list(head.named_parameters(recurse=False)):
        if id(parameter) in elsewhere:
            setattr(head, name, nn.Parameter(parameter.detach().clone()))
    model.config.tie_word_embeddings = False  # or transformers would tie it again where it saves or loads
    model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)
    return head
