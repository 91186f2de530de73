"""Compares the class names of a pretrained classifier with those of the data."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Match:
    """How a classifier's classes fit the data's: `order[i]` is the classifier's number of the data's class i."""

    kind: Literal["same", "permuted", "subset", "unnamed", "other"]
    order: tuple[int, ...] | None
    said: str

    @property
    def fits(self) -> bool:
        """Whether its logits can be used for the classes of the data."""
        return self.kind != "other"


def match_classes(theirs: Sequence[str], ours: Sequence[str], named: bool = True) -> Match:
    """Compare names without case, spaces and punctuation; a name may list synonyms, separated by commas.

    The order of unnamed classes (LABEL_0, LABEL_1) is taken for that of the data, where there are equally many.
    """
    if not named:
        if len(theirs) == len(ours):
            return Match("unnamed", None, f"its {len(theirs)} classes have no names, and are taken in the data's order")
        return Match("other", None, f"its {len(theirs)} classes have no names, and the data have {len(ours)}")
    place: dict[str, int] = {}
    for number, name in enumerate(theirs):
        for synonym in (name, *name.split(",")):
            place.setdefault(plain(synonym), number)
    order = [place.get(plain(name)) for name in ours]
    known = [number for number in order if number is not None]
    if len(known) < len(ours) or len(set(known)) < len(known):
        missing = [name for name, number in zip(ours, order, strict=True) if number is None]
        other = f"its classes ({_some(theirs)}) are not those of the data ({_some(missing or ours)})"
        return Match("other", None, other)
    if known == list(range(len(theirs))):
        return Match("same", None, f"its {len(theirs)} classes are those of the data")
    if len(theirs) == len(ours):
        return Match("permuted", tuple(known), f"its {len(theirs)} classes are put into the data's order, by name")
    return Match("subset", tuple(known), f"{len(ours)} of its {len(theirs)} classes are taken, by name")


def plain(name: str) -> str:
    """A name in a form for comparison."""
    return re.sub(r"[\W_]+", "", name.casefold())


def has_names(names: Sequence[str]) -> bool:
    """Whether the names say more than their number."""
    return not all(re.fullmatch(r"(LABEL|CLASS)?[_ ]?\d+", name, re.IGNORECASE) for name in names) or all(
        re.fullmatch(r"\d+", name) for name in names
    )


def _some(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
