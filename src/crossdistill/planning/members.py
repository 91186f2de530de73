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
        members = dict(teachers)
    elif isinstance(teachers, nn.Module | Teacher):
        members = {"teacher": teachers}
    else:
        members = {f"teacher-{number}": member for number, member in enumerate(teachers)}
    for name, member in members.items():
        if not isinstance(member, nn.Module | Teacher):
            kind = type(member).__name__
            raise SettingError(f"teacher {name!r}: wanted a module, a Network or a Teacher, found {kind}")
        if name == STUDENT:
            raise SettingError(f"teachers: {STUDENT!r} is the student's name; give the teacher another name")
    return members


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
                f"trains: {name!r} is a {type(members[name]).__name__}, which is frozen; wanted a torch module or a "
                "Network, or leave it out of trains="
            )
        parameters = [parameter for module in modules_of(members[name]) for parameter in module.parameters()]
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            raise SettingError(
                f"trains: all {len(parameters)} parameters of {name!r} have requires_grad=False (a Distiller sets it "
                "on members that do not train): call requires_grad_(True) on its module, or leave it out of trains="
            )
