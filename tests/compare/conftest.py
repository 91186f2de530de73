"""Fixtures of the tests of comparisons."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from crossdistill.data.sets.av_digits import AvDigitsConfig


@pytest.fixture(scope="session")
def digits(built_once: Callable[[str], AbstractContextManager[object]]) -> None:
    """The tiny av-digits are in the cache folder."""
    with built_once("av-digits"):
        AvDigitsConfig().tiny().load()
