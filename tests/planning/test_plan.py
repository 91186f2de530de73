"""A recipe made real: the same key exactly where the same numbers come out, and faults before anything trains."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import toy_recipe
from facts import raises
from safetensors.torch import save_file
from torch import nn

from crossdistill import Network, NetworkConfig, OptimizerConfig, Stage
from crossdistill.data.dataset import Dataset
from crossdistill.data.hidden_labels import hide_labels
from crossdistill.errors import RecipeError
from crossdistill.methods import KD, Collaborate, Specialise
from crossdistill.planning.plan import Plan, prepare
from crossdistill.recipes import make
from crossdistill.runtime.hashing import fingerprint
from crossdistill.teacher import Live, Masked, Shuffled
from crossdistill.testing import toy_dataset, toy_network
from crossdistill.weighting import PCGradConfig

CPU = torch.device("cpu")
DIGITS = toy_dataset({"image": (1, 8, 8), "audio": (1, 32, 32)}, rows=60, classes=10)
CLASSES = len(DIGITS.classes)


def planned(name: str, *settings: str, data: Dataset = DIGITS, seed: int = 0) -> Plan:
    return prepare(make(name, list(settings), seed), data, CPU)


def keys(plan: Plan) -> dict[str, str]:
    return {job.stage.name: job.key for job in plan.jobs}


def toy(data: Dataset | None = None, **changes: Any) -> Plan:
    """One stage on toy data, with two teachers."""
    data = data or toy_dataset()
    given = {"name": "toy", "student_name": None, "stages": (Stage(method=KD(), epochs=2),)}
    return prepare(toy_recipe(data=data, **(given | changes)), data, CPU)


def test_collaboration_is_shared_by_both_students_when_no_label_is_hidden() -> None:
    image = planned("av-digits/mst-distill", "student=image")
    audio = planned("av-digits/mst-distill", "student=audio")
    assert set(image.members) == set(audio.members) == {"image", "audio", "mm"}
    assert keys(image)["collaborate"] == keys(audio)["collaborate"]
    assert keys(image)["specialise"] != keys(audio)["specialise"]
    assert keys(image)["route"] != keys(audio)["route"]


def test_collaboration_is_each_students_own_when_labels_are_hidden() -> None:
    few = hide_labels(DIGITS, 0.3)
    image = planned("av-digits/mst-distill", "student=image", data=few)
    audio = planned("av-digits/mst-distill", "student=audio", data=few)
    assert keys(image)["collaborate"] != keys(audio)["collaborate"]
    assert keys(image)["collaborate"] != keys(planned("av-digits/mst-distill", "student=image"))["collaborate"]


def test_collaboration_that_selects_by_its_student_is_its_own() -> None:
    """Which epoch is kept then depends on who is judged."""
    found = {
        keys(planned("av-digits/mst-distill", f"student={student}", "stages.collaborate.select=best"))["collaborate"]
        for student in ("image", "audio")
    }
    assert len(found) == 2


def test_members_begin_the_same_whoever_is_the_student() -> None:
    image, audio = (planned("av-digits/mst-distill", f"student={student}") for student in ("image", "audio"))
    assert {name: fingerprint(one) for name, one in image.members.items()} == {
        name: fingerprint(one) for name, one in audio.members.items()
    }
    other = planned("av-digits/mst-distill", seed=1)
    assert fingerprint(other.members["mm"]) != fingerprint(image.members["mm"])


def test_a_supervised_teacher_does_not_depend_on_labels_hidden_from_the_student() -> None:
    everything, few = keys(planned("av-digits/kd")), keys(planned("av-digits/kd", data=hide_labels(DIGITS, 0.3)))
    assert everything["supervised-mm"] == few["supervised-mm"]
    assert everything["kd"] != few["kd"]
    assert everything["supervised-mm"] == keys(planned("av-digits/kd", "student=audio"))["supervised-mm"]
    again = keys(planned("av-digits/kd", data=hide_labels(DIGITS, 0.3, seed=1)))
    assert again["supervised-mm"] == few["supervised-mm"]
    assert again["kd"] != few["kd"], "which labels are hidden matters too"


def test_a_student_alone_is_the_cross_modal_teacher_of_another_run() -> None:
    alone = keys(planned("av-digits/supervised", "student=audio"))
    assert alone["supervised-audio"] == keys(planned("av-digits/kd", "teachers=cm"))["supervised-audio"]


def test_the_control_changes_the_teaching_stages_alone() -> None:
    plain, shuffled = keys(planned("av-digits/kd")), keys(planned("av-digits/kd", "control=shuffled"))
    assert plain["supervised-mm"] == shuffled["supervised-mm"]
    assert plain["kd"] != shuffled["kd"]


STAGE = Stage(method=KD(), epochs=2)

CHANGES: Mapping[str, dict[str, Any]] = {
    "seed": {"seed": 1},
    "epochs": {"stages": (STAGE.model_copy(update={"epochs": 3}),)},
    "batch size": {"stages": (STAGE.model_copy(update={"batch_size": 32}),)},
    "micro-batches": {"stages": (STAGE.model_copy(update={"micro_batches": 2}),)},
    "rate": {"stages": (STAGE.model_copy(update={"optimizer": OptimizerConfig(learning_rate=2e-3)}),)},
    "other rate": {
        "stages": (STAGE.model_copy(update={"optimizer": OptimizerConfig(rates={"student-network": 0.1})}),)
    },
    "weighting": {"stages": (STAGE.model_copy(update={"weighting": PCGradConfig()}),)},
    "selection": {"stages": (STAGE.model_copy(update={"select": "last"}),)},
    "clipping": {"stages": (STAGE.model_copy(update={"clip_norm": 1.0}),)},
    "steps": {"stages": (STAGE.model_copy(update={"steps": 1}),)},
    "temperature": {"stages": (Stage(method=KD(temperature=2), epochs=2),)},
    "method": {"stages": (Stage(name="kd", method=Collaborate(), epochs=2),)},
    "teachers": {"stages": (STAGE.model_copy(update={"teachers": ("teacher-1",)}),)},
    "who trains": {"stages": (STAGE.model_copy(update={"trains": ("student", "teacher-0")}),)},
    "what trains": {"stages": (STAGE.model_copy(update={"trains": ("student:hidden",)}),)},
    "student": {"student": toy_network(seed=77), "student_name": "student-network"},
    "channels last": {"channels_last": True},
    "precision": {"stages": (STAGE.model_copy(update={"precision": "bfloat16"}),)},
    "compiling": {"stages": (STAGE.model_copy(update={"compile": True}),)},
}


@pytest.mark.parametrize("what", list(CHANGES))
def test_a_key_changes_with_everything_that_matters(what: str) -> None:
    plain = {"student_name": "student-network"}
    base = toy(**plain).jobs[0].key
    assert toy(**plain).jobs[0].key == base, "and with nothing else"
    assert toy(**(plain | CHANGES[what])).jobs[0].key != base


def test_switches_that_are_off_leave_keys_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outcomes in shared folders were found before there were these switches, and still are."""
    seen: list[Any] = []
    monkeypatch.setattr("crossdistill.planning.stage_key.key_hash", lambda value: seen.append(value) or str(len(seen)))
    off = {"precision": "float32", "compile": False, "cuda_graphs": False}
    toy(stages=(Stage(method=KD(), epochs=2, **off),))
    (settings,) = (value["stage"] for value in seen if isinstance(value, dict) and "stage" in value)
    assert settings == {"name": "kd", "method": {"name": "kd"}, "epochs": 2}


@pytest.mark.parametrize("changes", [{"name": "other"}, {"tracking": "tensorboard"}, {"method": "x"}, {"origin": "y"}])
def test_a_key_does_not_change_with_what_does_not_matter(changes: dict[str, Any]) -> None:
    assert toy(**changes).jobs[0].key == toy().jobs[0].key


def test_a_key_changes_with_the_data() -> None:
    data = toy_dataset()
    targets = data.targets.clone()
    targets[data.splits["test"][0]] = (targets[data.splits["test"][0]] + 1) % 4
    changed = Dataset.from_arrays("toy", data.inputs, targets, splits=data.splits, classes=data.classes)
    same = Dataset.from_arrays("toy", data.inputs, data.targets, splits=data.splits, classes=data.classes)
    assert toy(changed).jobs[0].key != toy(same).jobs[0].key


def test_the_same_weights_in_another_architecture_are_another_network() -> None:
    class Linear(nn.Linear):
        pass

    def student(kind: type[nn.Linear]) -> Network:
        torch.manual_seed(0)
        return Network(kind(6, 4), ("first",))

    one, two = (toy(student=student(kind), student_name="pupil").jobs[0].key for kind in (nn.Linear, Linear))
    assert one != two


def test_weights_from_a_file_are_part_of_the_key(tmp_path: Path) -> None:
    found = []
    for seed in (0, 1, 1):
        torch.manual_seed(seed)
        weights = NetworkConfig(model="small-mm").build(CLASSES).module.state_dict()
        path = tmp_path / f"{len(found)}.safetensors"
        save_file(weights, path)
        plan = planned("av-digits/kd", f"teachers.mm.weights={path}")
        assert torch.equal(plan.members["mm"].module.state_dict()["fc1.weight"], weights["fc1.weight"])
        found.append(keys(plan)["supervised-mm"])
    assert found[0] != found[1]
    assert found[1] == found[2], "the content counts, not the name of the file"


def test_what_came_before_is_part_of_the_key() -> None:
    base, longer = planned("av-digits/kd"), planned("av-digits/kd", "stages.supervised-mm.epochs=1")
    assert keys(base)["kd"] != keys(longer)["kd"]


def test_a_masked_teacher_changes_with_its_base() -> None:
    """Its base may train again between the masks and the route: then it is not the same teacher."""

    def route_key(rate: float) -> str:
        data = toy_dataset()
        taps = dict.fromkeys(("teacher-0", "teacher-1"), ("joint",))
        stages = (
            Stage(method=Specialise(taps=taps), epochs=1, trains=()),
            Stage(
                method="supervised",
                learner="teacher-0",
                teachers=(),
                epochs=1,
                optimizer=OptimizerConfig(learning_rate=rate),
            ),
            Stage(method="route", epochs=1),
        )
        return prepare(toy_recipe(*stages, data=data), data, CPU).jobs[-1].key

    assert route_key(0.1) != route_key(0.2)
    assert route_key(0.1) == route_key(0.1)


def test_a_fresh_stage_forgets_what_came_before() -> None:
    def last_key(rate: float, fresh: bool) -> str:
        first = Stage(name="first", method=KD(), epochs=1, optimizer=OptimizerConfig(learning_rate=rate))
        return toy(stages=(first, Stage(name="last", method=KD(), epochs=1, fresh=fresh))).jobs[-1].key

    assert last_key(0.1, fresh=False) != last_key(0.2, fresh=False)
    assert last_key(0.1, fresh=True) == last_key(0.2, fresh=True) != last_key(0.1, fresh=False)


def test_a_merged_start_depends_on_the_stage_that_trained_the_member_and_is_refused_for_other_shapes() -> None:
    def merged(rate: float, width: int = 12, **merge: Any) -> Plan:
        other = {name: toy_network(("first",), width=width, seed=1) for name in ("other", "third")}
        rates = OptimizerConfig(learning_rate=rate)
        first = Stage(name="first", method="supervised", learner="other", teachers=(), epochs=1, optimizer=rates)
        made = {"name": "last", "method": KD(), "epochs": 0, "merge": {"weights": {"other": 1.0}, **merge}}
        return toy(teachers=other, stages=(first, Stage.model_validate(made)))

    assert merged(0.1).jobs[-1].key == merged(0.1).jobs[-1].key != merged(0.2).jobs[-1].key
    with raises(RecipeError, "stages.last", "inputs.0.weight", "(10, 6)"):
        merged(0.1, width=10)
    with raises(RecipeError, "merge", 0.5):
        merged(0.1, weights={"other": 0.5})
    with raises(RecipeError, "merge", 1, "permute"):
        merged(0.1, permute=True)
    with raises(RecipeError, "alignment"):
        merged(0.1, permute=True, weights={"other": 0.5, "third": 0.5})


def test_masked_teachers_are_those_of_the_next_stage() -> None:
    plan = planned("av-digits/mst-distill")
    collaborate, specialise, route = plan.jobs
    assert list(collaborate.teachers) == list(specialise.teachers) == ["mm", "audio"]
    assert list(route.teachers) == ["mm@concat_identity", "mm@fc1", "audio@conv3", "audio@fc1"]
    assert all(isinstance(teacher, Masked) for teacher in route.teachers.values())
    assert set(plan.teachers) == {"mm", "audio", *route.teachers}
    assert [job.folder for job in plan.jobs] == ["00-collaborate", "01-specialise", "02-route"]


def test_only_what_is_named_trains() -> None:
    collaborate, specialise, route = planned("av-digits/mst-distill").jobs
    assert set(collaborate.modules()) == {"image", "audio", "mm"}
    assert all(isinstance(one, Live) and one.trained for one in collaborate.teachers.values())
    assert set(specialise.modules()) == {"method"}
    assert not specialise.student.trained
    assert set(route.modules()) == {"image", "method"}
    assert route.student.trained


def test_the_control_is_put_where_teachers_teach() -> None:
    first, last = planned("av-digits/kd", "control=shuffled").jobs
    assert not first.teachers
    assert all(isinstance(teacher, Shuffled) for teacher in last.teachers.values())
    train = set(DIGITS.splits["train"].tolist())
    looked_at = last.teachers["mm"].sees(DIGITS.batch(DIGITS.splits["train"]))
    assert set(looked_at.ids.tolist()) == train
    assert int((looked_at.ids == DIGITS.splits["train"]).sum()) < len(train) / 4
    rest = DIGITS.splits["test"]
    assert torch.equal(last.teachers["mm"].sees(DIGITS.batch(rest)).ids, rest)


def test_hidden_labels_are_the_students_alone() -> None:
    few = hide_labels(DIGITS, 0.3)
    first, last = planned("av-digits/kd", data=few).jobs
    assert first.dataset.labelled is None
    assert last.dataset.labelled is few.labelled
    assert len(first.order.rows) == len(few.splits["train"])
    fraction = last.method.labelled_fraction
    assert isinstance(fraction, float)
    assert 0.2 < fraction < 0.5
    alone = planned("av-digits/supervised", data=few).jobs[0]
    assert bool(few.labelled[alone.order.rows].all())
    assert alone.order.num_rows == len(few.splits["train"])


def test_the_student_is_not_taught_its_hidden_labels_by_the_back_door() -> None:
    data = replace(toy_dataset(), labelled=torch.arange(240) % 2 == 0)
    stage = Stage(method=Collaborate(), learner="teacher-0", teachers=("teacher-1",), trains=("teacher-0",), epochs=1)
    assert toy(data, stages=(stage,)).jobs
    with raises(RecipeError, "'first'", "'teacher-0'"):
        toy(data, stages=(stage.model_copy(update={"trains": ("teacher-0", "student")}),))


def test_a_member_named_as_a_whole_and_by_a_layer_trains_as_a_whole() -> None:
    for trains in (("student", "student:hidden"), ("student:hidden", "student")):
        job = toy(stages=(Stage(method=KD(), epochs=1, trains=trains),)).jobs[0]
        assert job.trained["first"][1] == ()
    job = toy(stages=(Stage(method=KD(), epochs=1, trains=("student:hidden", "student:joint")),)).jobs[0]
    assert job.trained["first"][1] == ("hidden", "joint")


def test_faults_of_all_stages_are_found_at_once() -> None:
    stages = (
        Stage(name="a", method=KD(), epochs=1, teachers=("teacher-7",)),
        Stage(name="b", method=KD(), epochs=1, trains=("student:hiden",)),
        Stage(name="c", method=KD(), epochs=1, trains=(), teachers=("teacher-0",)),
        Stage(name="d", method="route", epochs=1, teachers=("teacher-0",)),
    )
    with pytest.raises(RecipeError) as caught:
        toy(stages=stages)
    wanted = {
        "stages.a": "no teacher is called 'teacher-7' here; did you mean",
        "stages.b": "member 'first' has no tap 'hiden'; did you mean 'hidden'",
        "stages.c": "nothing trains here",
        "stages.d": "route selects 1 of at least two teachers",
    }
    assert len(caught.value.faults) == len(wanted)
    for fault, (where, words) in zip(caught.value.faults, wanted.items(), strict=True):
        assert fault.startswith(where)
        assert words in fault


def test_networks_that_do_not_fit_the_data_are_named() -> None:
    with pytest.raises(RecipeError) as caught:
        toy(student=toy_network(("third",)), teachers={"wide": Network(nn.Linear(9, 4), ("first",))})
    assert len(caught.value.faults) == 2
    assert (
        "student: ToyModule reads 'third', which data 'toy' does not have; known: first, second"
        in caught.value.faults[0]
    )
    assert "teachers.wide: network 'Linear' refused its input: first of shape (2, 6)" in caught.value.faults[1]


def test_planning_moves_nothing() -> None:
    data = toy_dataset()
    student = toy_network(("first",), normalised=True)
    before = fingerprint(student)
    state = torch.get_rng_state()
    toy(data, student=student)
    assert fingerprint(student) == before
    assert torch.equal(torch.get_rng_state(), state)


def test_fingerprints_see_every_bit() -> None:
    one, two = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    assert fingerprint(one) == fingerprint(two)
    with torch.no_grad():
        two.state_dict()["running_mean"][1] = torch.finfo(torch.float32).tiny
    assert fingerprint(one) != fingerprint(two)
    assert fingerprint(nn.Linear(2, 2, bias=False).double()) != fingerprint(nn.Linear(2, 2, bias=False))
    assert fingerprint(nn.Embedding(0, 3)) == fingerprint(nn.Embedding(0, 3))
