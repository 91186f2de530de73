"""Shares of the domains in the batches of an epoch: a quota of each batch, or a temperature over their sizes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from crossdistill.errors import SettingError, nearest


class DomainMix(BaseModel):
    """How many rows of each domain a batch has.

    With `quotas`, every batch holds exactly so many rows of each domain. With a temperature T, an epoch holds domain d
    in the share n_d^(1/T) / Σ n^(1/T) of its rows (n: training rows): 1 is the natural mix, a large T equal shares.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    quotas: Mapping[str, int] = Field(default_factory=dict)
    temperature: float | None = Field(default=None, gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _one(self) -> "DomainMix":
        if bool(self.quotas) == (self.temperature is not None):
            found = "both" if self.quotas else "neither"
            raise ValueError(f"quotas or a temperature: wanted one of them, found {found}")
        if any(count < 0 for count in self.quotas.values()) or (self.quotas and not any(self.quotas.values())):
            raise ValueError(f"quotas={dict(self.quotas)}: wanted numbers of rows, of 0 or more, one above 0")
        return self

    def draw(self, domains: Sequence[str], rows: Int64[Tensor, " N"], batch_size: int, who: str) -> "DomainDraw":
        """The mix of these training rows, whose domains are those of the whole data set, for batches of this size.

        Raises:
            SettingError: a quota is of an unknown domain, quotas do not sum to the batch size, or a domain has none.
        """
        index = rows.numpy()
        known = sorted({domains[row] for row in index})
        place = {name: number for number, name in enumerate(known)}
        # Numbers, since an array of the texts of millions of rows is large.
        own = np.fromiter((place[domains[row]] for row in index), np.int64, len(index))
        members = {name: torch.from_numpy(np.flatnonzero(own == place[name])) for name in known}
        if self.temperature is not None:
            sizes = np.array([len(members[name]) for name in known], dtype=np.float64)
            shares = (sizes / sizes.max()) ** (1 / self.temperature)
            return DomainDraw(tuple(members.values()), shares=tuple((shares / shares.sum()).tolist()))
        for name in self.quotas:
            if name not in members:
                raise SettingError(f"{who}: quotas name the domain {name!r}; {nearest(name, known)}")
        left_out = [name for name in known if name not in self.quotas]
        if left_out:
            raise SettingError(
                f"{who}: quotas have no number for the domain {left_out[0]!r}; give 0 to leave its rows out"
            )
        if sum(self.quotas.values()) != batch_size:
            told = " + ".join(f"{name}={count}" for name, count in self.quotas.items())
            raise SettingError(
                f"{who}: quotas {told} are {sum(self.quotas.values())} rows, and batch_size is {batch_size}; make them "
                "equal"
            )
        kept = [name for name in known if self.quotas[name]]
        return DomainDraw(tuple(members[name] for name in kept), counts=tuple(self.quotas[name] for name in kept))


@dataclass(frozen=True, slots=True)
class DomainDraw:
    """The rows of each domain, as places among the training rows, with quotas of a batch or shares of an epoch."""

    members: tuple[Int64[Tensor, " _"], ...]
    counts: tuple[int, ...] = ()
    shares: tuple[float, ...] = ()

    @property
    def key(self) -> list[object]:
        """What the order depends on, besides the data."""
        return [list(self.counts), list(self.shares)]

    def steps(self, num_rows: int, batch_size: int) -> int | None:
        """Whole batches of an epoch with quotas; None: shares do not change the number of steps."""
        return max(1, num_rows // batch_size) if self.counts else None

    def epoch(
        self,
        num_rows: int,
        batch_size: int,
        generator: torch.Generator,
        buckets: int = 0,
        lengths: Float[Tensor, " N"] | None = None,
    ) -> Int64[Tensor, " K"]:
        """Places of an epoch's rows in the order of its batches; a domain's rows repeat only after all were drawn.

        With `lengths` and quotas, `buckets` batches at a time are sorted by length in every domain, so that clips of
        one batch are of similar length. In a batch, the rows of a domain follow each other: the ranks, which take every
        R-th row, get equal shares where quotas are multiples of their number.
        """
        if not self.counts:
            numbers = _rounded(self.shares, num_rows)
            drawn = [_stream(rows, count, generator) for rows, count in zip(self.members, numbers, strict=True)]
            mixed = torch.cat(drawn)
            return mixed[torch.randperm(len(mixed), generator=generator)]
        steps = max(1, num_rows // batch_size)
        columns = []
        for rows, count in zip(self.members, self.counts, strict=True):
            drawn_rows = _stream(rows, steps * count, generator)
            if buckets and lengths is not None:
                parts = drawn_rows.split(buckets * count)
                drawn_rows = torch.cat([part[lengths[part].argsort(stable=True)] for part in parts])
            columns.append(drawn_rows.view(steps, count))
        batches = torch.cat(columns, dim=1)
        if buckets and lengths is not None:
            batches = batches[torch.randperm(steps, generator=generator)]
        return batches.flatten()


def _stream(rows: Int64[Tensor, " M"], wanted: int, generator: torch.Generator) -> Int64[Tensor, " K"]:
    rounds = -(-wanted // len(rows))
    drawn = [rows[torch.randperm(len(rows), generator=generator)] for _ in range(rounds)]
    return torch.cat([*drawn, rows[:0]])[:wanted]


def _rounded(shares: Sequence[float], total: int) -> list[int]:
    """Whole numbers near these shares of a total, by largest remainders."""
    exact = np.array(shares) * total
    numbers = np.floor(exact).astype(int)
    for place in np.argsort(numbers - exact, kind="stable")[: total - int(numbers.sum())]:
        numbers[place] += 1
    return [int(number) for number in numbers]
