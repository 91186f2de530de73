"""The 17 pairs of teacher and student of the CIFAR-100 literature, with what their published recipes differ in.

    crossdistill run cifar100/dkd --set pair=wrn-40-2-wrn-16-2

Settings are those of mdistiller's configurations, of MLKD those of its own; docs/cifar-pairs.md has published numbers.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from crossdistill.errors import SettingError, nearest


@dataclass(frozen=True, slots=True)
class Pair:
    """A teacher and a student by the names of their networks, and settings of methods that depend on the pair."""

    teacher: str
    student: str
    beta: float = 8.0
    """Weight of DKD's term on the other classes; 8 where no configuration is published."""
    mlkd_epochs: int = 480
    mlkd_rate: float = 0.025
    """Learning rate of MLKD; it falls after 150, 180 and 210 epochs, as in all recipes."""


def _pair(teacher: str, student: str, beta: float = 8.0, mlkd_epochs: int = 480, mlkd_rate: float = 0.025) -> Pair:
    return Pair(f"cifar-{teacher}", f"cifar-{student}", beta, mlkd_epochs, mlkd_rate)


PAIRS: Mapping[str, Pair] = {
    "resnet32x4-resnet8x4": _pair("resnet32x4", "resnet8x4"),
    "vgg13-vgg8": _pair("vgg13", "vgg8", 6.0, mlkd_rate=0.01),
    "wrn-40-2-wrn-40-1": _pair("wrn-40-2", "wrn-40-1", 6.0),
    "wrn-40-2-wrn-16-2": _pair("wrn-40-2", "wrn-16-2", 6.0),
    "resnet56-resnet20": _pair("resnet56", "resnet20", 2.0),
    "resnet110-resnet32": _pair("resnet110", "resnet32", 2.0),
    "resnet110-resnet20": _pair("resnet110", "resnet20"),
    "resnet32x4-shufflev1": _pair("resnet32x4", "shufflev1", mlkd_epochs=960, mlkd_rate=0.01),
    "resnet32x4-shufflev2": _pair("resnet32x4", "shufflev2", mlkd_epochs=960, mlkd_rate=0.01),
    "resnet32x4-wrn-16-2": _pair("resnet32x4", "wrn-16-2"),
    "resnet32x4-wrn-40-2": _pair("resnet32x4", "wrn-40-2"),
    "resnet32x4-vgg8": _pair("resnet32x4", "vgg8"),
    "wrn-40-2-resnet8x4": _pair("wrn-40-2", "resnet8x4"),
    "wrn-40-2-mobilenetv2": _pair("wrn-40-2", "mobilenetv2", mlkd_rate=0.005),
    "wrn-40-2-shufflev1": _pair("wrn-40-2", "shufflev1", mlkd_rate=0.01),
    "vgg13-mobilenetv2": _pair("vgg13", "mobilenetv2", 6.0, mlkd_rate=0.01),
    "resnet50-mobilenetv2": _pair("resnet50", "mobilenetv2", mlkd_rate=0.01),
}
"""Pairs by TEACHER-STUDENT: seven of one family, ten of two."""


def find_pair(name: str) -> Pair:
    """A pair by its name.

    Raises:
        SettingError: there is none; names the nearest.
    """
    if name not in PAIRS:
        raise SettingError(f"pair={name}: no pair is called that; {nearest(name, PAIRS)}")
    return PAIRS[name]
