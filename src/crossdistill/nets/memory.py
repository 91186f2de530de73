"""The memory bank of contrastive distillation: one entry per row and side, with negatives drawn on the device.

Negatives are a function of (seed, step, sample), not of a generator's state: they are equal on all ranks and devices
and after a resume.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from crossdistill.batch import MISSING_TARGET
from crossdistill.errors import ApplicabilityError

KEYS_AT_ONCE = 2**24
"""Most random keys in memory when negatives are drawn without repetition."""


class Memory(nn.Module):
    """Unit vectors of N rows, for the student's and for one teacher's side: Tian et al., ICLR 2020.

    `normaliser` holds log Z of both directions, infinite before it is measured. Negatives of a row are the rows with
    other `labels`; a row without a label (`MISSING_TARGET`) is a negative of all others, and all others are its own.
    """

    def __init__(
        self,
        labels: Int64[Tensor, " N"],
        width: int,
        momentum: float,
        *,
        repeat: bool = False,
        seed: int = 0,
        keys_at_once: int = KEYS_AT_ONCE,
    ) -> None:
        """Draw entries uniformly in [-s, s], s = 1 / sqrt(width / 3), as released: their expected norm is 1.

        Raises:
            ApplicabilityError: a row has no negatives.
        """
        super().__init__()
        rows, span = len(labels), (width / 3) ** -0.5
        self.momentum, self.repeat, self.keys_at_once = momentum, repeat, keys_at_once
        self.student: Tensor
        self.teacher: Tensor
        self.normaliser: Tensor
        self.seed: Tensor
        self.order: Tensor
        self.start: Tensor
        self.class_size: Tensor
        self.register_buffer("student", torch.empty(rows, width).uniform_(-span, span))
        self.register_buffer("teacher", torch.empty(rows, width).uniform_(-span, span))
        self.register_buffer("normaliser", torch.full((2,), torch.inf))
        self.register_buffer("seed", torch.tensor(seed))
        order, start, class_size = _by_class(labels)
        if rows and int(class_size.max()) == rows:
            raise ApplicabilityError(
                f"contrast needs negatives: all {rows} training rows are of one class; at least two classes are needed"
            )
        for name, value in (("order", order), ("start", start), ("class_size", class_size)):
            self.register_buffer(name, value, persistent=False)
        self.fewest = rows - int(class_size.max()) if rows else 0

    def candidates(
        self, index: Int64[Tensor, " B"], count: int, step: int, *, by_class: bool = False
    ) -> Int64[Tensor, "B K"]:
        """Column 0 is the row itself (`by_class`: a row of its class), followed by `count` rows of other classes.

        They are drawn uniformly; without repetition if there are enough and `repeat` is off, as released.
        """
        start, class_size = self.start[index], self.class_size[index]
        positive = self.positives(index, step) if by_class else index
        if self.repeat or count > self.fewest:
            drawn = self._uniform(index, count, step) % (len(self.order) - class_size).unsqueeze(1)
            # Positions in the order of classes, without those of the row's class.
            negatives = self.order[drawn + (drawn >= start.unsqueeze(1)) * class_size.unsqueeze(1)]
        else:
            size = max(1, self.keys_at_once // len(self.order))
            negatives = torch.cat([self._distinct(part, count, step) for part in index.split(size)])
        return torch.cat([positive.unsqueeze(1), negatives], dim=1)

    def positives(self, index: Int64[Tensor, " B"], step: int) -> Int64[Tensor, " B"]:
        """A random row of each row's class."""
        return self.order[self.start[index] + self._uniform(index, 1, ~step).squeeze(1) % self.class_size[index]]

    def shared(self, index: Int64[Tensor, " B"], count: int, step: int) -> tuple[Tensor, Tensor, int]:
        """Negatives that all rows of a step share: row numbers (S,), those that each row keeps (B, S), their number.

        The S rows are drawn without repetition on the device, S = `count` + the size of the largest class, so that
        each row keeps exactly `count` of them: the first ones of other classes. For one row the draw is the one of
        `candidates`, uniform over the rows of other classes; only rows of a batch are no longer drawn independently.
        With fewer rows of other classes than `count`, all of them are kept by the largest class, and as many by others.
        """
        count = min(count, self.fewest)
        size = min(len(self.order), count + len(self.order) - self.fewest)
        keys = self._uniform(torch.zeros(1, dtype=torch.int64, device=index.device), len(self.order), step)[0]
        places = keys.topk(size).indices
        start, class_size = self.start[index].unsqueeze(1), self.class_size[index].unsqueeze(1)
        other = (places < start) | (places >= start + class_size)
        return self.order[places], other & (other.cumsum(1) <= count), count

    @torch.no_grad()
    def measured(
        self, logits: Float[Tensor, "B K"], gather: Callable[[Tensor], Tensor], columns: int | None = None
    ) -> Float[Tensor, ""]:
        """Log Z of these scores over all ranks' rows; infinite without rows. `columns` are those not masked."""
        everyone = gather(logits.logsumexp(1))
        if len(everyone) == 0:
            return everyone.new_full((), torch.inf)
        columns = logits.shape[1] if columns is None else columns
        return everyone.logsumexp(0) - math.log(len(everyone) * columns) + math.log(len(self.order))

    @torch.no_grad()
    def move(self, index: Int64[Tensor, " B"], student: Float[Tensor, "B D"], teacher: Float[Tensor, "B D"]) -> None:
        """Update the entries with the rows' current embeddings, and normalise them to length 1."""
        for bank, rows in ((self.student, student), (self.teacher, teacher)):
            bank.index_copy_(0, index, _entries(bank, index, rows, self.momentum))

    def _distinct(self, index: Tensor, count: int, step: int) -> Tensor:
        places = torch.arange(len(self.order), device=index.device)
        keys = self._uniform(index, len(places), step)
        start, class_size = self.start[index].unsqueeze(1), self.class_size[index].unsqueeze(1)
        keys = torch.where((places >= start) & (places < start + class_size), -1, keys)
        return self.order[keys.topk(count, dim=1).indices]

    def _uniform(self, index: Tensor, count: int, step: int) -> Tensor:
        """Uniform integers below 2^63 (B, count)."""
        # Each row and step has a separate sequence of counters.
        first = _scrambled(_scrambled(index + self.seed) + step)
        counters = torch.arange(count, device=index.device) * GOLDEN
        return _scrambled(first.unsqueeze(1) + counters) & (2**63 - 1)


def moved(
    bank: Float[Tensor, "N D"], index: Int64[Tensor, " B"], rows: Float[Tensor, "B D"], momentum: float
) -> Float[Tensor, "N D"]:
    """The bank after an update with `rows` at `index`: normalise(momentum · old + (1 - momentum) · new)."""
    return bank.index_copy(0, index, _entries(bank, index, rows, momentum))


def _entries(bank: Tensor, index: Tensor, rows: Tensor, momentum: float) -> Tensor:
    return functional.normalize(momentum * bank[index] + (1 - momentum) * rows, dim=1)


GOLDEN = -7046029254386353131
"""2^64 divided by the golden ratio, as a signed number: the step of SplitMix64's counter."""


def _scrambled(value: Tensor) -> Tensor:
    """SplitMix64's finaliser (Steele, Lea and Flood, 2014): maps consecutive counters to uncorrelated numbers."""
    value = (value ^ _shifted(value, 30)) * -4658895280553007687
    value = (value ^ _shifted(value, 27)) * -7723592293110705685
    return value ^ _shifted(value, 31)


def _shifted(value: Tensor, places: int) -> Tensor:
    """A logical shift to the right (the shift of signed numbers would extend the sign bit)."""
    return (value >> places) & ((1 << (64 - places)) - 1)


def groups_of(labels: Int64[Tensor, " N"]) -> Int64[Tensor, " N"]:
    """A number for the class of each row; a row without a label is a class of its own."""
    return _by_class(labels)[1]


def _by_class(labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All rows sorted by class; for each row, the first position of its class there, and the size of the class."""
    order = labels.argsort(stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device)
    known = labels != MISSING_TARGET
    first, counts = {}, {}
    for number in labels[known].unique().tolist():
        places = place[labels == number]
        first[number], counts[number] = int(places.min()), len(places)
    start, class_size = place.clone(), torch.ones_like(place)
    for number in first:
        start[labels == number], class_size[labels == number] = first[number], counts[number]
    return order, start, class_size
