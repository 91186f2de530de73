"""Outputs of tapped layers, read in one pass; a pass whose result nobody reads can end after the last of them."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Final

from torch import Tensor, nn

from crossdistill.errors import TapError


class _Ended:
    """The type of `ENDED`."""


ENDED: Final = _Ended()
"""In place of a result: the pass ended after the last tapped layer, so that there is none."""


class _Over(BaseException):
    """Ends a pass. No Exception, so that a network that catches errors of its layers does not go on."""


class TapReader:
    """Reads the outputs of layers, and learns about them: which are overwritten later, and which run once in a pass."""

    def __init__(self) -> None:
        self._overwritten: set[str] = set()
        self._once: set[str] = set()

    def read(
        self, who: str, module: nn.Module, taps: Sequence[str], run: Callable[[], Any], *, ends: bool = False
    ) -> tuple[Any, dict[str, Tensor]]:
        """The result of `run()`, which runs the module once, and the outputs of the tapped layers.

        With `ends` the result is `ENDED`, and no layer runs after the last tapped one, as soon as a whole pass has
        shown that each of them runs once: of a layer that runs several times, the last output is read.

        Raises:
            TapError: a layer did not run, or returned no tensor.
        """
        seen: dict[str, tuple[Tensor, int]] = {}
        times = dict.fromkeys(taps, 0)
        early = ends and bool(taps) and self._once.issuperset(taps)

        def keep(tap: str, value: Any) -> None:
            if not isinstance(value, Tensor):
                raise TapError(f"{who}: the layer {tap!r} returns a {type(value).__name__}; wanted a tensor")
            times[tap] += 1
            value = value.clone() if tap in self._overwritten else value
            seen[tap] = (value, value._version)
            if early and len(seen) == len(times):
                raise _Over

        result: Any = ENDED
        with ExitStack() as hooks:
            for tap in times:
                layer = module.get_submodule(tap)
                hooks.enter_context(layer.register_forward_hook(lambda _m, _a, out, tap=tap: keep(tap, out)))
            try:
                result = run()
            except _Over:
                assert early
        missing = [tap for tap in times if tap not in seen]
        if missing:
            raise TapError(f"{who} never ran the layers {missing} for this input; tap ones that every pass runs")
        overwritten = {tap for tap, (value, version) in seen.items() if value._version != version}
        if overwritten:
            # The next layer has overwritten the value in place: keep a copy from now on.
            self._overwritten |= overwritten
            return self.read(who, module, taps, run, ends=ends)
        if not early:
            self._once = (self._once - set(times)) | {tap for tap, count in times.items() if count == 1}
        # Also of a whole pass: what a caller gets must not depend on how many passes there were.
        return ENDED if ends else result, {tap: value for tap, (value, _) in seen.items()}
