"""Models that cannot be traced (ViT, BERT) are cut between their layers, exactly, without running the stem again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from builders import Heard, drawn_rows
from facts import raises
from torch import Tensor, nn

from crossdistill import Live, Network, Recipe, Signal, Stage, run
from crossdistill.errors import SplitError
from crossdistill.testing import toy_dataset


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width), nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(x)


class ViT(nn.Module):
    """Checks its input's size, as vision transformers do, and keeps as many blocks as a number of the input says."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.patch = nn.Linear(2, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(4))
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != 6:
            raise ValueError("wanted 6 numbers")
        x = self.patch(x.reshape(len(x), 3, 2))
        for number, block in enumerate(self.blocks):
            if number == 3 and float(x.detach().abs().max()) > 1e6:
                break
            x = block(x)
        x += 0.5
        return self.head(x.mean(1))


class Encoded(NamedTuple):
    hidden: Tensor
    pooled: Tensor | None


class Encoder(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Block(width) for _ in range(3))

    def forward(self, hidden: Tensor, deep: bool = True) -> Encoded:
        for layer in self.layer[: 3 if deep else 2]:
            hidden = layer(hidden)
        return Encoded(hidden, None)


class Bert(nn.Module):
    """Data-dependent control flow, a structured result, an early value that goes around, and work in place."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.embeddings, self.encoder = nn.Linear(6, width), Encoder(width)
        self.pooler, self.act, self.classifier = nn.Linear(width, width), nn.ReLU(inplace=True), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> dict[str, Any]:
        early = self.embeddings(x)
        hidden = self.act(early).unsqueeze(1).expand(-1, 3, -1)
        encoded = self.encoder(hidden, deep=bool(x.sum() < 1e9))
        pooled = torch.tanh(self.pooler(encoded.hidden[:, 0])) + early
        return {"logits": self.classifier(pooled), "embedding": pooled}


CASES: tuple[tuple[Callable[[], nn.Module], str, int], ...] = (
    (ViT, "blocks.2", 4),
    (ViT, "blocks.1.mlp", 4),
    (ViT, "patch", 4),
    (Bert, "encoder.layer.1", 3),
    (Bert, "embeddings", 3),
)


def live(make: Callable[[], nn.Module], *taps: str) -> Live:
    torch.manual_seed(0)
    network = Network(make().eval(), "a", taps)
    network.probe(drawn_rows(5))
    network.requires_grad_(False)
    return Live("t", network, map(Signal.cut, taps))


@pytest.mark.parametrize(("make", "tap", "count"), CASES)
def test_d_a_cut_between_layers_is_the_whole_bit_for_bit(
    make: Callable[[], nn.Module], tap: str, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    teacher = live(make, tap)
    for seed in range(3):
        batch = drawn_rows(5, seed=seed)
        cut = teacher(batch).cuts[tap]
        # Another batch in between: nothing of a pass may be left in the network.
        teacher(drawn_rows(5, seed=99))
        wanted = teacher.network(batch, [Signal.LOGITS])
        assert torch.equal(teacher.tail(tap)(cut).need(Signal.LOGITS), wanted.need(Signal.LOGITS))
        edited = teacher.network.edited(batch, {tap: lambda value: 0.5 * value})
        assert torch.equal(
            teacher.tail(tap)(cut.rewritten(0.5 * cut.value)).need(Signal.LOGITS), edited.need(Signal.LOGITS)
        )
    assert not caplog.records, "nothing runs twice, so nothing is said"


@pytest.mark.parametrize(("make", "tap", "count"), CASES[:2])
def test_d_the_stem_does_not_run_again(make: Callable[[], nn.Module], tap: str, count: int) -> None:
    teacher = live(make, tap)
    ran: list[str] = []
    for name, layer in teacher.network.module.named_modules():
        layer.register_forward_hook(lambda *_, name=name: ran.append(name))
        if isinstance(layer, nn.Linear):
            forward = layer.forward
            layer.forward = lambda x, forward=forward, name=name: (ran.append(f"compute {name}"), forward(x))[1]
    teacher(drawn_rows(5))
    ran.clear()
    cut = teacher(drawn_rows(5)).cuts[tap]
    assert not any(name.startswith("compute head") for name in ran), "what comes after the cut does not run in the stem"
    ran.clear()
    teacher.tail(tap)(cut)
    computed = [name for name in ran if name.startswith("compute")]
    assert computed, "the rest runs"
    assert not any(name.startswith(("compute patch", "compute blocks.0")) for name in computed)


def test_d_gradient_flows_through_the_cut_and_into_nothing_else() -> None:
    teacher = live(ViT, "blocks.1")
    cut = teacher(drawn_rows(5)).cuts["blocks.1"]
    value = cut.value.detach().requires_grad_()
    teacher.tail("blocks.1")(cut.rewritten(value)).need(Signal.LOGITS).sum().backward()
    assert value.grad is not None
    assert bool((value.grad != 0).any())
    assert all(parameter.grad is None for parameter in teacher.network.parameters())


def test_d_several_taps_in_one_pass() -> None:
    taps = ("blocks.0", "blocks.2", "blocks.2.mlp")
    teacher = live(ViT, *taps)
    wanted = teacher.network(drawn_rows(5), [Signal.LOGITS]).need(Signal.LOGITS)
    for _ in range(2):
        cuts = teacher(drawn_rows(5)).cuts
        assert set(cuts) == set(taps)
        for tap, cut in cuts.items():
            assert torch.equal(teacher.tail(tap)(cut).need(Signal.LOGITS), wanted)


class Again(ViT):
    """A layer that runs twice."""

    def forward(self, x: Tensor) -> Tensor:
        if float(x.sum()) > 1e9:
            return x
        x = self.patch(x.reshape(len(x), 3, 2))
        return self.head(self.blocks[0](self.blocks[0](x)).mean(1))


class Remembers(ViT):
    """What a layer leaves behind is read after the cut, which replaying it would not set."""

    def __init__(self) -> None:
        super().__init__()
        self.patch.register_forward_hook(self._keep)
        self.first = nn.Sequential(self.patch)

    def _keep(self, layer: nn.Module, args: Any, result: Tensor) -> None:
        self.kept = result.mean()

    def forward(self, x: Tensor) -> Tensor:
        if float(x.sum()) > 1e9:
            return x
        x = self.first(x.reshape(len(x), 3, 2) if x.shape[0] else x.reshape(0, 3, 2))
        return self.head(self.blocks[0](x).mean(1)) + self.kept


@pytest.mark.parametrize("make", [Again, Remembers])
def test_d_what_cannot_be_replayed_runs_whole_and_says_what_that_costs(
    make: Callable[[], nn.Module], caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    network = Network(make().eval(), "a", ("blocks.0",))
    network.probe(drawn_rows(5))
    teacher = Live("t", network, [Signal.cut("blocks.0")])
    if make is Again:
        with raises(SplitError, "blocks.0", "2 times"):
            network.cuts(drawn_rows(5), ["blocks.0"])
    cut = teacher(drawn_rows(5)).cuts["blocks.0"]
    teacher(drawn_rows(5, seed=5))
    found = teacher.tail("blocks.0")(cut.rewritten(0.5 * cut.value)).need(Signal.LOGITS)
    wanted = network.edited(drawn_rows(5), {"blocks.0": lambda value: 0.5 * cut.value}).need(Signal.LOGITS)
    assert torch.equal(found, wanted)
    if make is Again:
        assert "blocks.0" in caplog.text
        assert "runs the whole network" in caplog.text
        assert len(caplog.records) == 1


def test_d_masks_on_a_model_that_cannot_be_traced(tmp_path: Path) -> None:
    data = toy_dataset(("first",), rows=60)
    torch.manual_seed(0)
    teacher = Network(Bert(), "first", ("pooler", "embeddings"))
    student = Network(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)), "first")
    stages = (
        Stage(method={"name": "specialise", "taps": {"t": ("pooler", "embeddings")}}, epochs=2, batch_size=12),
        Stage(method="route", epochs=1),
    )
    says = Heard()
    run(Recipe(data=data, student=student, teachers={"t": teacher}, stages=stages), tmp_path / "out", display=says)
    assert any("t cut:pooler" in line and "cannot be traced" in line for line in says.lines)
