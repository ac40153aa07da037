"""Text to LaTeX, and the files that the article includes."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from forgetting.report.cells import number
from forgetting.report.tables import LATEX

_LATEX = {
    **LATEX,
    '"': "''",
    "'": "'",
    "—": "---",
    "’": "'",
    "‘": "`",
    "“": "``",
    "”": "''",
    "\u00a0": "~",
    **{
        character: f"$\\{name}$"
        for character, name in (
            ("·", "cdot"),
            ("≤", "le"),
            ("≥", "ge"),
            ("≈", "approx"),
            ("≠", "ne"),
            ("→", "to"),
            ("←", "leftarrow"),
            ("√", "surd"),
            ("∞", "infty"),
            ("Σ", "Sigma"),
            ("∘", "circ"),
            ("ᵀ", "top"),
        )
    },
    "°": r"\textdegree{}",
    "½": r"$\tfrac12$",
    **{superscript: f"$^{digit}$" for digit, superscript in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
    **{subscript: f"$_{digit}$" for digit, subscript in enumerate("₀₁₂₃₄₅₆₇₈₉")},
}
_CAPITALS_LIKE_LATIN = set("ΑΒΕΖΗΙΚΜΝΟΡΤΧ")


def escape(text: str) -> str:
    """Text as LaTeX sets it literally.

    Raises:
        ValueError: for a character that is neither Latin nor Greek nor in the table here; LaTeX would leave it out.
    """
    return "".join(_character(character, text) for character in text)


def _character(character: str, text: str) -> str:
    if character in _LATEX:
        return _LATEX[character]
    if character.isascii():
        return character
    name = unicodedata.name(character, "")
    if name.startswith("LATIN "):
        return character
    greek = re.fullmatch(r"GREEK (SMALL|CAPITAL) LETTER (\w+)", name)
    if greek and character not in _CAPITALS_LIKE_LATIN and character not in "οϲς":
        letter = {"LAMDA": "lambda"}.get(greek[2], greek[2].lower())
        return f"$\\{letter if greek[1] == 'SMALL' else letter.capitalize()}$"
    raise ValueError(f"text: {character!r} (U+{ord(character):04X}) in {text!r} has no LaTeX; add it to {__name__}")


def breakable(text: str) -> str:
    """Code, escaped, that may be broken after the punctuation of options and paths."""
    return re.sub(r"(\\_|[:,=+/])", r"\1\\allowbreak{}", escape(text))


def code(text: str) -> str:
    """A name or a command, in typewriter letters."""
    return rf"\texttt{{{breakable(text)}}}"


def power(value: float) -> str:
    r"""A number as a power of ten: ``$3\times10^{-4}$``; the factor is left out where it is 1."""
    mantissa, exponent = f"{value:.1e}".split("e")
    factor = "" if mantissa == "1.0" else rf"{mantissa.removesuffix('.0')}\times"
    return rf"${factor}10^{{{int(exponent)}}}$"


@dataclass
class Output:
    """What goes into ``paper/generated``.

    Attributes:
        macros: Name to LaTeX text and to the file it was computed from, as a path from the repository's root.
        files: Path in the folder to content.
    """

    macros: dict[str, tuple[str, str]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)

    def macro(self, name: str, value: str | float, source: str, digits: int = 1) -> None:
        r"""Define ``\name``; a number is written with so many digits, a text as it is.

        Raises:
            ValueError: for a name that LaTeX does not take, one given before, or a value that is empty or undefined.
        """
        if not re.fullmatch(r"[A-Z][A-Za-z]+", name):
            raise ValueError(f"macro {name!r}: needs letters alone, the first a capital")
        if name in self.macros:
            raise ValueError(f"macro {name!r}: is defined twice")
        if value == "" or (isinstance(value, float) and not math.isfinite(value)):
            raise ValueError(f"macro {name!r}: is {value!r}; {source} does not give it")
        if isinstance(value, str):
            text = value
        elif isinstance(value, int):
            text = f"{value:,}"
        else:
            text = escape(number(value, digits))
        self.macros[name] = (text, source)

    def table(self, name: str, columns: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Write a table to ``tables/<name>.tex``; header and cells are LaTeX already.

        Raises:
            ValueError: if a row has another number of cells than the header.
        """
        self.write(f"tables/{name}.tex", tabular(columns, header, rows) + "\n")

    def write(self, path: str, text: str) -> None:
        """Add a file."""
        self.files[path] = text.encode()

    def figure(self, name: str, source: Path) -> None:
        """Copy a figure's PDF to ``figures/<name>.pdf``."""
        self.files[f"figures/{name}.pdf"] = source.read_bytes()


def tabular(columns: str, header: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "tabular") -> str:
    """A tabular environment between rules, or a longtable, which breaks between pages.

    Raises:
        ValueError: if a row has another number of cells than the header.
    """
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"rows: {row!r} has {len(row)} cells; the header has {len(header)}")
    head = [r"\toprule", " & ".join(header) + r" \\", r"\midrule", *([r"\endhead"] if kind == "longtable" else [])]
    body = [" & ".join(row) + r" \\" for row in rows]
    return "\n".join([rf"\begin{{{kind}}}{{{columns}}}", *head, *body, r"\bottomrule", rf"\end{{{kind}}}"])


def require(condition: bool, sentence: str) -> None:
    """Stop where the results contradict a sentence of the text: it must be written again, by hand.

    Raises:
        ValueError: naming the sentence.
    """
    if not condition:
        raise ValueError(f"the results no longer show what the text says: {sentence}; change the text and its check")
