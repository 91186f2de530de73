"""The table of methods: one algorithm a file, one line each here."""

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from crossdistill.errors import SettingError, nearest
from crossdistill.method import MethodConfig
from crossdistill.methods.at import AT
from crossdistill.methods.c2kd import C2KD
from crossdistill.methods.collaborate import Collaborate
from crossdistill.methods.crd import CRD
from crossdistill.methods.dkd import DKD
from crossdistill.methods.dml import DML
from crossdistill.methods.hint import Hint
from crossdistill.methods.kd import KD
from crossdistill.methods.kdsvd import KDSVD
from crossdistill.methods.mlkd import MLKD
from crossdistill.methods.mlld import MLLD
from crossdistill.methods.nst import NST
from crossdistill.methods.ofa import OFA
from crossdistill.methods.ofd import OFD
from crossdistill.methods.pkt import PKT
from crossdistill.methods.reviewkd import ReviewKD
from crossdistill.methods.rkd import RKD
from crossdistill.methods.route import Route
from crossdistill.methods.salience import Salience
from crossdistill.methods.sp import SP
from crossdistill.methods.specialise import Specialise
from crossdistill.methods.supervised import Supervised
from crossdistill.methods.vid import VID

__all__ = [
    "AT",
    "C2KD",
    "CRD",
    "DKD",
    "DML",
    "KD",
    "KDSVD",
    "METHODS",
    "MLKD",
    "MLLD",
    "NST",
    "OFA",
    "OFD",
    "PKT",
    "RKD",
    "SP",
    "VID",
    "Collaborate",
    "Hint",
    "ReviewKD",
    "Route",
    "Salience",
    "Specialise",
    "Supervised",
    "find",
    "method_config",
]

METHODS: Mapping[str, type[MethodConfig]] = {
    "at": AT,
    "c2kd": C2KD,
    "collaborate": Collaborate,
    "crd": CRD,
    "dkd": DKD,
    "dml": DML,
    "hint": Hint,
    "kd": KD,
    "kdsvd": KDSVD,
    "mlkd": MLKD,
    "mlld": MLLD,
    "nst": NST,
    "ofa": OFA,
    "ofd": OFD,
    "pkt": PKT,
    "reviewkd": ReviewKD,
    "rkd": RKD,
    "route": Route,
    "salience": Salience,
    "sp": SP,
    "specialise": Specialise,
    "supervised": Supervised,
    "vid": VID,
}


def method_config(value: Any) -> MethodConfig:
    """A method's settings from its name, or from a mapping with the key `name`, checked.

    Other packages add methods through entry points in the group `crossdistill.methods`.

    Raises:
        SettingError: it is neither, or no method has that name; says the nearest.
    """
    settings = {"name": value} if isinstance(value, str) else dict(value) if isinstance(value, Mapping) else {}
    name = settings.get("name")
    if not isinstance(name, str):
        raise SettingError(
            "a method is its settings, as in KD(temperature=4), a name, or a mapping with the key 'name'; "
            f"found {value!r}"
        )
    return find(name).model_validate(settings)


def find(name: str) -> type[MethodConfig]:
    """The settings class of a method, ours or another package's.

    Raises:
        SettingError: no method has that name; says the nearest.
    """
    if name in METHODS:
        return METHODS[name]
    others = {point.name: point for point in entry_points(group="crossdistill.methods")}
    if name not in others:
        raise SettingError(f"no method is called {name!r}; {nearest(name, [*METHODS, *others])}")
    loaded = others[name].load()
    if not (isinstance(loaded, type) and issubclass(loaded, MethodConfig)):
        raise SettingError(f"the entry point {name!r} of {others[name].value!r} is no MethodConfig")
    return loaded
