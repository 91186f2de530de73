"""The table of methods: one algorithm per file, and one import line for each."""

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from crossdistill.errors import SettingError, nearest
from crossdistill.method import MethodConfig
from crossdistill.methods.at import AT as AT
from crossdistill.methods.c2kd import C2KD as C2KD
from crossdistill.methods.collaborate import Collaborate as Collaborate
from crossdistill.methods.crd import CRD as CRD
from crossdistill.methods.dist import DIST as DIST
from crossdistill.methods.dkd import DKD as DKD
from crossdistill.methods.dml import DML as DML
from crossdistill.methods.hint import Hint as Hint
from crossdistill.methods.kd import KD as KD
from crossdistill.methods.kdsvd import KDSVD as KDSVD
from crossdistill.methods.mlkd import MLKD as MLKD
from crossdistill.methods.mlld import MLLD as MLLD
from crossdistill.methods.multi_distillation import MultiDistillation as MultiDistillation
from crossdistill.methods.nst import NST as NST
from crossdistill.methods.ofa import OFA as OFA
from crossdistill.methods.ofd import OFD as OFD
from crossdistill.methods.pkt import PKT as PKT
from crossdistill.methods.reviewkd import ReviewKD as ReviewKD
from crossdistill.methods.richkd import RichKD as RichKD
from crossdistill.methods.richkd import RichKDF as RichKDF
from crossdistill.methods.richkd import RichKDL as RichKDL
from crossdistill.methods.rkd import RKD as RKD
from crossdistill.methods.route import Route as Route
from crossdistill.methods.salience import Salience as Salience
from crossdistill.methods.sp import SP as SP
from crossdistill.methods.specialise import Specialise as Specialise
from crossdistill.methods.supervised import Supervised as Supervised
from crossdistill.methods.translate import Translate as Translate
from crossdistill.methods.vid import VID as VID

METHODS: Mapping[str, type[MethodConfig]] = {
    kind.model_fields["name"].default: kind
    for kind in tuple(globals().values())
    if isinstance(kind, type) and issubclass(kind, MethodConfig) and kind is not MethodConfig
}
"""The settings class of each method imported above, by its name in recipes."""


def method_config(value: Any) -> MethodConfig:
    """A method's settings from its name, or from a mapping with the key `name`, checked.

    Other packages add methods through entry points in the group `crossdistill.methods`.

    Raises:
        SettingError: the value is neither, or no method has that name; names the nearest.
    """
    settings = {"name": value} if isinstance(value, str) else dict(value) if isinstance(value, Mapping) else {}
    name = settings.get("name")
    if not isinstance(name, str):
        raise SettingError(
            "a method is its settings, as in KD(temperature=4), a name, or a mapping with the key 'name'; "
            f"found {value!r}"
        )
    return find(name).model_validate(settings)


def list_methods() -> list[str]:
    """The names of all methods: those of the table and those of other packages."""
    return list(dict.fromkeys([*METHODS, *(point.name for point in entry_points(group="crossdistill.methods"))]))


def find(name: str) -> type[MethodConfig]:
    """The settings class of a method of this or another package.

    Raises:
        SettingError: no method has that name (names the nearest), or the package that defines it cannot be imported.
    """
    if name in METHODS:
        return METHODS[name]
    others = {point.name: point for point in entry_points(group="crossdistill.methods")}
    if name not in others:
        raise SettingError(f"no method is called {name!r}; {nearest(name, [*METHODS, *others])}")
    try:
        loaded = others[name].load()
    except Exception as error:  # code of another package may raise any error
        why = f"{type(error).__name__}: {error}"
        raise SettingError(f"method {name!r}: {others[name].value} cannot be imported: {why}") from error
    if not (isinstance(loaded, type) and issubclass(loaded, MethodConfig)):
        raise SettingError(f"the entry point {name!r} of {others[name].value!r} is no MethodConfig")
    return loaded
