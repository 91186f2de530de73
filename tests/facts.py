"""What tests hold of an error: its type and the facts in its text (names, shapes, numbers), never its sentences."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


def states(text: object, *facts: object) -> None:
    """Assert that each fact stands in a text, as a word of its own; whole numbers also with commas (12,288)."""
    for fact in facts:
        forms = {str(fact), f"{fact:,}"} if isinstance(fact, int) else {str(fact)}
        assert any(_word(form).search(str(text)) for form in forms), f"{fact!r} is no part of: {text}"


def _word(form: str) -> re.Pattern[str]:
    """No longer word or number may hold it; an edge that is none of either, as a shape's bracket, may touch them."""
    head = r"(?<!\w)" if form[:1].isalnum() else ""
    tail = r"(?!\w)" if form[-1:].isalnum() else ""
    return re.compile(head + re.escape(form) + tail)


@contextmanager
def warned(kind: type[Warning], *facts: object) -> Iterator[Any]:
    """A block that gives a warning of this kind which states these facts."""
    with pytest.warns(kind) as caught:
        yield caught
    states(" ".join(str(warning.message) for warning in caught), *facts)


@contextmanager
def raises(kind: type[BaseException] | tuple[type[BaseException], ...], *facts: object) -> Iterator[Any]:
    """A block that ends in an error of this kind which states these facts; gives what `pytest.raises` gives."""
    with pytest.raises(kind) as caught:
        yield caught
    states(caught.value, *facts)
