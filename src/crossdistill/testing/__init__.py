"""Tools to test a new method: a teacher without a network, toy data and networks, and the contract of a method.

from crossdistill.testing import check_method

def test_my_method_keeps_the_contract() -> None:
    check_method(MyMethod(temperature=2.0))
"""

from crossdistill.testing.contract import CLAUSES, check_method, check_ranks
from crossdistill.testing.fake import FakeTeacher, Record
from crossdistill.testing.toy import (
    TOY_MAPS,
    TOY_SHAPES,
    ToyMaps,
    ToyModule,
    toy_cast,
    toy_dataset,
    toy_map_cast,
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
    "toy_cast",
    "toy_dataset",
    "toy_map_cast",
    "toy_network",
]
