"""Multi-distillation: domains route rows, gradients and passes; padding is read nowhere; every weighting works."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from kills import assert_same_run
from torch import Tensor, nn

from crossdistill import Dataset, Network, OptimizerConfig, Recipe, Stage, run
from crossdistill.batch import Batch
from crossdistill.data.domain_mix import DomainMix
from crossdistill.data.variable_length import Padded
from crossdistill.errors import CrossdistillError, RecipeError, StoppedError
from crossdistill.method import Progress
from crossdistill.methods import MultiDistillation
from crossdistill.methods.domain_routing import confidence_weights, domain_weights
from crossdistill.recipe import Checkpoints
from crossdistill.testing import check_method, check_ranks, toy_dataset
from crossdistill.testing.rehearsal import Contract, Rehearsal

HOP = 4


class Frames(nn.Module):
    """Waves (B, L) -> frames (B, L // hop, width) through two layers; padded frames hold garbage."""

    def __init__(self, width: int, layers: int = 3, hop: int = HOP) -> None:
        super().__init__()
        self.hop, self.seen = hop, list[int]()
        self.first = nn.Linear(hop, width)
        for number in range(1, layers + 1):
            setattr(self, f"layer{number}", nn.Linear(width, width))
        self.layers = layers

    def frames(self, lengths: Tensor) -> Tensor:
        return lengths // self.hop

    def forward(self, values: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        self.seen.append(len(values))
        whole = values[:, : values.shape[1] // self.hop * self.hop].unflatten(1, (-1, self.hop))
        padded = torch.arange(whole.shape[1]) >= self.frames(lengths)[:, None]
        state = self.first(whole).masked_fill(padded[..., None], 1e4)
        for number in range(1, self.layers + 1):
            state = torch.tanh(getattr(self, f"layer{number}")(state))
        return {"embedding": state.mean(1)}


class FramesNetwork(Network):
    """A network that says which frames are valid, as networks of sound do."""

    def frames(self, lengths: Tensor) -> Tensor:
        valid: Tensor = self.module.frames(lengths)
        return valid


def sounds(rows: int = 40, domains: Sequence[str] = ("speech", "music")) -> Dataset:
    """Waves of other lengths: low tones are speech, noise is music."""
    source = torch.Generator().manual_seed(0)
    waves = []
    for row in range(rows):
        length = int(torch.randint(24, 48, (), generator=source))
        noise = torch.randn(length, generator=source)
        waves.append(noise if row % 2 else torch.sin(torch.arange(length) * 0.2) + 0.1 * noise)
    return Dataset.from_arrays(
        "sounds",
        {"audio": Padded().rows(waves)},
        domain=[domains[row % len(domains)] for row in range(rows)],
    )


def network(width: int, seed: int, layers: int = 3, hop: int = HOP) -> Network:
    torch.manual_seed(seed)
    return FramesNetwork(Frames(width, layers, hop), ("audio",), [f"layer{n}" for n in range(1, layers + 1)])


def networks() -> dict[str, Network]:
    return {"student": network(8, 0, 2), "speech": network(6, 1), "music": network(10, 2)}


def rehearsal(settings: MultiDistillation, data: Dataset | None = None, **stage: Any) -> Rehearsal:
    return Rehearsal(Contract(settings, sounds() if data is None else data, given=networks()), teachers=2, **stage)


def of_domains(names: Sequence[str]) -> MultiDistillation:
    """Settings for teachers of two domains, which one teacher has alone."""
    own = [("a", "b")] if len(names) == 1 else [("ab"[number % 2],) for number in range(len(names))]
    return MultiDistillation(domains=dict(zip(names, own, strict=True)))


@pytest.mark.slow
def test_the_contract_holds_with_a_term_for_all_teachers_and_domains() -> None:
    data = toy_dataset(("first", "second", "third"))
    data = replace(data, domain=tuple("ab"[row // 8 % 2] for row in range(len(data))))

    check_method(of_domains, dataset=data)


def test_a_row_teaches_the_head_of_its_domain_alone_and_a_teacher_runs_on_its_rows_alone() -> None:
    held = rehearsal(MultiDistillation())
    domain = held.dataset.domain
    assert domain is not None
    music = [row for row in held.dataset.splits["train"].tolist() if domain[row] == "music"][:5]
    for teacher in held.teachers.values():
        teacher.module.seen.clear()
    terms = held.terms(held.batch(torch.tensor(music)))
    assert set(terms) == {"multi-distillation/speech", "multi-distillation/music"}
    assert terms["multi-distillation/speech"] == 0
    assert terms["multi-distillation/music"] > 0
    assert held.teachers["music"].module.seen == [5]
    assert held.teachers["speech"].module.seen == []
    heads = held.job.method.heads
    torch.stack(list(terms.values())).sum().backward()
    gradients = {name: [p.grad for p in heads[name].parameters()] for name in ("speech", "music")}
    assert all(gradient is None or not gradient.any() for gradient in gradients["speech"])
    assert all(gradient is not None and bool(gradient.any()) for gradient in gradients["music"])


def test_each_teacher_counts_its_rows_of_the_whole_step() -> None:
    whole, parts = rehearsal(MultiDistillation()), rehearsal(MultiDistillation(), micro_batches=3)
    rows = whole.rows()
    logs = [run.step(rows) for run in (whole, parts)]
    for name in ("speech", "music"):
        term = f"raw/multi-distillation/{name}"
        assert torch.allclose(logs[0][term], logs[1][term], rtol=1e-5)
    # Normalised by the batch, a teacher's term is the published one times its share of the rows.
    other = rehearsal(MultiDistillation(normalise="batch"))
    domain = other.dataset.domain
    assert domain is not None
    share = sum(domain[row] == "speech" for row in rows.tolist()) / len(rows)
    plain = other.step(rows)["raw/multi-distillation/speech"]
    assert torch.allclose(plain, share * logs[0]["raw/multi-distillation/speech"], rtol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"translator": "lconv"},
        {"translator": "transformer", "loss": "l2"},
        {"translator": "hybrid", "loss": "usad", "standardise": "z-score"},
        {"translator": "layer-lconv", "routing": "soft", "layers": {"speech": (1, 3), "music": (2, 3)}},
        {"translator": "half", "loss": "barlow", "bins": 4},
        {"translator": "mlp", "routing": "soft", "soft_by": "confidence", "least_weight": 0.0},
    ],
    ids=lambda settings: settings["translator"],
)
def test_a_clip_gives_in_a_padded_batch_what_it_gives_alone(settings: Mapping[str, Any]) -> None:
    held = rehearsal(MultiDistillation.model_validate(settings))
    method, student, teachers = held.job.method.eval(), held.job.student, held.job.teachers
    batches = [held.batch(held.dataset.splits["train"][start : start + 8]) for start in (0, 8)]
    with torch.no_grad():
        method.measure(batches, student, teachers)
        batch = batches[0]
        together = method.validate(batch, student, teachers)
        wider = {"values": torch.nn.functional.pad(batch.inputs["audio"]["values"], (0, 16), value=9.0)}
        wider["lengths"] = batch.inputs["audio"]["lengths"]
        padded = method.validate(replace(batch, inputs={"audio": wider}), student, teachers)
        for name, values in together.items():
            assert torch.allclose(values, padded[name], atol=1e-5), name
        for name in ("speech", "music"):
            rows = [row for row, domain in enumerate(batch.domain or ()) if domain == name]
            rows = list(range(8)) if settings.get("routing") == "soft" else rows
            alone = [method.validate(_alone(batch, row), student, teachers) for row in rows]
            tap = next(key for key in together if key.startswith(f"{name}/"))
            values = torch.cat([each[tap] for each in alone])
            assert torch.allclose(values, together[tap], atol=1e-5)


def _alone(batch: Batch, row: int) -> Batch:
    one = batch.select(torch.tensor([row]))
    length = int(one.inputs["audio"]["lengths"])
    return replace(
        one, inputs={"audio": {"values": one.inputs["audio"]["values"][:, :length], "lengths": torch.tensor([length])}}
    )


def test_soft_weights_follow_the_sound_of_a_row() -> None:
    held = rehearsal(MultiDistillation(routing="soft"))
    method, batches = held.job.method, [held.batch(held.dataset.splits["train"])]
    method.measure(batches, held.job.student, held.job.teachers)
    weights = domain_weights(method.classifier, batches[0], held.job.student, method.domains, 1.0)
    assert torch.allclose(weights["speech"] + weights["music"], torch.ones(len(batches[0])))
    speech = torch.tensor([domain == "speech" for domain in batches[0].domain or ()])
    assert bool((weights["speech"][speech] > 0.9).all())
    assert bool((weights["speech"][~speech] < 0.1).all())


def test_a_teacher_is_confident_of_rows_like_those_of_its_domain_alone() -> None:
    held = rehearsal(MultiDistillation(routing="soft", soft_by="confidence", sharpness=3.0))
    method, batch = held.job.method.eval(), held.batch(held.dataset.splits["train"])
    teachers, layers = held.job.teachers, held.job.method.layers
    method.measure(
        [batch.select(torch.arange(9)), batch.select(torch.arange(9, len(batch)))], held.job.student, teachers
    )
    ran = {name: teacher(batch) for name, teacher in teachers.items()}
    weights = confidence_weights(method.own, batch, ran, teachers, layers, 3.0)
    assert torch.allclose(weights["speech"] + weights["music"], torch.ones(len(batch)))
    speech = torch.tensor([domain == "speech" for domain in batch.domain or ()])
    assert weights["speech"][speech].mean() > 0.75
    assert weights["speech"][~speech].mean() < 0.25
    # The formula by hand: the mean over channels of the log-odds of two Gaussians, in each teacher's own features.
    odds = []
    for name, own in {"speech": speech, "music": ~speech}.items():
        frames = batch.inputs["audio"]["lengths"] // HOP
        states = ran[name].features["layer3"].double()
        mean = torch.stack([states[row, :count].mean(0) for row, count in enumerate(frames.tolist())])
        likely = []
        for rows in (own, ~own):
            variance = mean[rows].var(0, correction=0)
            spread = (variance + 0.1 * variance.mean()).sqrt()
            likely.append(torch.distributions.Normal(mean[rows].mean(0), spread).log_prob(mean).mean(1))
        odds.append(likely[0] - likely[1])
    expected = torch.softmax(torch.stack(odds) * 3.0, 0)
    assert torch.allclose(weights["speech"].double(), expected[0], atol=1e-4)
    # A teacher runs once, on all rows.
    for teacher in held.teachers.values():
        teacher.module.seen.clear()
    terms = held.terms(batch)
    assert [teacher.module.seen for teacher in held.teachers.values()] == [[len(batch)]] * 2
    # A term is the sum of weighted losses, divided by all rows: weights of a row add up to 1.
    losses = method.validate(batch, held.job.student, teachers)
    for name, weight in weights.items():
        mean = torch.stack([losses[f"{name}/layer{number}"] for number in (1, 2, 3)]).mean(0)
        kept = weight > method.config.least_weight
        torch.testing.assert_close(terms[f"multi-distillation/{name}"], (mean * weight[kept]).sum() / len(batch))


def test_a_row_that_no_teacher_can_read_has_no_weight() -> None:
    held = rehearsal(MultiDistillation(routing="soft", soft_by="confidence"))
    batch = held.batch(held.dataset.splits["train"][:4])
    held.job.method.measure([batch], held.job.student, held.job.teachers)
    half = replace(batch, present={"audio": torch.tensor([True, False, True, False])})
    ran = {name: teacher(half) for name, teacher in held.job.teachers.items()}
    weights = confidence_weights(held.job.method.own, half, ran, held.job.teachers, held.job.method.layers, 1.0)
    total = weights["speech"] + weights["music"]
    assert total.tolist() == pytest.approx([1, 0, 1, 0])


@pytest.mark.parametrize("weighting", ["uncertainty", "gradnorm", "loss-ratio", "pcgrad"])
def test_every_weighting_takes_steps_in_which_a_teacher_has_no_rows(weighting: str) -> None:
    held = rehearsal(MultiDistillation(drop=0.5), weighting=weighting)
    assert held.job.groups == ("speech", "music")
    for number in range(6):
        # The first step has rows of one domain only.
        rows = held.rows() if number else held.dataset.splits["train"][::2][:6]
        logs = held.step(rows, number)
        assert bool(logs["loss"].isfinite())
    factors = held.training.weighting.weights().values()
    assert all(bool(factor.isfinite()) and factor > 0 for factor in factors)
    if weighting == "gradnorm":
        assert not bool(held.training.weighting.first.isnan().any())
        assert len({float(factor) for factor in factors}) > 1


def test_dropping_leaves_at_least_one_teacher_and_is_the_same_again() -> None:
    from crossdistill.methods.routed_layers import kept_teachers

    kept = [kept_teachers(("a", "b", "c"), 0.6, 0, Progress(epoch=e, step=s)) for e in range(3) for s in range(20)]
    assert min(map(len, kept)) == 1
    assert {len(names) for names in kept} == {1, 2, 3}
    assert kept[7] == kept_teachers(("a", "b", "c"), 0.6, 0, Progress(epoch=0, step=7))


def recipe(settings: Mapping[str, Any] | None = None, data: Dataset | None = None, **stage: Any) -> Recipe:
    members = networks()
    student = members.pop("student")
    optimizer = OptimizerConfig(name="adamw", learning_rate=2e-3, schedule="linear", warm_up=0.2)
    made = {"method": MultiDistillation.model_validate(settings or {}), "epochs": 2, "batch_size": 6, "clip_norm": 5.0}
    return Recipe(
        name="sounds",
        data=sounds() if data is None else data,
        student=student,
        teachers=members,
        stages=(Stage.model_validate({**made, "optimizer": optimizer, **stage}),),
        checkpoints=Checkpoints(steps=1),
    )


@pytest.mark.parametrize(
    ("settings", "domains", "facts"),
    [
        ({"domains": {"speech": ["talk"]}}, ("speech", "music"), ["'speech'", "'talk'"]),
        ({}, ("speech", "music", "birds"), ["'birds'", "music"]),
        ({"domains": {"spech": ["speech"]}}, ("speech", "music"), ["'spech'", "'speech'"]),
        ({"layers": {"music": [9]}}, ("speech", "music"), ["'music'", "'layer9'"]),
        ({"taps": ["layer1", "layer2"]}, ("speech", "music"), ["layer-mlp", "lconv"]),
        ({"translator": "shared"}, ("speech", "music"), ["6", "10"]),
        ({"loss": "barlow", "routing": "soft"}, ("speech", "music"), ["barlow", "soft"]),
        ({"untaught": ["speech"]}, ("speech", "music"), ["untaught", "'speech'"]),
        ({"untaught": ["bird"]}, ("speech", "music", "birds"), ["'bird'", "'birds'"]),
    ],
)
def test_what_does_not_fit_is_refused_before_training(
    settings: Mapping[str, Any], domains: Sequence[str], facts: Sequence[str], tmp_path: Path
) -> None:
    with pytest.raises(CrossdistillError) as refused:
        run(recipe(settings, sounds(domains=domains)), tmp_path / "out")
    assert all(fact in str(refused.value) for fact in facts)
    assert not list((tmp_path / "out").glob("stages/*/checkpoint*"))


def test_data_without_domains_are_refused_unless_all_rows_go_to_all_teachers(tmp_path: Path) -> None:
    plain = replace(sounds(), domain=None)
    with pytest.raises(RecipeError, match="routing=all"):
        run(recipe(data=plain), tmp_path / "refused")
    run(recipe({"routing": "all"}, data=plain, epochs=1), tmp_path / "out")


def test_validation_has_the_loss_of_each_teacher_and_layer(tmp_path: Path) -> None:
    result = run(recipe(epochs=1), tmp_path / "out")
    text = (tmp_path / "out" / "metrics.jsonl").read_text()
    assert all(f'"{teacher}/layer{number}"' in text for teacher in ("speech", "music") for number in (1, 2, 3))
    assert result is not None


@pytest.mark.slow
def test_two_processes_compute_what_one_does_with_domains() -> None:
    data = toy_dataset(("first", "second", "third"))
    data = replace(data, domain=tuple("ab"[row // 8 % 2] for row in range(len(data))))
    check_ranks(of_domains, dataset=data, tolerance=1e-5)


@pytest.mark.parametrize("soft_by", ["classifier", "confidence"])
def test_a_run_stopped_within_an_epoch_ends_as_one_that_was_not(soft_by: str, tmp_path: Path) -> None:
    settings = {"routing": "soft", "soft_by": soft_by, "standardise": "z-score", "drop": 0.3}
    mix = DomainMix(quotas={"speech": 4, "music": 2}) if soft_by == "classifier" else DomainMix(temperature=3.0)
    made = recipe(settings, replace(sounds(), mix=mix), weighting="gradnorm")
    left = [2]

    def stop() -> bool:
        left[0] -= 1
        return left[0] == 0

    with pytest.raises(StoppedError):
        run(made, tmp_path / "stopped", stop=stop)
    run(made, tmp_path / "stopped", resume=True)
    run(made, tmp_path / "whole")
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")
