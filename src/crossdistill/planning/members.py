"""Members of a custom training loop: their names, their modules, and whether they can train."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import nn

from crossdistill.errors import SettingError, nearest
from crossdistill.method import STUDENT
from crossdistill.network import Network
from crossdistill.teacher import Teacher

Member = nn.Module | Teacher
Members = Member | Mapping[str, Member] | Sequence[Member]


def named_members(teachers: Members) -> dict[str, Member]:
    """Teachers by name.

    Raises:
        SettingError: a member is neither a module nor a `Teacher`, or has the student's name.
    """
    if isinstance(teachers, Mapping):
        found = dict(teachers)
    elif isinstance(teachers, nn.Module | Teacher):
        found = {"teacher": teachers}
    else:
        found = {f"teacher-{number}": one for number, one in enumerate(teachers)}
    for name, one in found.items():
        if not isinstance(one, nn.Module | Teacher):
            raise SettingError(f"teacher {name!r}: wanted a module, a Network or a Teacher, found {type(one).__name__}")
        if name == STUDENT:
            raise SettingError(f"teachers: {STUDENT!r} means the student itself; call the teacher otherwise")
    return found


def modules_of(member: Member) -> list[nn.Module]:
    """The modules of a member."""
    if isinstance(member, Network):
        return [member.module]
    if isinstance(member, nn.Module):
        return [member]
    modules: Callable[[], Iterable[nn.Module]] = getattr(member, "modules", list)
    return list(modules())


def check_trains(trains: Sequence[str], members: Mapping[str, Member]) -> None:
    """Refuse members that cannot train.

    Raises:
        SettingError: no member has a listed name (names the nearest), or a member is frozen.
    """
    for name in trains:
        if name not in members:
            raise SettingError(f"trains: no member is called {name!r}; {nearest(name, members)}")
        if not isinstance(members[name], nn.Module):
            raise SettingError(
                f"{name!r} trains, and is no module but a {type(members[name]).__name__}, which is frozen"
            )
        weights = [one for module in modules_of(members[name]) for one in module.parameters()]
        if weights and not any(one.requires_grad for one in weights):
            raise SettingError(
                f"{name!r} trains, and all its {len(weights)} parameters have requires_grad=False (a Distiller freezes "
                "what does not train in it): call requires_grad_(True) on its module, or leave it out with trains="
            )
