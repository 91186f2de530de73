"""Names that came from elsewhere, as text that stays text: on a terminal, in Markdown, in CSV and in LaTeX."""

import re
import unicodedata

_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode's categories of what moves, turns or hides other text: controls, directions, halves of pairs, separators."""
_JOINERS = "\u200c\u200d"
"""Joined letters and emoji need them."""
_MARKDOWN = re.compile(r"[\\`*\[\]<>|#&~$]|(?<![^\W_])_|_(?![^\W_])|(?<=\w):(?=//)|(?<=www)\.", re.IGNORECASE)
_FORMULA = tuple("=+-@\t\r")
_LATEX = {
    "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}",
    "<": r"\textless{}", ">": r"\textgreater{}",
}  # fmt: skip


def visible(text: str, *, lines: bool = False) -> str:
    """Text in which nothing controls a terminal: what would is written as its number; `lines` keeps line ends."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(letter if _harmless(letter) or (lines and letter == "\n") else _number(letter) for letter in text)


def _harmless(letter: str) -> bool:
    return letter in _JOINERS or unicodedata.category(letter) not in _HIDDEN


def _number(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")


def markdown(text: str) -> str:
    """One line of Markdown that shows just this text: no table cell, link, image, emphasis, formula or HTML begins."""
    return _MARKDOWN.sub(lambda found: f"\\{found[0]}", visible(text))


def csv_cell(text: str) -> str:
    """A cell that a spreadsheet takes for text, not for a formula: with an apostrophe in front where it would."""
    return visible(f"'{text}" if text.startswith(_FORMULA) else text)


def latex(text: str) -> str:
    """Plain LaTeX that shows just this text."""
    return "".join(_LATEX.get(letter, letter) for letter in visible(text))
