"""The licence of a pretrained network, from the head of its model card."""

import re
from pathlib import Path

from crossdistill.data.dataset import Licence
from crossdistill.errors import SettingError
from crossdistill.runtime.files import file_fault
from crossdistill.runtime.plain_yaml import parse_yaml

CARD = "README.md"
MOST_CHARACTERS = 2**17
FREE = re.compile(
    r"(apache|mit|bsd|isc|cc0|cc-by-[\d.]+|cc-by-sa|openrail|bigscience|artistic|mpl|lgpl|gpl|agpl|unlicense|wtfpl|zlib"
    r"|ecl|epl|afl|bsl-1|creativeml|gemma|llama)",
    re.IGNORECASE,
)
"""Beginnings of licences that allow commercial use, some under conditions."""
FORBIDDING = re.compile(r"(^|[-_ ])nc([-_ ]|$)|non-?commercial|research-only|fair-noncommercial", re.IGNORECASE)


def licence_of(folder: Path, name: str) -> Licence | None:
    """The licence that the card in a folder states; None without a card, or where it states none."""
    if file_fault(folder / CARD) is not None:
        return None
    with (folder / CARD).open(encoding="utf-8", errors="replace") as file:
        text = file.read(MOST_CHARACTERS)
    head = re.match(r"\s*---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    if head is None:
        return None
    try:
        fields = parse_yaml(head[1])
    except SettingError:
        return None
    fields = fields if isinstance(fields, dict) else {}
    stated = fields.get("license")
    several = [str(one) for one in stated] if isinstance(stated, list) else [str(stated)] if stated else []
    own = str(fields.get("license_name") or "")
    shown = ", ".join(filter(None, (*(one for one in several if one != "other" or not own), own)))
    if not shown:
        return None
    return Licence(name, shown, str(fields.get("license_link") or f"the model card of {name}"), commercial(shown))


def commercial(licence: str) -> bool | None:
    """Whether a licence allows commercial use; None: not known."""
    if FORBIDDING.search(licence):
        return False
    return True if FREE.match(licence) else None
