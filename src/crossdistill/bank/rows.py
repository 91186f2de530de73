"""Looks up the rows of a batch in a bank by sample id and view."""

from functools import cached_property

import torch
from jaxtyping import Int64
from torch import Tensor

from crossdistill.errors import BankMissing
from crossdistill.runtime.hashing import key_hash, tensor_hash

ABSENT = -1
CHECK_EVERY = 64
"""Lookups between checks for missing samples on an accelerator, since a check synchronises with it."""


class BankRows:
    """The sample id and the view of each row of a bank (`view` None: all rows are view 0, without augmentation).

    Banks with the same rows share one object, so a batch is looked up once for all of them.
    """

    def __init__(self, ids: Int64[Tensor, " R"], view: Int64[Tensor, " R"] | None = None) -> None:
        self.ids = ids
        self.view = view
        self.views = 1 if view is None or not len(view) else int(view.max()) + 1
        # For each device: the row by view and id, the row of view 0 by id, and whether a lookup has failed.
        self._tables: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = {}
        self._last: tuple[Tensor, Tensor | None, Tensor] | None = None
        self._lookups = 0

    def __len__(self) -> int:
        """Number of rows: samples times their views."""
        return len(self.ids)

    @cached_property
    def key(self) -> str:
        """A hash of the ids and views in their order."""
        return key_hash([tensor_hash(self.ids), None if self.view is None else tensor_hash(self.view)])

    def part(self, start: int, end: int) -> tuple[Tensor, Tensor | None]:
        """Sample ids and views of some rows."""
        return self.ids[start:end], None if self.view is None else self.view[start:end]

    def find(self, ids: Int64[Tensor, " B"], view: Int64[Tensor, " B"] | None = None) -> Int64[Tensor, " B"]:
        """Positions of the rows of these samples and views.

        Raises:
            BankMissing: the bank lacks a sample, or this view of it.
        """
        if self._last is not None and self._last[0] is ids and self._last[1] is view:
            return self._last[2]
        table, plain, failed = self._on(ids.device)
        try:
            at = plain.index_select(0, ids) if view is None else table[view, ids]
        except IndexError:
            raise BankMissing(self._absent(ids, view)) from None
        if at.is_cpu:
            if len(at) and int(at.min()) < 0:
                raise BankMissing(self._absent(ids, view))
        else:
            failed |= (at < 0).any()
            at = at.clamp(min=0)
            self._check(ids, view, failed)
        self._last = (ids, view, at)
        return at

    def _check(self, ids: Tensor, view: Tensor | None, failed: Tensor) -> None:
        """Check at intervals whether a lookup on an accelerator failed; not during a graph capture.

        Raises:
            BankMissing: a sample of this or an earlier batch is not in the bank.
        """
        self._lookups += 1
        capturing = ids.is_cuda and torch.cuda.is_current_stream_capturing()
        if self._lookups % CHECK_EVERY == 1 and not capturing and bool(failed):
            failed.zero_()
            raise BankMissing(self._absent(ids, view))

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        if device not in self._tables:
            table = torch.full((self.views, int(self.ids.max()) + 1 if len(self.ids) else 1), ABSENT)
            table[0 if self.view is None else self.view, self.ids] = torch.arange(len(self.ids))
            table = table.to(device)
            self._tables[device] = (table, table[0], torch.zeros((), dtype=torch.bool, device=device))
        return self._tables[device]

    def _absent(self, ids: Tensor, view: Tensor | None) -> str:
        absent = ids[~torch.isin(ids, self.ids.to(ids.device))].tolist()
        if not absent and self.views > 1:
            selected = "view 0, since it names none" if view is None else f"view {int(view.max())}"
            return (
                f"a batch selects {selected}, which the bank lacks for some of its samples; the bank holds "
                f"{self.views - 1} seeded views of each training row, numbered from 1, and view 0 (without "
                "augmentation) of each validation row"
            )
        if not absent and view is not None and bool(view.any()):
            return (
                f"a batch selects view {int(view.max())}, and the bank holds view 0 alone: its data are not augmented"
            )
        shown = ", ".join(map(str, absent[:8])) + (", ..." if len(absent) > 8 else "")
        which = f"the samples {shown}" if absent else "samples of an earlier batch"
        return (
            f"the bank holds {len(self.ids.unique())} samples, and lacks {which}; a bank holds the training and "
            "validation rows of the data that it was filled from"
        )
