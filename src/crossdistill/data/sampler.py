"""The order of training rows: a function of the seed and the epoch, so training can resume at any step."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from crossdistill.data.domain_mix import DomainDraw
from crossdistill.runtime.hashing import derived_seed


@dataclass(frozen=True, slots=True)
class Order:
    """The batches of one stage's epochs.

    An epoch has `num_rows` rows, drawn from `rows` without repetition until all are used, then again: with few labelled
    rows, a supervised epoch has as many steps as one over all rows. With `joins`, a last batch of one row is added to
    the batch before it, for networks with batch normalisation. `limit` is the largest number of steps per epoch. With
    `lengths`, batches hold rows of similar length: each `buckets` batches of the drawn order are sorted by it, and the
    batches are shuffled.
    """

    rows: Int64[Tensor, " N"]
    num_rows: int
    batch_size: int
    seed: int
    limit: int | None = None
    joins: bool = False
    buckets: int = 0
    lengths: Float[Tensor, " M"] | None = None
    """The length of every row of the data set."""
    mix: DomainDraw | None = None
    """Quotas or shares of domains; None: rows as they come."""

    @property
    def joined(self) -> bool:
        """Whether the last batch of an epoch has one row more than the batch size."""
        batches, left = divmod(self.num_rows, self.batch_size)
        whole = self.mix is not None and bool(self.mix.counts)
        return self.joins and not whole and left == 1 and batches > 0 and (self.limit is None or self.limit > batches)

    @property
    def steps(self) -> int:
        """Optimizer steps in an epoch."""
        steps = -(-self.num_rows // self.batch_size) - self.joined
        if self.mix is not None:
            steps = self.mix.steps(self.num_rows, self.batch_size) or steps
        return steps if self.limit is None else min(steps, self.limit)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Int64[Tensor, " B"]]:
        """The rows of each step of an epoch (of all ranks together), from step `start` on."""
        generator = torch.Generator().manual_seed(derived_seed("order", self.seed, epoch))
        own = None if self.lengths is None else self.lengths[self.rows]
        rounds = -(-self.num_rows // len(self.rows))
        if self.mix is not None:
            drawn = self.mix.epoch(self.num_rows, self.batch_size, generator, self.buckets, own)
        else:
            rounds_drawn = [torch.randperm(len(self.rows), generator=generator) for _ in range(rounds)]
            drawn = torch.cat(rounds_drawn)[: self.num_rows]
        if self.buckets and self.lengths is not None and not (self.mix and self.mix.counts):
            drawn = self._of_similar_length(drawn, self.lengths[self.rows[drawn]], generator)
        for step in range(start, self.steps):
            end = None if self.joined and step == self.steps - 1 else (step + 1) * self.batch_size
            yield self.rows[drawn[step * self.batch_size : end]]

    def _of_similar_length(
        self, drawn: Int64[Tensor, " N"], lengths: Float[Tensor, " N"], generator: torch.Generator
    ) -> Int64[Tensor, " N"]:
        # The rows of the last, smaller batch stay where they are.
        whole = len(drawn) // self.batch_size * self.batch_size
        size = self.buckets * self.batch_size
        parts = zip(drawn[:whole].split(size), lengths[:whole].split(size), strict=True)
        ordered = [part[length.argsort(stable=True)] for part, length in parts]
        if not ordered:
            return drawn
        batches = torch.cat(ordered).view(-1, self.batch_size)
        batches = batches[torch.randperm(len(batches), generator=generator)]
        return torch.cat([batches.flatten(), drawn[whole:]])


def share_of(rows: Int64[Tensor, " B"], rank: int, ranks: int, parts: int) -> list[Int64[Tensor, " S"]]:
    """The micro-batches of one rank, from every `ranks`-th row, starting with row `rank`.

    There is at least one, since every rank takes part in every step; it is empty if there are fewer rows than ranks.
    """
    share = rows[rank::ranks]
    return [part for part in share.chunk(parts) if len(part)] or [share]
