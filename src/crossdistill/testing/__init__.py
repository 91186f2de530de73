"""Tools to test a new method: a teacher without a network, toy data and networks, and the contract of a method.

from crossdistill.testing import check_method

def test_my_method_keeps_the_contract() -> None:
    check_method(MyMethod(temperature=2.0))
"""

import warnings
from typing import Any

from crossdistill.testing.contract import CLAUSES, check_method, check_ranks
from crossdistill.testing.fake import FakeTeacher, Record
from crossdistill.testing.toy import (
    TOY_MAPS,
    TOY_SHAPES,
    ToyMaps,
    ToyModule,
    toy_dataset,
    toy_map_models,
    toy_models,
    toy_network,
)

__all__ = [
    "CLAUSES",
    "TOY_MAPS",
    "TOY_SHAPES",
    "FakeTeacher",
    "Record",
    "ToyMaps",
    "ToyModule",
    "check_method",
    "check_ranks",
    "toy_dataset",
    "toy_map_models",
    "toy_models",
    "toy_network",
]

_OLD_NAMES = {"toy_cast": "toy_models", "toy_map_cast": "toy_map_models"}


def __getattr__(name: str) -> Any:
    if name not in _OLD_NAMES:
        raise AttributeError(f"module 'crossdistill.testing' has no attribute {name!r}")
    new = _OLD_NAMES[name]
    warnings.warn(f"{name} is called {new} now; the old name will be removed in version 0.2", DeprecationWarning, 2)
    return globals()[new]
