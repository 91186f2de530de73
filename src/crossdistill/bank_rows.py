"""Where each sample's row is in a bank: found for a whole batch at once, and held against its sample id."""

import torch
from jaxtyping import Int64
from torch import Tensor

from crossdistill.errors import BankMissing

ABSENT = -1
LOOK_EVERY = 64
"""Lookups between looks at the verdict on an accelerator, which wait for it."""


class BankRows:
    """The rows of samples with these ids, one for each of `views` seeded views; ids are counted from 0.

    Banks of the same samples share one, so that a batch is looked up once for all of them.
    """

    def __init__(self, ids: Int64[Tensor, " N"], views: int = 1) -> None:
        self.ids = ids
        self.views = views
        table = torch.full((int(ids.max()) + 1 if len(ids) else 1,), ABSENT)
        table[ids] = torch.arange(len(ids))
        # For each device: the row by id, and whether any lookup has failed there.
        self._tables = {torch.device("cpu"): (table, torch.zeros((), dtype=torch.bool))}
        self._last: tuple[Tensor, Tensor | None, Tensor] | None = None
        self._lookups = 0

    def find(self, ids: Int64[Tensor, " B"], view: Int64[Tensor, " B"] | None = None) -> Int64[Tensor, " B"]:
        """Positions of the rows of these samples and views.

        Raises:
            BankMissing: a sample or a view that is not in the bank, or views that nobody names.
        """
        if self._last is not None and self._last[0] is ids and self._last[1] is view:
            return self._last[2]
        table, failed = self._on(ids.device)
        try:
            at = table.index_select(0, ids)
        except IndexError:
            raise BankMissing(self._absent(ids)) from None
        if at.is_cpu:
            if len(at) and int(at.min()) < 0:
                raise BankMissing(self._absent(ids))
        else:
            failed |= (at < 0).any()
            at = at.clamp(min=0)
            self._look(ids, failed)
        if self.views > 1 or view is not None:
            at = self._of_view(at, view)
        self._last = (ids, view, at)
        return at

    def _look(self, ids: Tensor, failed: Tensor) -> None:
        """Now and then at the verdict of an accelerator; never while a graph is captured."""
        self._lookups += 1
        capturing = ids.is_cuda and torch.cuda.is_current_stream_capturing()
        if self._lookups % LOOK_EVERY == 1 and not capturing and bool(failed):
            failed.zero_()
            raise BankMissing(self._absent(ids))

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._tables:
            cpu = self._tables[torch.device("cpu")]
            self._tables[device] = (cpu[0].to(device), cpu[1].to(device))
        return self._tables[device]

    def _of_view(self, at: Tensor, view: Tensor | None) -> Tensor:
        if view is None:
            raise BankMissing(
                f"the bank holds {self.views} views of each sample, and the batch does not say which one it looks at"
            )
        if bool(((view < 0) | (view >= self.views)).any()):
            raise BankMissing(
                f"the batch looks at view {int(view.max())}, but the bank holds {self.views}, counted from 0"
            )
        return view * len(self.ids) + at

    def _absent(self, ids: Tensor) -> str:
        absent = ids[~torch.isin(ids, self.ids.to(ids.device))].tolist()
        shown = ", ".join(map(str, absent[:8])) + (", ..." if len(absent) > 8 else "")
        which = f"the samples {shown}" if absent else "samples of an earlier batch"
        return (
            f"the bank holds {len(self.ids)} samples, and {which} are not among them; a bank is of the training and "
            "validation rows of the data that it was filled from"
        )
