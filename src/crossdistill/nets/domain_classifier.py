"""A small classifier of rows' domains from simple statistics of their values, for soft routing (USAD 2.0, 2606.06444).

A row weighs every teacher by how well its domain matches. The classifier is a linear discriminant with equal priors,
fitted in one pass.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from crossdistill.batch import Input
from crossdistill.losses.hidden_states import valid_frames

WINDOW, HOP, BANDS = 512, 256, 24
STATISTICS = 2 * BANDS + 2


def values_and_lengths(value: Input) -> tuple[Float[Tensor, "B L"], Int64[Tensor, " B"]]:
    """An input as one series for each row, with its length: "values" and "lengths" or "mask", or a plain tensor."""
    if isinstance(value, Tensor):
        values = value.flatten(1).float()
        return values, torch.full((len(values),), values.shape[1], device=values.device)
    values = value["values"] if "values" in value else next(iter(value.values()))
    values = values.float() if values.ndim == 2 else values.float().flatten(2).mean(2)
    lengths = lengths_of(value)
    return values, torch.full((len(values),), values.shape[1], device=values.device) if lengths is None else lengths


def lengths_of(value: Input | None) -> Int64[Tensor, " B"] | None:
    """The lengths of padded rows; None: nothing is padded."""
    if not isinstance(value, Mapping):
        return None
    return value["lengths"] if "lengths" in value else value["mask"].sum(1) if "mask" in value else None


def row_statistics(value: Input) -> Float[Tensor, "B F"]:
    """Means and spreads over time of the log energy in 24 bands, and of sign changes; padding is not read.

    Band energies are taken of Hann windows of 512 samples, relative to the loudest band of the row's mean (nats).
    """
    values, lengths = values_and_lengths(value)
    values = values.where(valid_frames(lengths, values.shape[1]), 0.0)
    missing = max(WINDOW - values.shape[1], 0)
    frames = torch.nn.functional.pad(values, (0, missing)).unfold(1, WINDOW, HOP)
    starts = torch.arange(frames.shape[1], device=values.device) * HOP
    # The first window of a short row is filled up with zeros.
    there = (starts + WINDOW <= lengths.unsqueeze(1)) | (starts == 0)
    spectrum = torch.fft.rfft(frames * torch.hann_window(WINDOW, device=values.device)).abs().square()[..., 1:]
    edges = torch.logspace(0, 8, BANDS + 1, base=2.0).round().long().tolist()
    bands = [spectrum[..., low : max(high, low + 1)].mean(-1) for low, high in pairwise(edges)]
    energy = (torch.stack([band for band in bands if band.shape], -1) + 1e-10).log()
    changes = (frames[..., 1:].sign() != frames[..., :-1].sign()).float().mean(-1, keepdim=True)
    each = torch.cat([energy, changes], -1).where(there.unsqueeze(-1), 0.0)
    count = there.sum(1, keepdim=True)
    mean = each.sum(1) / count
    spread = ((each - mean.unsqueeze(1)).square().where(there.unsqueeze(-1), 0.0).sum(1) / count).sqrt()
    loudest = mean[:, :BANDS].amax(1, keepdim=True)
    return torch.cat([mean[:, :BANDS] - loudest, mean[:, BANDS:], spread], 1)


class DomainClassifier(nn.Module):
    """Probabilities of the domains of a row; equal ones until `settle` has seen rows."""

    def __init__(self, domains: Sequence[str]) -> None:
        super().__init__()
        self.domains = tuple(domains)
        self.weight: Tensor
        self.bias: Tensor
        self.register_buffer("weight", torch.zeros(len(domains), STATISTICS))
        self.register_buffer("bias", torch.zeros(len(domains)))

    def forward(self, statistics: Float[Tensor, "B F"], sharpness: float = 1.0) -> Float[Tensor, "B C"]:
        """The probabilities; `sharpness` multiplies the log-odds (dimensionless)."""
        # In float32 also under autocast: the log-odds are small differences of large numbers.
        with torch.autocast(statistics.device.type, enabled=False):
            scores = statistics.float() @ self.weight.float().T + self.bias.float()
            return torch.softmax(scores * sharpness, 1)

    def settle(self, sums: "DomainSums") -> None:
        """Fit the classifier: w = S^-1 m_c, b = -m_c·w / 2 with the pooled covariance S and the means m_c."""
        counts = sums.counts.clamp_min(1).unsqueeze(1)
        means = sums.sums / counts
        within = sums.products - (means.T * sums.counts) @ means
        scatter = within / sums.counts.sum().clamp_min(1)
        # A share of each variance keeps the fit of few rows stable.
        scatter = scatter + torch.diag(scatter.diagonal() * 0.1 + 1e-6)
        weight = torch.linalg.solve(scatter.cpu(), means.T.cpu()).T.to(means.device)
        self.weight.copy_(weight)
        self.bias.copy_(-(means * weight).sum(1) / 2)


class DomainSums:
    """Sums over the rows of each domain, in double precision, from which the classifier is fitted."""

    def __init__(self, of: DomainClassifier) -> None:
        exact = torch.float64 if of.weight.device.type != "mps" else torch.float32
        self._place = {name: number for number, name in enumerate(of.domains)}
        self.counts = torch.zeros(len(of.domains), dtype=exact, device=of.weight.device)
        self.sums = torch.zeros(of.weight.shape, dtype=exact, device=of.weight.device)
        self.products = torch.zeros(STATISTICS, STATISTICS, dtype=exact, device=of.weight.device)

    def add(self, statistics: Float[Tensor, "B F"], domains: Sequence[str]) -> None:
        """Add rows; those of other domains are left out."""
        kept = [row for row, domain in enumerate(domains) if domain in self._place]
        places = torch.tensor([self._place[domains[row]] for row in kept], dtype=torch.long, device=self.sums.device)
        values = statistics[kept].to(self.sums)
        self.counts.index_add_(0, places, torch.ones_like(values[:, 0]))
        self.sums.index_add_(0, places, values)
        self.products += values.T @ values
