"""One look for all figures: names that fit, colours that colour-blind readers can tell apart, fixed bytes."""

from __future__ import annotations

import re
import textwrap
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from forgetting.report.summary import BASELINE
from forgetting.results import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

DPI = 150
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h")
_DASHES: tuple[Literal["-", "--", "-."], ...] = ("-", "--", "-.")


@dataclass(frozen=True)
class Figure:
    """A figure on disk.

    Attributes:
        name: Stem of its files.
        png, pdf: The files.
        title: What it is, in a few words.
        caption: What is shown, n, and what a bar means.
    """

    name: str
    png: Path
    pdf: Path
    title: str
    caption: str


@dataclass(frozen=True)
class Look:
    """How a mitigation is drawn, the same in every figure."""

    color: tuple[float, float, float]
    marker: str
    dash: Literal["-", "--", "-."]
    width: float


def plain(text: object) -> str:
    """One line of printable text: control, direction and line-break characters gone, spaces single."""
    kept = (" " if character.isspace() else character for character in str(text))
    return " ".join("".join(c for c in kept if unicodedata.category(c)[0] != "C").split())


def shorten(names: Sequence[str], width: int) -> list[str]:
    """Names of at most ``width`` characters, cut in the middle, where they differ least often.

    Names that were cut to the same text get their position in the sequence, so that no two are equal.
    """
    cut = []
    for name in map(plain, names):
        head = (width - 1) * 3 // 5
        cut.append(name if len(name) <= width else f"{name[:head]}…{name[len(name) - (width - 1 - head) :]}")
    return [
        name if cut.count(name) == 1 else f"{name[: width - 2 - len(str(position))]} #{position}"
        for position, name in enumerate(cut, start=1)
    ]


def wrapped(text: str, width: int) -> str:
    """A mitigation's name over several lines, broken after ``+`` or ``,`` where it can be."""
    spaced = re.sub(r"([+,])", r"\1 ", text)
    return re.sub(r"([+,]) ", r"\1", "\n".join(textwrap.wrap(spaced, width, break_on_hyphens=False)))


def state(view: str) -> str:
    """What follows a mitigation's name for a view of its runs: "" or `` (adapter off)``."""
    return f" ({plain(view).replace('_', ' ')})" if view else ""


def drawn(text: str) -> str:
    """Text as matplotlib draws it literally: no mathematics between dollars, no label hidden by an underscore."""
    return (" " + text if text.startswith("_") else text).replace("$", r"\$")


def looks(mitigations: Sequence[str]) -> dict[str, Look]:
    """A look per mitigation, by its place in the study; naive is the black one."""
    import seaborn

    palette = [color for k, color in enumerate(seaborn.color_palette("colorblind")) if k != 7]  # 7 is grey
    others = [name for name in mitigations if name != BASELINE]
    found = {
        name: Look(palette[k % len(palette)], _MARKERS[k % len(_MARKERS)], _DASHES[k // len(palette) % 3], 1.4)
        for k, name in enumerate(others)
    }
    return {name: found[name] if name in found else Look((0.0, 0.0, 0.0), "*", "-", 2.2) for name in mitigations}


@contextmanager
def styled() -> Iterator[None]:
    """Figures made inside have the report's style; the caller's settings are left alone."""
    import matplotlib
    import seaborn

    settings = {
        **seaborn.axes_style("whitegrid"),
        **seaborn.plotting_context("paper"),
        "font.family": "DejaVu Sans",  # comes with matplotlib: the same on every machine
        "pdf.fonttype": 42,
        "axes.edgecolor": ".3",
        "grid.color": ".9",
        "grid.linewidth": 0.6,
        "axes.titlesize": 9,
        "axes.labelsize": 9,
        "legend.fontsize": 8.5,
        "figure.titlesize": 10.5,
    }
    with matplotlib.rc_context(settings):
        yield


def new_canvas(width: float, height: float) -> Canvas:
    """An empty figure, inches; it belongs to no window and no global state."""
    from matplotlib.figure import Figure as Canvas

    return Canvas(figsize=(width, height), layout="constrained")


def panels(canvas: Canvas, count: int, columns: int, **options: Any) -> list[Axes]:
    """A grid of ``count`` axes; the places left over in the last row stay empty."""
    rows = -(-count // columns)
    axes = canvas.subplots(rows, columns, squeeze=False, **options).ravel()
    for unused in axes[count:]:
        unused.remove()
    return list(axes[:count])


def legend_below(canvas: Canvas, handles: list[Any], labels: list[str]) -> None:
    """Below the axes, in as many columns as the longest label allows."""
    letters = canvas.get_figwidth() * 16  # of the legend's font that fit into the width
    columns = int(letters // (max(map(len, labels)) + 6))
    canvas.legend(handles, labels, loc="outside lower center", ncols=max(1, min(columns, len(labels))), frameon=False)


def save(canvas: Canvas, folder: Path, name: str, title: str, caption: str) -> Figure:
    """Write PNG and PDF; the same figure gives the same bytes: no dates, no versions.

    Raises:
        UsageError: if the folder cannot be written.
    """
    figure = Figure(name, folder / f"{name}.png", folder / f"{name}.pdf", title, caption)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a name in a script the font lacks
        canvas.draw_without_rendering()
        canvas.set_layout_engine("none")  # laid out once, for both files
        _write(canvas, figure)
    return figure


def _write(canvas: Canvas, figure: Figure) -> None:
    for path, metadata in (
        (figure.png, {"Software": None}),
        (figure.pdf, {"CreationDate": None, "Creator": None, "Producer": None}),
    ):
        content = BytesIO()
        canvas.savefig(content, format=path.suffix[1:], dpi=DPI, metadata=metadata)
        write_atomically(path, content.getvalue())
