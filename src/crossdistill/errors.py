"""The tree of exceptions that crossdistill raises.

```
CrossdistillError                     a fault that a user can correct; the command line prints it without a traceback
├── SettingError (ValueError)         an invalid hyper-parameter, override or name
│   └── RecipeError                   all faults of one recipe, collected and shown together
├── ShapeError (ValueError)           two shapes that do not match; names their origins
├── SignalError (LookupError)         an output that its source does not provide
│   └── TapError                      ... a named layer that the module does not have
├── SplitError (ValueError)           a network cannot be cut exactly at a tap; it runs live instead
├── DataError (ValueError)            missing, truncated, unreadable or non-finite data; names the file or the rows
├── MissingExtraError (ImportError)   an optional dependency is absent; says its install command
├── NonFiniteError (ArithmeticError)  a loss or gradient became NaN or Inf; names the batch ids
├── FrozenError (AssertionError)      frozen weights changed: a fault of this package or of a plug-in
├── BankError (RuntimeError)          stored outputs of frozen networks that cannot be used
│   ├── BankMissing                   ... because some or all of them are missing
│   ├── BankStale                     ... because they are of other weights, data or settings; names the fields
│   └── BankDamaged                   ... because a file has changed since it was written
├── RunError (RuntimeError)           a run folder cannot be used
│   ├── ResumeError                   ... because recipe or environment differ from those of its start
│   ├── StorageError                  ... because it could not be written (disk full, no permission)
│   └── StoppedError                  the run was stopped by a signal or by `stop`, after it wrote a checkpoint
└── ApplicabilityError (ValueError)   a method cannot apply to these networks or this data
```
"""

import difflib
import itertools
from collections.abc import Iterable, Sequence


class CrossdistillError(Exception):
    """Root of the tree: catch this to catch every fault that a user can correct."""


class SettingError(CrossdistillError, ValueError):
    """An invalid hyper-parameter, override or name."""


class RecipeError(SettingError):
    """All faults of one recipe, collected so that they can be corrected together."""

    def __init__(self, recipe: str, faults: Sequence[str]) -> None:
        """Store one sentence for each fault in `faults`."""
        self.faults = tuple(faults)
        noun = "fault" if len(self.faults) == 1 else "faults"
        lines = "\n".join(f"  - {fault}" for fault in self.faults)
        super().__init__(f"recipe {recipe!r} has {len(self.faults)} {noun}; nothing was trained:\n{lines}")


class ShapeError(CrossdistillError, ValueError):
    """Two shapes that do not match; the text names their origins."""


class SignalError(CrossdistillError, LookupError):
    """An output that its source does not provide."""


class TapError(SignalError):
    """A named layer that the module does not have."""


class SplitError(CrossdistillError, ValueError):
    """A network cannot be cut at a tap into two parts whose composition is exactly the network."""


class DataError(CrossdistillError, ValueError):
    """Missing, truncated, unreadable or non-finite data; the text names the file or the rows."""


class MissingExtraError(CrossdistillError, ImportError):
    """An optional dependency is absent."""

    def __init__(self, what: str, package: str, extra: str, *, install: str | None = None) -> None:
        """Say that `what` needs `package`, which comes with `extra`, or by the command `install`."""
        command = install or f'pip install "crossdistill[{extra}]"'
        super().__init__(f"{what} needs the package {package!r}, which is not installed: {command}")


class NonFiniteError(CrossdistillError, ArithmeticError):
    """A loss or a gradient became NaN or Inf."""


class FrozenError(CrossdistillError, AssertionError):
    """Frozen weights changed during training."""


class BankError(CrossdistillError, RuntimeError):
    """Stored outputs of frozen networks cannot be used."""


class BankMissing(BankError):
    """A bank is missing, or some of its blocks are not filled."""


class BankStale(BankError):
    """A bank holds outputs of other weights, data or settings; the text names the fields that differ."""


class BankDamaged(BankError):
    """A file of a bank is truncated, of another type, or its rows and sample ids disagree."""


class RunError(CrossdistillError, RuntimeError):
    """A run folder cannot be used."""


class ResumeError(RunError):
    """A run cannot be resumed, because recipe or environment differ from those of its start."""


class StorageError(RunError):
    """A file could not be written; files written before are intact."""


class StoppedError(RunError):
    """A run was stopped by a signal or by `stop`, after it wrote a checkpoint."""


class ApplicabilityError(CrossdistillError, ValueError):
    """A method cannot apply to these networks or to this data."""


LISTED_CHARACTERS = 300
"""Length of the list of known names in a message."""


def nearest(wanted: str, known: Iterable[str]) -> str:
    """A hint for an unknown name: the nearest names, then all of them, or the first and the number of the rest."""
    names = sorted(set(known))
    close = difflib.get_close_matches(wanted, names, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(map(repr, close))}? " if close else ""
    ends = itertools.accumulate(len(name) + 2 for name in names)
    shown = max(1, sum(end <= LISTED_CHARACTERS for end in ends))
    more = f" and {len(names) - shown:,} more" if len(names) > shown else ""
    return f"{hint}known: {', '.join(names[:shown]) if names else '(none)'}{more}"
