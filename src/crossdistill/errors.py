"""Every exception that crossdistill raises on purpose, as one tree.

```
CrossdistillError                     what a user can mend; the command line prints it without a traceback
├── SettingError (ValueError)         a hyper-parameter, override or name that cannot be
│   └── RecipeError                   all faults of one recipe, collected and shown together
├── ShapeError (ValueError)           two things that do not fit: who produced what
├── SignalError (LookupError)         an output was asked for that its source does not give
│   └── TapError                      ... a named layer that the module does not have
├── SplitError (ValueError)           a network cannot be cut exactly at a tap; it runs live instead
├── DataError (ValueError)            missing, truncated, unreadable or non-finite data; names the file or the rows
├── MissingExtraError (ImportError)   an optional dependency is absent; says its install command
├── NonFiniteError (ArithmeticError)  a loss or gradient became NaN or Inf; names the batch ids
├── FrozenError (AssertionError)      something that had to stay frozen moved: a fault of ours or of a plug-in
├── BankError (RuntimeError)          stored outputs of frozen networks that cannot be used
│   ├── BankMissing                   ... because they are not there, or not all of them
│   ├── BankStale                     ... because they are of other weights, data or settings; names the fields
│   └── BankDamaged                   ... because a file is not what it was when it was written
├── RunError (RuntimeError)           a run folder cannot be used
│   ├── ResumeError                   ... because what it was started with differs
│   ├── StorageError                  ... because it could not be written (disk full, no permission)
│   └── StoppedError                  ... any further now: the run was asked to stop, and has saved where it is
└── ApplicabilityError (ValueError)   a method cannot apply to these networks or this data
```
"""

import difflib
from collections.abc import Iterable, Sequence


class CrossdistillError(Exception):
    """Root of the tree: catch this to catch everything that a user can mend."""


class SettingError(CrossdistillError, ValueError):
    """A hyper-parameter, an override or a name that cannot be."""


class RecipeError(SettingError):
    """All faults of one recipe, collected so that they are mended in one go."""

    def __init__(self, recipe: str, faults: Sequence[str]) -> None:
        """Keep the single sentences in `faults`, one for each fault."""
        self.faults = tuple(faults)
        noun = "fault" if len(self.faults) == 1 else "faults"
        lines = "\n".join(f"  - {fault}" for fault in self.faults)
        super().__init__(f"recipe {recipe!r} has {len(self.faults)} {noun}; nothing was trained:\n{lines}")


class ShapeError(CrossdistillError, ValueError):
    """Two things that do not fit together; the text names who produced which shape."""


class SignalError(CrossdistillError, LookupError):
    """An output was asked for that its source does not give."""


class TapError(SignalError):
    """A named layer that the module does not have."""


class SplitError(CrossdistillError, ValueError):
    """A network cannot be cut at a tap into two parts that are exactly the whole."""


class DataError(CrossdistillError, ValueError):
    """Missing, truncated, unreadable or non-finite data; the text names the file or the rows."""


class MissingExtraError(CrossdistillError, ImportError):
    """An optional dependency is absent."""

    def __init__(self, what: str, package: str, extra: str) -> None:
        """Say that `what` needs `package`, which comes with `extra`."""
        super().__init__(
            f'{what} needs the package {package!r}, which is not installed: pip install "crossdistill[{extra}]"'
        )


class NonFiniteError(CrossdistillError, ArithmeticError):
    """A loss or a gradient became NaN or Inf."""


class FrozenError(CrossdistillError, AssertionError):
    """Something that had to stay frozen moved during training."""


class BankError(CrossdistillError, RuntimeError):
    """Stored outputs of frozen networks cannot be used as asked."""


class BankMissing(BankError):
    """A bank is not there, or some of its blocks are not filled."""


class BankStale(BankError):
    """A bank holds outputs of other weights, data or settings; the text names the fields that differ."""


class BankDamaged(BankError):
    """A file of a bank is truncated, of another type, or its rows and sample ids disagree."""


class RunError(CrossdistillError, RuntimeError):
    """A run folder cannot be used as asked."""


class ResumeError(RunError):
    """A run cannot go on, because what it was started with differs from what is asked now."""


class StorageError(RunError):
    """Something could not be written; what was written before is intact."""


class StoppedError(RunError):
    """A run was asked to stop, and has saved where it is."""


class ApplicabilityError(CrossdistillError, ValueError):
    """A method cannot apply to these networks or to this data."""


def nearest(wanted: str, known: Iterable[str]) -> str:
    """One sentence that helps after a wrong name: the nearest names, then all of them."""
    names = sorted(set(known))
    close = difflib.get_close_matches(wanted, names, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(map(repr, close))}? " if close else ""
    return f"{hint}known: {', '.join(names) if names else '(none)'}"
