"""``forgetting plan``: what a study needs, per device, before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from forgetting.cli_run import assign
from forgetting.errors import UsageError

UNITS = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


def size(count: float) -> str:
    """Write bytes: ``1.3 GB`` (10⁹)."""
    for unit, factor in UNITS:
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return "0" if count == 0 else f"{count:.0f} B"


def plan(
    study: Annotated[Path | None, typer.Argument(help="A study file (YAML); flags change what it says.")] = None,
    model: Annotated[str | None, typer.Option(help="micro, a transformers folder, or a hub id.")] = None,
    config: Annotated[Path | None, typer.Option(help="A shape: config.json of a model, instead of --model.")] = None,
    mitigation: Annotated[list[str] | None, typer.Option(help="name:option=value+name; repeatable.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Sequences per pass, divided among the devices.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens per sequence.")] = None,
    gradient_accumulation: Annotated[int | None, typer.Option(help="Passes per optimizer step.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, or bf16 (autocast; the weights stay in fp32).")] = None,
    gradient_checkpointing: Annotated[
        bool | None, typer.Option("--gradient-checkpointing", help="Recompute activations in the backward pass.")
    ] = None,
    devices: Annotated[str, typer.Option(help="Numbers of devices, comma-separated.")] = "1,2,8",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, in bytes.")] = False,
) -> None:
    """Print memory per device and operations per step, for each mitigation; no weight is loaded.

    FSDP2's rows are an estimate that was not checked against measured peaks.
    """
    from forgetting.config import parse_study, read_yaml
    from forgetting.planning.memory import plan_memory
    from forgetting.planning.shape import read_config

    values: dict[str, Any] = read_yaml(study) if study else {}
    values.setdefault("name", study.stem if study else "plan")
    flags = {
        "batch_size": batch_size,
        "max_length": max_length,
        "gradient_accumulation": gradient_accumulation,
        "precision": precision,
        "gradient_checkpointing": gradient_checkpointing,
    }
    for key, value in flags.items():
        if value is not None:
            assign(values, f"training.{key}", value)
    if model is not None and config is not None:
        raise UsageError("--model and --config are both given; give one")
    if model is not None:
        values["model"] = model
    if mitigation:
        values["mitigations"] = mitigation
    parsed = parse_study(values, source=str(study) if study else "flags")
    try:
        counts = tuple(int(count) for count in devices.split(","))
    except ValueError:
        raise UsageError(f"--devices {devices!r}: is not a list of numbers, such as 1,2,8") from None
    shape = read_config(parsed.model, config)
    plans = [plan_memory(shape, parsed.training, one, counts) for one in parsed.mitigations]
    if as_json:
        typer.echo(json.dumps(plans, indent=1))
        return
    _print(plans)


def _print(plans: list[dict]) -> None:
    from rich.console import Console
    from rich.table import Table

    columns = (
        "weights",
        "gradients",
        "optimizer",
        "mitigation",
        "communication",
        "activations",
        "logits",
        "fisher",
        "step",
    )
    for one in plans:
        title = (
            f"{one['mitigation']}: {one['parameters']:,} parameters, {one['trained']:,} trained, "
            f"{one['flops_per_step']:.3g} operations per step"
        )
        table = Table("devices", *columns, "peak", title=title, title_justify="left")
        for row in one["devices"]:
            name = "1" if row["devices"] == 1 else f"{row['devices']} {row['strategy']}"
            table.add_row(name, *(size(row[column]) for column in columns), size(row["peak"]))
        Console().print(table)
    if any(row["strategy"] == "fsdp" for one in plans for row in one["devices"]):
        print("fsdp: an estimate for FSDP2 that was not checked against measured peaks")
    print("per device; CUDA's own context and the allocator's gaps come on top (about 1 GB, and a tenth)")
