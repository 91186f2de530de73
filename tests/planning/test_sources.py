"""Banked or live: what is decided for which output and why, what a run makes of it, and what a resumed run keeps."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from bank_recipes import EPOCHS, assert_close, choices, masks, planned, recipe, stage, weights
from builders import Heard
from facts import raises, states
from torch import Tensor, nn

from crossdistill import Batch, Dataset, Live, Network, Signal, run
from crossdistill.bank.bank import BankSettings
from crossdistill.errors import BankDamaged, RecipeError
from crossdistill.methods import KD, Collaborate, Route, Specialise, Supervised
from crossdistill.planning.attach_banks import attach_banks
from crossdistill.planning.sources import BankChoice, choices_key, explained, load_choices
from crossdistill.runtime.distributed import Devices
from crossdistill.runtime.progress import Quiet
from crossdistill.testing import toy_dataset, toy_models


def test_frozen_outputs_are_banked_and_what_trains_is_live() -> None:
    found = choices(recipe(stage(KD())))
    assert {name: one.banked for name, one in found.items()} == {
        "student-network logits": False,
        "teacher-0 logits": True,
        "teacher-1 logits": True,
    }
    assert found["student-network logits"].reason == "it trains in this stage"
    assert found["teacher-0 logits"].reason == "frozen, on data that stay the same"
    rows = len(toy_dataset().splits["train"]) + len(toy_dataset().splits["validation"])
    assert found["teacher-0 logits"].bytes == rows * 4 * 4


def test_a_student_that_is_frozen_is_banked_too() -> None:
    found = choices(recipe(masks()))
    assert set(found) == {
        "student-network logits",
        "teacher-0 cut:joint",
        "teacher-0 cut:hidden",
        "teacher-1 cut:hidden",
    }
    assert all(one.banked for one in found.values())


def test_specialised_teachers_are_banked_by_their_logits() -> None:
    found = choices(recipe(masks(), stage(Route())), 1)
    assert sum(one.banked for one in found.values()) == 3
    assert found["teacher-0@joint logits"].banked


def test_a_specialised_teacher_whose_base_trains_is_live() -> None:
    found = choices(recipe(masks(), stage(Route(), trains=("student", "teacher-0"))), 1)
    assert {one.source for one in found.values() if one.banked} == {"teacher-1@hidden"}
    assert found["teacher-0@joint logits"].reason == "it trains in this stage"


def test_a_member_that_trains_at_one_layer_alone_is_live() -> None:
    found = choices(recipe(stage(KD(), trains=("student", "teacher-0:embed"))))
    assert not found["teacher-0 logits"].banked


def test_live_when_that_is_what_the_stage_says() -> None:
    found = choices(recipe(stage(KD(), "live")))
    assert not any(one.banked for one in found.values())
    assert found["teacher-0 logits"].reason == "the stage's source is 'live'"


@pytest.mark.parametrize(
    ("epochs", "steps", "banked"), [(0, None, False), (1, None, False), (2, None, True), (2, 1, False)]
)
def test_a_bank_that_costs_more_than_it_saves_is_not_filled(epochs: int, steps: int | None, banked: bool) -> None:
    found = choices(recipe(stage(KD(), epochs=epochs, steps=steps)))
    assert found["teacher-0 logits"].banked is banked
    if not banked:
        looked = epochs * (48 + 24 * (steps or 6))
        assert f"reads {looked} rows in all, and a bank would be filled for 192" in found["teacher-0 logits"].reason
    assert choices(recipe(stage(KD(), "banked", epochs=1)))["teacher-0 logits"].banked, "asked for, it is"


def test_the_smallest_outputs_get_the_budget_first() -> None:
    # 192 rows: logits of 4 numbers, hidden of 12, joint of 24; 4 bytes each.
    made = recipe(masks(), bank=BankSettings(budget=192 * 4 * (4 + 12 + 12)))
    found = choices(made)
    assert {name for name, one in found.items() if one.banked} == set(found) - {"teacher-0 cut:joint"}
    assert found["teacher-0 cut:joint"].reason == (
        "its bank of 192 rows would take 18.0 kB, and bank.budget leaves 0 bytes of 21.0 kB"
    )
    half = choices(recipe(masks(), bank=BankSettings(budget=192 * 2 * 52, dtype="float16")))
    assert all(one.banked for one in half.values())


class WithSkip(nn.Module):
    """A value besides the tap's own is live across the cut."""

    def __init__(self) -> None:
        super().__init__()
        self.tapped = nn.Linear(6, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, value: Tensor) -> Tensor:
        return self.head(torch.relu(self.tapped(value)) + value)


class Untraceable(WithSkip):
    def forward(self, value: Tensor) -> Tensor:
        hidden = torch.relu(self.tapped(value))
        return self.head(hidden if float(hidden.detach().sum()) > -1 else value)


@pytest.mark.parametrize(
    ("module", "facts"), [(WithSkip(), ("1 more tensors",)), (Untraceable(), ("Untraceable", "layers"))]
)
def test_a_cut_that_rows_of_numbers_cannot_hold_is_live(
    module: nn.Module, facts: tuple[str, ...], tmp_path: Path
) -> None:
    teachers = {"teacher-0": Network(module, ("first",), ("tapped",))}
    made = recipe(stage(Specialise(taps={"teacher-0": ("tapped",)}), trains=()), teachers=teachers)
    found = choices(made)
    assert found["student-network logits"].banked
    states(found["teacher-0 cut:tapped"].reason, *facts)
    assert not found["teacher-0 cut:tapped"].banked
    run(made, tmp_path)


def test_a_network_that_no_key_can_tell_apart_is_live() -> None:
    source = torch.Generator()

    def call(batch: Batch) -> Any:
        return (torch.as_tensor(batch.inputs["first"]) * torch.rand((), generator=source),), {}

    module = toy_models(toy_dataset())["student-network"].module
    named = Network(module, ("first",), input_adapter=lambda batch: ((batch.inputs["first"],), {}))
    found = choices(
        recipe(stage(KD()), teachers={"odd": Network(module, ("first",), input_adapter=call), "plain": named})
    )
    assert found["plain logits"].banked
    assert not found["odd logits"].banked
    assert "no key" in found["odd logits"].reason


def test_banked_refuses_in_one_sentence_what_cannot_be() -> None:
    made = recipe(stage(Collaborate(), "banked", trains=("student", "teacher-1")), bank=BankSettings(budget=10))
    with pytest.raises(RecipeError) as caught:
        planned(made)
    text = str(caught.value)
    assert "cannot be banked: teacher-0 logits: live, its bank of 192 rows" in text
    assert "teacher-1 logits: live, it trains in this stage" in text
    assert "student-network" not in text.split("cannot be banked")[1], "who learns is live by nature"
    planned(recipe(stage(Supervised(), "banked")))


def test_what_is_decided_is_explained_in_a_line_for_each_reason() -> None:
    lines = explained(planned(recipe(masks(), bank=BankSettings(budget=192 * 4 * 28))).jobs[0].choices)
    assert len(lines) == 2
    assert lines[0].endswith("teacher-1 cut:hidden: banked, frozen, on data that stay the same (21.0 kB)")
    assert lines[1].startswith("teacher-0 cut:joint: live, its bank of 192 rows would take")


def test_only_what_is_banked_changes_the_key_of_a_stage() -> None:
    keys = {source: planned(recipe(stage(KD(), source))).jobs[0].key for source in ("auto", "live", "banked")}
    assert keys["auto"] == keys["banked"] != keys["live"]
    supervised = {s: planned(recipe(stage(Supervised(), s))).jobs[0].key for s in ("auto", "live")}
    assert len(set(supervised.values())) == 1
    half = planned(recipe(stage(KD()), bank=BankSettings(dtype="float16"))).jobs[0].key
    assert half not in keys.values()
    assert choices_key(planned(recipe(stage(KD(), "live"))).jobs[0].choices) is None


ALL_STAGES = {
    "mst": lambda source: (masks(source), stage(Route(), source)),
    "stacked": lambda source: (
        stage(Specialise(taps={"teacher-0": ("joint", "hidden")}, stacked=True, select="joint"), source, trains=()),
        stage(Route(), source),
    ),
    "low-rank": lambda source: (
        stage(Specialise(taps={"teacher-0": ("joint", "hidden")}, masknet="low_rank"), source, trains=()),
        stage(Route(), source),
    ),
    "kd": lambda source: (stage(KD(), source),),
}


@pytest.mark.parametrize("control", [None, "shuffled"])
@pytest.mark.parametrize("name", ALL_STAGES)
def test_a_run_on_banks_is_the_run_live(tmp_path: Path, name: str, control: Any) -> None:
    data = toy_dataset(absent={"second": 0.2}, labelled=0.5)
    for source in ("live", "banked"):
        run(recipe(*ALL_STAGES[name](source), dataset=data, control=control), tmp_path / source)
    assert_close(weights(tmp_path / "live"), weights(tmp_path / "banked"))
    assert (tmp_path / "banked" / "banks").is_dir()
    assert not (tmp_path / "live" / "banks").exists()


def test_half_precision_is_close(tmp_path: Path) -> None:
    run(recipe(*ALL_STAGES["mst"]("live")), tmp_path / "live")
    run(recipe(*ALL_STAGES["mst"]("auto"), bank=BankSettings(dtype="float16")), tmp_path / "half")
    one, two = weights(tmp_path / "live"), weights(tmp_path / "half")
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 0.02


@pytest.mark.slow
def test_from_disk_it_is_as_from_memory(tmp_path: Path) -> None:
    run(recipe(*ALL_STAGES["mst"]("auto")), tmp_path / "memory")
    run(recipe(*ALL_STAGES["mst"]("auto"), bank=BankSettings(memory=0)), tmp_path / "disk")
    one, two = weights(tmp_path / "memory"), weights(tmp_path / "disk")
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_nothing_is_fetched_that_nobody_live_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[Any] = []
    plain = Dataset.batch

    def watched(
        self: Dataset, rows: Tensor, total_rows: int | None = None, only: Any = None, view: Tensor | None = None
    ) -> Batch:
        fetched.append(sorted(only) if isinstance(only, frozenset) else None)
        return plain(self, rows, total_rows, only, view)

    made = recipe(*ALL_STAGES["mst"]("auto"), control="shuffled")
    monkeypatch.setattr(Dataset, "batch", watched)
    run(made, tmp_path)
    few = 2  # batches of a few rows, to find how many go together
    assert fetched.count([]) == EPOCHS * 7 + few, "specialise reads banks alone: 6 steps and a validation"
    assert fetched.count(["first"]) == EPOCHS * 7 + few, "route reads what its student reads"


def test_choices_are_said_stored_and_taken_up_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = Heard()
    monkeypatch.setattr("crossdistill.training.runner.finish", _stop)
    with pytest.raises(KeyboardInterrupt):
        run(recipe(masks(), stage(Route())), tmp_path, display=heard)
    made = recipe(masks(), stage(Route()))
    assert any(line.startswith("specialise: ") and "banked, frozen" in line for line in heard.lines)
    assert any("rows, " in line and "about a moment, in" in line for line in heard.lines), "size and time are said"
    stored = load_choices(tmp_path)
    assert stored == {job.folder: job.choices for job in planned(made).jobs}
    # Decided otherwise at the start, it stays as it was decided.
    other = {
        name: [{**vars_of(one), "banked": False, "reason": "by hand"} for one in ones] for name, ones in stored.items()
    }
    (tmp_path / "sources.json").write_text(json.dumps(other))
    live = planned(made, load_choices(tmp_path))
    assert {one.reason for job in live.jobs for one in job.choices} == {"by hand"}
    assert [job.key for job in live.jobs] == [
        job.key for job in planned(recipe(masks("live"), stage(Route(), "live"))).jobs
    ]


def _stop(*_: Any) -> None:
    raise KeyboardInterrupt


def vars_of(choice: BankChoice) -> dict[str, Any]:
    return {name: getattr(choice, name) for name in BankChoice.__dataclass_fields__}


def test_runs_share_a_folder_of_banks(tmp_path: Path) -> None:
    heard = [Heard(), Heard()]
    for number, listener in enumerate(heard):
        run(recipe(stage(KD(alpha=0.5 + number / 10))), tmp_path / str(number), banks=tmp_path / "b", display=listener)
    assert any("about a moment" in line for line in heard[0].lines)
    assert not any("about a moment" in line for line in heard[1].lines), "nothing is computed twice"
    assert len(list((tmp_path / "b").iterdir())) == 2
    run(recipe(stage(KD(alpha=0.7))), tmp_path / "2", share=tmp_path / "share")
    assert len(list((tmp_path / "share" / "banks").iterdir())) == 2


def test_other_weights_have_another_bank(tmp_path: Path) -> None:
    run(recipe(stage(KD())), tmp_path / "one", banks=tmp_path / "banks")
    data = toy_dataset()
    moved = {name: one for name, one in toy_models(data, seed=5).items() if name != "student-network"}
    run(recipe(stage(KD()), teachers=moved), tmp_path / "two", banks=tmp_path / "banks")
    assert len(list((tmp_path / "banks").iterdir())) == 4


def test_a_damaged_bank_stops_the_run_and_says_what_to_do(tmp_path: Path) -> None:
    run(recipe(stage(KD())), tmp_path / "one", banks=tmp_path / "banks")
    bank = next((tmp_path / "banks").iterdir())
    with (bank / "values.npy").open("rb+") as file:
        file.truncate(500)
    with raises(BankDamaged, "values.npy", 500, "crossdistill bank clear"):
        run(recipe(stage(KD(alpha=0.9))), tmp_path / "two", banks=tmp_path / "banks")


def test_the_student_of_a_teacher_that_is_asked_for_more(tmp_path: Path) -> None:
    """Some of what is asked is banked, the rest is live: together they are what the network gives."""
    data = toy_dataset()
    made = recipe(masks(), dataset=data, bank=BankSettings(budget=192 * 4 * 28))
    plan = planned(made)

    job, _ = attach_banks(plan.jobs[0], made.bank, tmp_path, Devices(torch.device("cpu")), Quiet())
    batch = data.batch(data.splits["train"][:7], only=job.reads)
    assert job.reads == {"first", "second"}
    found = job.teachers["teacher-0"](batch)
    live = Live("teacher-0", plan.members["teacher-0"], {Signal.cut("joint"), Signal.cut("hidden")})(batch)
    for tap in ("joint", "hidden"):
        torch.testing.assert_close(found.cuts[tap].value, live.cuts[tap].value)
        logits = job.teachers["teacher-0"].tail(tap)(found.cuts[tap]).need(Signal.LOGITS)
        torch.testing.assert_close(logits, plan.members["teacher-0"](batch).need(Signal.LOGITS))
