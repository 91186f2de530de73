"""Escaping of untrusted names for terminals, Markdown, CSV and LaTeX."""

import re
import unicodedata

_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode categories that move, reverse or hide other text: controls, directions, surrogates, separators."""
_JOINERS = "\u200c\u200d"
"""Zero-width joiners, which letters and emoji need."""
_MARKDOWN = re.compile(r"[\\`*\[\]<>|#&~$]|(?<![^\W_])_|_(?![^\W_])|(?<=\w):(?=//)|(?<=www)\.", re.IGNORECASE)
_FORMULA = tuple("=+-@\t\r")
_LATEX = {
    "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}",
    "<": r"\textless{}", ">": r"\textgreater{}",
}  # fmt: skip


def visible(text: str, *, lines: bool = False) -> str:
    """Text without control of the terminal: such characters become escape codes; `lines` keeps line ends."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(letter if _harmless(letter) or (lines and letter == "\n") else _number(letter) for letter in text)


def _harmless(letter: str) -> bool:
    return letter in _JOINERS or unicodedata.category(letter) not in _HIDDEN


def _number(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")


def markdown(text: str) -> str:
    """One line of Markdown that shows exactly this text: no table cell, link, image, emphasis, formula or HTML."""
    return _MARKDOWN.sub(lambda match: f"\\{match[0]}", visible(text))


def csv_cell(text: str) -> str:
    """A CSV cell that spreadsheets read as text: an apostrophe precedes text that would be read as a formula."""
    return visible(f"'{text}" if text.startswith(_FORMULA) else text)


def latex(text: str) -> str:
    """Plain LaTeX that shows exactly this text."""
    return "".join(_LATEX.get(letter, letter) for letter in visible(text))
