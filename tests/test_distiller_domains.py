"""Domains of rows in a training loop of one's own."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import torch
from facts import raises
from torch import Tensor, nn

from crossdistill import Dataset, Distiller, Network
from crossdistill.errors import SettingError, ShapeError
from crossdistill.methods import MultiDistillation
from crossdistill.runtime.distributed import Devices

ROWS = 12
DOMAIN = ["speech", "music", "music"] * 4


class Frames(nn.Module):
    """Four frames of the input's values, in one layer."""

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layer1 = nn.Linear(6, width)

    def forward(self, values: Tensor) -> dict[str, Tensor]:
        return {"embedding": self.layer1(values.unflatten(1, (4, 6))).mean(1)}


def network(width: int, seed: int) -> Network:
    return Network(Frames(width, seed), ("audio",), ["layer1"])


def waves(rows: int = ROWS) -> Tensor:
    return torch.randn(rows, 24, generator=torch.Generator().manual_seed(3))


def distiller(domain: Sequence[str] | None = DOMAIN, data: Dataset | None = None, **settings: object) -> Distiller:
    teachers = {"speech": network(5, 1), "music": network(7, 2)}
    method = MultiDistillation.model_validate(settings)
    return Distiller(network(8, 0), teachers, method, example=(waves(), None, domain), data=data)


def test_each_row_teaches_by_its_domain() -> None:
    made = distiller()
    loss = made(waves(), domain=DOMAIN)
    loss.backward()
    assert set(made.terms) == {"multi-distillation/speech", "multi-distillation/music"}
    music = torch.tensor([name == "music" for name in DOMAIN])
    made.eval()
    whole = dict(made.terms)
    made(waves()[music], domain=["music"] * int(music.sum()))
    assert made.terms["multi-distillation/speech"] == 0
    # Normalised by a teacher's rows, its term is the same without the others.
    assert torch.allclose(made.terms["multi-distillation/music"], whole["multi-distillation/music"])


def test_a_row_without_teacher_and_rows_without_domain_are_refused() -> None:
    made = distiller()
    with raises(SettingError, "'birds'", "music"):
        made(waves(3), domain=["speech", "birds", "music"])
    with raises(SettingError, "domain=", "routing=all"):
        made(waves())
    with raises(ShapeError, "domain", 11, ROWS):
        made(waves(), domain=DOMAIN[1:])
    with raises(SettingError, "domain="):
        distiller(domain=None)
    data = Dataset.from_arrays("tones", {"audio": waves()}, domain=["speech", "music", "birds"] * 4)
    with raises(SettingError, "'birds'"):
        distiller(data=data)


@pytest.mark.parametrize("soft_by", ["classifier", "confidence"])
def test_soft_weights_are_measured_on_triples_with_domains(soft_by: str) -> None:
    made = distiller(routing="soft", soft_by=soft_by)
    made.measure([(waves(), None, DOMAIN)])
    assert bool(made(waves(), domain=DOMAIN).isfinite())
    # Once measured, the sound of a row decides.
    assert bool(made(waves()).isfinite())


class Rank(Devices):
    """One of two ranks that are threads of this process."""

    def __init__(self, rank: int, board: list[Any], barrier: Barrier) -> None:
        super().__init__(torch.device("cpu"), rank, 2)
        self.board, self.barrier = board, barrier

    def everyone(self, value: Any) -> list[Any]:
        """What both ranks give."""
        self.board[self.rank] = value
        self.barrier.wait()
        found = list(self.board)
        self.barrier.wait()
        return found

    def add_up(self, value: Tensor) -> Tensor:
        """The sum over both ranks."""
        return value.copy_(torch.stack(self.everyone(value.clone())).sum(0))

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of both ranks; a real exchange needs equal shapes."""
        both = self.everyone(rows.detach())
        assert both[0].shape[1:] == both[1].shape[1:]
        return torch.cat([rows if number == self.rank else other for number, other in enumerate(both)])


@pytest.mark.parametrize("normalise", ["teacher", "batch"])
def test_the_mean_of_the_losses_of_two_ranks_is_the_loss_of_one_process(normalise: str) -> None:
    # Two rows of speech on one rank, one on the other; music has rows on the second alone.
    domain, board, barrier = ["speech", "speech", "speech", "music", "music"], [None, None], Barrier(2, timeout=60)
    whole = distiller(normalise=normalise)
    whole(waves(5), domain=domain)

    def on(rank: int) -> dict[str, Tensor]:
        own = (slice(0, 2), slice(2, 5))[rank]
        made = distiller(normalise=normalise)
        made._devices = Rank(rank, board, barrier)
        made.load_state_dict(whole.state_dict())
        made(waves(5)[own], domain=domain[own])
        return made.terms

    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(on, range(2))
    for name, term in whole.terms.items():
        torch.testing.assert_close((first[name] + second[name]) / 2, term)
