"""Multi-distillation into the student's own heads, and from teachers that give one vector for a recording."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from facts import raises
from torch import Tensor, nn
from torch.nn import functional

from crossdistill import Dataset, Network, Recipe, Stage, load_student, run
from crossdistill.data.variable_length import Padded
from crossdistill.errors import RecipeError, SettingError
from crossdistill.losses.hidden_states import hidden_state_distance
from crossdistill.methods import MultiDistillation
from crossdistill.models.voice_and_pitch import VoiceAndPitch
from crossdistill.testing.rehearsal import Contract, Rehearsal

HOP, PITCHES, VOICE = 4, 5, 3


class Sounding(nn.Module):
    """Waves (B, L) -> frames (B, L // 4, 6), heads of its own on them, and garbage in padded frames."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.states = nn.Linear(HOP, 6), nn.Tanh()
        self.pitch, self.voice, self.wide = nn.Linear(6, PITCHES), nn.Linear(6, VOICE), nn.Linear(6, 2)

    def frames(self, lengths: Tensor) -> Tensor:
        return lengths // HOP

    def forward(self, values: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        whole = values[:, : values.shape[1] // HOP * HOP].unflatten(1, (-1, HOP))
        padded = torch.arange(whole.shape[1]) >= self.frames(lengths)[:, None]
        states = self.states(self.first(whole).masked_fill(padded[..., None], 1e4))
        self.pitch(states), self.wide(states)
        mean = states.masked_fill(padded[..., None], 0).sum(1) / self.frames(lengths)[:, None]
        return {"embedding": self.voice(mean)}


class Voices(nn.Module):
    """Waves (B, L) -> one vector (B, 3) for a row, without a time axis."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, VOICE)

    def forward(self, values: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        there = torch.arange(values.shape[1]) < lengths[:, None]
        power = (values * there).square().sum(1) / lengths
        return {"embedding": self.linear(torch.stack([power, power.sqrt()], 1))}


class Pitches(nn.Module):
    """Waves (B, L) -> probabilities (B, L // 4, 5), with NaN in padded frames."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.likely = nn.Linear(HOP, PITCHES), nn.Sigmoid()
        self.raw = nn.Identity()

    def frames(self, lengths: Tensor) -> Tensor:
        return lengths // HOP

    def forward(self, values: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        whole = values[:, : values.shape[1] // HOP * HOP].unflatten(1, (-1, HOP))
        padded = torch.arange(whole.shape[1]) >= self.frames(lengths)[:, None]
        logits = self.raw(self.linear(whole).masked_fill(padded[..., None], torch.nan))
        return {"embedding": self.likely(logits).nanmean(1)}


def sounds() -> Dataset:
    source = torch.Generator().manual_seed(0)
    waves = [torch.randn(int(torch.randint(24, 48, (), generator=source)), generator=source) for _ in range(40)]
    domain = ["speech", "music"] * 20
    return Dataset.from_arrays("sounds", {"audio": Padded().rows(waves)}, domain=domain)


def networks() -> dict[str, Network]:
    torch.manual_seed(0)
    taps = ("states", "pitch", "voice", "wide")
    made = {"student": Sounding(), "voice": Voices(), "tone": Pitches()}
    return {
        "student": Network(made["student"], "audio", taps),
        "voice": Network(made["voice"], "audio"),
        "tone": Network(made["tone"], "audio", ("likely", "raw")),
    }


SETTINGS: Mapping[str, Any] = {
    "domains": {"voice": ["speech"], "tone": ["music"]},
    "layers": {"tone": ["likely"]},
    "student_heads": {"voice": "embedding", "tone": "pitch"},
    "losses": {"voice": "cosine", "tone": "bernoulli"},
}


def rehearsal(**changed: Any) -> Rehearsal:
    settings = MultiDistillation.model_validate({**SETTINGS, **changed})
    return Rehearsal(Contract(settings, sounds(), given=networks()), teachers=2)


def frames_of(held: Rehearsal, tap: str, member: str) -> list[Tensor]:
    """The valid frames at a tap for each row of the first batch, each row by itself."""
    inputs = held.batch().inputs["audio"]
    module, found = held.plan.members[member].module, []
    for wave, length in zip(inputs["values"], inputs["lengths"], strict=True):
        kept: list[Tensor] = []
        handle = module.get_submodule(tap).register_forward_hook(lambda *given, kept=kept: kept.append(given[2]))
        module(wave[None, :length], length[None])
        handle.remove()
        found.append(kept[0][0])
    return found


def test_a_vector_is_predicted_from_the_mean_of_the_valid_frames() -> None:
    held = rehearsal(student_heads={}, losses={}, taps=("states",), translator="mlp", layers={"tone": ["likely"]})
    values = held.validated()["voice/embedding"]
    rows = [row for row, domain in enumerate(held.batch().domain or ()) if domain == "speech"]
    states, head = frames_of(held, "states", "student"), held.job.method.heads["voice"].translator
    assert len({len(states[row]) for row in rows}) > 1
    for value, row in zip(values, rows, strict=True):
        mean = sum(states[row]) / len(states[row])
        predicted = head(mean[None, None], None)[0, 0, 0]
        wave, length = held.batch().inputs["audio"]["values"][row], held.batch().inputs["audio"]["lengths"][row]
        wanted = held.teachers["voice"].module(wave[None, :length], length[None])["embedding"][0]
        angle = torch.dot(predicted, wanted) / (predicted.norm() * wanted.norm())
        slow = (predicted - wanted).abs().mean() + torch.log(1 + torch.exp(-angle))
        torch.testing.assert_close(value, slow)


def test_the_students_own_heads_are_compared_without_translators() -> None:
    held = rehearsal()
    assert not list(held.job.method.parameters())
    found, domain = held.validated(), held.batch().domain or ()
    pitch, wanted = frames_of(held, "pitch", "student"), frames_of(held, "likely", "tone")
    music = [row for row, name in enumerate(domain) if name == "music"]
    for value, row in zip(found["tone/likely"], music, strict=True):
        mine, theirs = (torch.distributions.Bernoulli(probs=one) for one in (pitch[row].sigmoid(), wanted[row]))
        torch.testing.assert_close(value, torch.distributions.kl_divergence(theirs, mine).mean())
    step = held.step(held.rows())
    assert bool(step["loss"] > 0)
    modules = held.plan.members["student"].module
    assert all(bool(getattr(modules, name).weight.grad.any()) for name in ("pitch", "voice", "first"))
    assert modules.wide.weight.grad is None or not modules.wide.weight.grad.any()


def test_the_choice_of_the_best_epoch_knows_the_weights_of_teachers() -> None:
    plain, weighted = rehearsal().validated(), rehearsal(teacher_weights={"tone": 20.0}).validated()
    music = torch.tensor([name == "music" for name in rehearsal().batch().domain or ()])
    torch.testing.assert_close(weighted["student"], plain["student"] * torch.where(music, 20.0, 1.0))


@pytest.mark.parametrize("kind", ["cosine", "bernoulli"])
def test_equal_predictions_have_no_loss_and_padding_is_not_read(kind: Any) -> None:
    target = torch.tensor([0.0, 0.2, 1.0, 0.7]).repeat(2, 1, 3, 1)
    logits = target.logit().clamp(-60, 60) if kind == "bernoulli" else 3 * target
    valid = torch.tensor([[True, True, False], [True, True, True]])
    logits[0, 0, 2], target[0, 0, 2] = torch.nan, torch.nan
    found = hidden_state_distance(logits.requires_grad_(), target, valid, kind)
    torch.testing.assert_close(found, torch.zeros(2, 1), atol=1e-6, rtol=0)
    found.sum().backward()
    assert bool(logits.grad is not None and logits.grad.isfinite().all())


@pytest.mark.parametrize(
    ("changed", "error", "facts"),
    [
        ({"student_heads": {"tone": "wide"}}, RecipeError, ["(11, 2)", "(11, 5)", "tone"]),
        ({"student_heads": {"tone": "pich"}}, RecipeError, ["pich", "pitch"]),
        ({"student_heads": {"tune": "pitch"}}, SettingError, ["tune", "tone"]),
        ({"losses": {"tune": "cosine"}}, SettingError, ["tune", "tone"]),
        ({"layers": {"tone": ["likely", "raw"]}}, RecipeError, ["tone", "2"]),
        ({"layers": {"tone": ["raw"]}}, RecipeError, ["bernoulli", "raw", "losses.tone"]),
        ({"standardise": "z-score"}, SettingError, ["z-score", "student_heads"]),
        ({"loss": "barlow"}, SettingError, ["barlow", "losses"]),
    ],
)
def test_heads_and_losses_that_do_not_fit_are_refused(
    changed: Mapping[str, Any], error: type[Exception], facts: Sequence[str]
) -> None:
    with raises(error, *facts):
        rehearsal(**changed)


def test_recipes_written_before_stay_equal() -> None:
    assert not {"student_heads", "losses"} & MultiDistillation().model_dump().keys()
    assert {"student_heads", "losses"} <= MultiDistillation.model_validate(SETTINGS).model_dump().keys()


def test_the_saved_student_holds_its_heads(tmp_path: Path) -> None:
    members, data = networks(), sounds()
    recipe = Recipe(
        data=data,
        student=members["student"],
        teachers={name: members[name] for name in ("voice", "tone")},
        stages=(Stage(method=MultiDistillation.model_validate(SETTINGS), epochs=1, batch_size=8),),
    )
    run(recipe, tmp_path / "run")
    network = load_student(tmp_path / "run", module=Sounding()).network
    assert network.module.pitch.weight.shape == (PITCHES, 6)
    assert not torch.equal(network.module.pitch.weight, members["student"].module.pitch.weight)


def test_the_student_of_voice_and_pitch_does_not_read_padding() -> None:
    torch.manual_seed(0)
    module = VoiceAndPitch().eval()
    assert sum(one.numel() for one in module.parameters()) <= 1_000_000
    wave = torch.randn(1, 8000)
    padded, lengths = torch.full((2, 12000), 9.0), torch.tensor([8000, 12000])
    padded[0, :8000] = wave
    network = Network(module, "audio", ("pitch",))
    kept: list[Tensor] = []
    module.pitch.register_forward_hook(lambda *given: kept.append(given[2]))
    with torch.no_grad():
        alone, together = module(wave)["embedding"], module(padded, lengths)["embedding"]
    assert kept[0].shape == (1, 51, 360)
    assert module.frames(lengths).tolist() == [51, 76]
    torch.testing.assert_close(together[0], alone[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(kept[1][0, :49], kept[0][0, :49], atol=1e-4, rtol=0)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(2))
    assert functional.cosine_similarity(together[0], together[1], dim=0) < 1
    assert network.taps == ("pitch",)
