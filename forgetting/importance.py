"""Which parameters matter: the Fisher information of a model on data as a file, a table and a figure."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forgetting.errors import UsageError
from forgetting.fisher.storage import DiagonalFisher

if TYPE_CHECKING:
    import pandas as pd

    from forgetting.models import LoadedModel
    from forgetting.report.style import Figure

OUTSIDE = "outside the blocks"


def fisher_file(
    model_name: str,
    data: str,
    output: Path,
    *,
    estimator: str,
    samples: int,
    parameters: list[str] | None,
    max_examples: int,
    batch_size: int,
    max_length: int,
    backend: str,
    device: str | None,
    seed: int,
    trust_remote_code: bool = False,
) -> DiagonalFisher:
    """Load a model and data, compute, show progress, write the file.

    Args:
        model_name: See ``forgetting.models.load_model``.
        data: A JSONL file of prompts and completions (the completions' tokens are predicted); else documents, every
            token of which is: a text or JSONL file, ``micro``, or a hub data set.
        output: Safetensors file; its folder must exist.
        estimator: See ``forgetting.fisher.diagonal_fisher``, like what follows.
        samples: Draws per example.
        parameters: Names or patterns.
        max_examples: Examples averaged over.
        backend: ``auto``, ``torch``, ``triton`` or ``reference``.
        batch_size: Examples per batch.
        max_length: Tokens per example; longer ones are cut, and counted in a note.
        device: ``cpu`` or ``cuda``; the best there is where not given.
        seed: Of the drawn labels.
        trust_remote_code: Let code that came with the model run.

    Raises:
        UsageError: for whatever is wrong with the arguments, the model or the data.
    """
    _check_output(output)
    import torch
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from safetensors import SafetensorError

    from forgetting.display import console
    from forgetting.fisher import diagonal_fisher
    from forgetting.fisher.diagonal import check_arguments
    from forgetting.models import load_model, torch_device
    from forgetting.trainer import padded_batches

    try:
        check_arguments(estimator, samples, max_examples, backend)
    except ValueError as error:
        raise UsageError(str(error)) from None
    target = torch_device(device) if device else None
    loaded = load_model(model_name, trust_remote_code=trust_remote_code)
    if loaded.family != "decoder":
        raise UsageError(
            f"model {model_name!r}: the command is for decoders, and this is another kind of model ({loaded.family}); "
            "in Python, diagonal_fisher takes it"
        )
    positions = getattr(loaded.model.config, "max_position_embeddings", None)
    max_length = min(max_length, positions or max_length)
    features = _features(data, loaded, max_examples, max_length)
    truncated = sum(feature["truncated"] for feature in features)
    if truncated:
        console.print(f"note: {truncated} of {len(features)} examples cut to {max_length} tokens", markup=False)
    if target is not None:
        loaded.model.to(target)  # type: ignore[arg-type]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("examples", total=min(max_examples, len(features)))
        try:
            fisher = diagonal_fisher(
                loaded.model,
                padded_batches(features, loaded.tokenizer, batch_size),
                estimator=estimator,  # type: ignore[arg-type]
                samples=samples,
                parameters=parameters,
                max_examples=max_examples,
                backend=backend,  # type: ignore[arg-type]
                generator=torch.Generator().manual_seed(seed),
                progress=lambda done, total: bar.update(task, completed=done),
            )
        except ValueError as error:
            raise UsageError(str(error)) from None
    try:
        fisher.save(output)
    except (OSError, SafetensorError) as error:
        raise UsageError(f"output {str(output)!r}: cannot be written ({error})") from None
    console.print(
        f"{output}: {sum(v.numel() for v in fisher.values.values()):,} parameters, {fisher.examples} examples, "
        f"{fisher.tokens:,} predicted tokens",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    return fisher


def _check_output(output: Path) -> None:
    """Refuse, before anything is computed, what cannot be written."""
    if not output.parent.is_dir():
        raise UsageError(f"output {str(output)!r}: the folder {str(output.parent)!r} does not exist; make it first")
    if output.is_dir():
        raise UsageError(f"output {str(output)!r}: is a folder; give a file, such as {output / 'fisher.safetensors'}")
    if output.exists() and not output.is_file():
        raise UsageError(f"output {str(output)!r}: is not a file that can be replaced; give another name")
    try:
        with tempfile.TemporaryFile(dir=output.parent):
            pass
    except OSError as error:
        raise UsageError(f"output {str(output)!r}: cannot be written ({error.strerror}); give another folder") from None


def _features(data: str, loaded: LoadedModel, limit: int, max_length: int) -> list[dict[str, Any]]:
    """Encode the first examples of the data."""
    from forgetting.config import TaskConfig
    from forgetting.tasks.encode import encode_examples, encode_texts
    from forgetting.tasks.files import json_lines
    from forgetting.tasks.pretraining import read_documents
    from forgetting.tasks.text import rows_to_examples

    if data == "micro":
        from forgetting.micro.corpus import pretraining_documents

        return encode_texts(loaded.tokenizer, pretraining_documents(limit, 0), max_length)
    path = Path(data).expanduser()
    if path.suffix == ".jsonl" and path.is_file():
        rows = list(islice(json_lines(path, "data"), limit))
        if "text" not in rows[0][1]:
            examples = list(rows_to_examples(rows, TaskConfig(name=path.stem, train=data)))
            return encode_examples(loaded.tokenizer, examples, max_length)
    documents = read_documents(data, "data", limit)[:limit]
    if not documents:
        raise UsageError(f"data {data!r}: has no documents")
    return encode_texts(loaded.tokenizer, documents, max_length)


def blocks_and_kinds(names: Iterable[str]) -> dict[str, tuple[int, str]]:
    """Say of every parameter of a model in which block it is, and of which kind.

    Args:
        names: The parameters'.

    Returns:
        By name: the number of the block, or -1 outside of the blocks; and the kind, which is the parameter's name
        without its block and a final ``.weight``; where there are several stacks of blocks, as in an
        encoder-decoder, with the stack's name.
    """
    found = {name: re.search(r"\.(\d+)\.", name) for name in names}
    several = len({name[: block.start()] for name, block in found.items() if block}) > 1
    places = {}
    for name, block in found.items():
        kind = name[block.end() :] if block else name
        if block and several:
            kind = f"{name[: block.start()]}: {kind}"
        places[name] = int(block.group(1)) if block else -1, kind.removesuffix(".weight")
    return places


def summarise_importance(fisher: DiagonalFisher) -> pd.DataFrame:
    """Sum the information by layer and kind of parameter.

    Returns:
        A row per layer and kind: ``layer`` and ``kind`` (:func:`blocks_and_kinds`), ``parameters`` (their number),
        ``total`` (Σ F), ``mean`` (per parameter), ``share`` (of the model's Σ F; 0 where all is 0).
    """
    import pandas as pd

    places = blocks_and_kinds(fisher.values)
    rows = [
        {
            "layer": places[name][0],
            "kind": places[name][1],
            "parameters": value.numel(),
            "total": float(value.double().sum()),
        }
        for name, value in fisher.values.items()
    ]
    frame = pd.DataFrame(rows).groupby(["layer", "kind"], as_index=False, sort=False).sum()
    frame["mean"] = frame["total"] / frame["parameters"]
    frame["share"] = frame["total"] / (frame["total"].sum() or 1.0)
    return frame.sort_values(["layer", "total"], ascending=[True, False], ignore_index=True)


def print_summary(fisher: DiagonalFisher, output: Path) -> None:
    """Print the table, and write the figure beside the file."""
    from rich.table import Table

    from forgetting.display import console

    frame = summarise_importance(fisher)
    about = f"Fisher information, {fisher.estimator}, unit: one {fisher.unit}"
    table = Table(title=about, title_justify="left")
    for column in ("layer", "kind", "parameters", "mean", "share (%)"):
        table.add_column(column, justify="left" if column == "kind" else "right", overflow="fold")
    for row in frame.to_dict("records"):
        table.add_row(
            OUTSIDE if row["layer"] < 0 else str(row["layer"]),
            str(row["kind"]),
            f"{row['parameters']:,}",
            f"{row['mean']:.3g}",
            f"{100 * row['share']:.1f}",
        )
    console.print(table)
    if not frame["total"].sum() > 0:
        console.print("note: all of it is zero: no parameter changes a prediction")
        return
    figure = draw_importance(frame, fisher, output.parent, output.stem)
    for path in (figure.png, figure.pdf):
        console.print(str(path), markup=False, highlight=False, soft_wrap=True)


def draw_importance(frame: pd.DataFrame, fisher: DiagonalFisher, folder: Path, name: str) -> Figure:
    """Mean information per parameter: a column per block (and one for what is outside of them), a row per kind."""
    import seaborn
    from matplotlib.colors import LogNorm

    from forgetting.report.style import new_canvas, save, shorten, styled

    cells = frame.assign(layer=frame["layer"].map(lambda layer: "outside" if layer < 0 else str(layer)))
    table = cells.pivot_table(index="kind", columns="layer", values="mean", sort=False)
    table = table.where(table > 0)
    order = sorted(table.columns, key=lambda column: (column != "outside", int(column) if column.isdigit() else 0))
    table = table[order]
    table.index = shorten([str(kind) for kind in table.index], 44)
    with styled():
        canvas = new_canvas(4.6 + 0.34 * table.shape[1], 1.6 + 0.24 * table.shape[0])
        axes = canvas.subplots()
        low, high = float(table.min().min()), float(table.max().max())
        norm = LogNorm(low, high if high > low else 10 * low)
        bar = {"label": "mean Fisher information per parameter (log scale)"}
        seaborn.heatmap(table, norm=norm, cmap="viridis", linewidths=0.5, ax=axes, cbar_kws=bar)
        axes.set_xlabel("transformer block")
        axes.set_ylabel("")
        axes.grid(visible=False)
        axes.set_yticks([i + 0.5 for i in range(len(table))], list(table.index), rotation=0)
        caption = f"{fisher.estimator}, {fisher.examples} examples, {fisher.tokens} predicted tokens"
        canvas.suptitle(f"Fisher information ({caption})")
        return save(canvas, folder, name, "Fisher information by layer and kind", caption)
