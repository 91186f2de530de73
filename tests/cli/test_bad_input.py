"""Settings, recipes and files that cannot be: one readable paragraph says who, what was wanted, found, and possible."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from command_line import Command, has, process

from crossdistill.recipes import make
from crossdistill.run_folder.student_files import sealed

FILES = Path(__file__).resolve().parent / "recipe_files.py"


def test_all_faults_of_all_settings_at_once_in_a_real_process(tmp_path: Path) -> None:
    """Modality, method, model, data, an unknown field and wrong types, before anything is loaded."""
    settings = (
        "student=video",
        "data.labeled=0.5",
        "data.labelled=2",
        "stages.kd.method.temperature=hot",
        "stages.kd.method.temprature=2",
        "stages.kd.method=kdd",
        "teachers.mm.model=cnn-j",
        "stages.kx.epochs=3",
        "epocs=3",
    )
    words = [word for text in settings for word in ("--set", text)]
    said = process("run", "av-digits/kd", *words, "--seed", "-1", "--out", "out", cwd=tmp_path)
    assert said.status == 2
    has(
        said,
        "recipe 'av-digits/kd' has 10 faults; nothing was trained",
        "--set student=video: wanted 'image' or 'audio', found 'video'",
        "--set data.labeled=0.5: data has no field 'labeled'; did you mean 'labelled'",
        "--set data.labelled=2: wanted at most 1, found 2",
        "--set stages.kd.method.temperature=hot: wanted a number, found 'hot'",
        "--set stages.kd.method.temprature=2: stages.kd.method has no field 'temprature'; did you mean 'temperature'",
        "--set stages.kd.method=kdd: no method is called 'kdd'; did you mean 'kd'",
        "--set teachers.mm.model=cnn-j: no model is called 'cnn-j'; did you mean 'cnn-i'",
        "--set stages.kx.epochs=3: stages has no item 'kx'; did you mean 'kd'",
        "--set epocs=3: av-digits/kd has no parameter or field 'epocs'",
        "--set seed=-1: wanted at least 0, found -1",
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("data=av-digit", ["data 'av-digit' is unknown; did you mean 'av-digits'"]),
        ("data=5", ["wanted a mapping", "found 5"]),
        ("student.model=smal-image", ["no model is called 'smal-image'; did you mean 'small-image'"]),
        ("student={modle: small-image}", ["wanted 'image' or 'audio'"]),
        ("stages.kd.weighting=pcgard", ["'pcgrad'", "found 'pcgard'; did you mean 'pcgrad'?"]),
        ("stages.kd.weighting.name=pcgard", ["found 'pcgard'; did you mean 'pcgrad'?"]),
        ("stages.kd.method={name: kd, temprature: 2}", ["temprature: there is no such field; did you mean 'temp"]),
        ("stages.kd.learner=imag", ["no member is called 'imag'; did you mean 'image'"]),
        ("stages.kd.trains=[studnt]", ["no member is called 'studnt'; did you mean 'student'"]),
        ("data.augmentation.inputs.image.shfit=[1]", ["inputs.image has no field 'shfit'; did you mean 'shift'"]),
        ("data.augmentation.inputs.image.mask=[2]", ["mask: wanted fractions in [0, 1], found [2.0]"]),
        ("stages.kd.epochs=1.5", ["wanted a whole number, found 1.5"]),
        ("stages.kd.epochs=[1]", ["wanted a whole number, found [1]"]),
        ("stages.kd.batch_size=0", ["wanted at least 1, found 0"]),
        ("stages.kd.micro_batches=100", ["100 micro-batches cannot share a batch of 64 rows"]),
        ("stages.kd.optimizer.learning_rate=-1", ["wanted more than 0, found -1"]),
        ("stages.kd.optimizer.name=adma", ["has no optimizer 'adma'; did you mean 'Adamax', 'adam'", "RMSprop"]),
        ("stages.kd.select=bset", ["did you mean 'best'?"]),
        ("stages=[]", ["wanted at least 1 of them"]),
        ("stages.7.epochs=1", ["stages has no item '7'", "position from 0 to 1"]),
        ("tracking=tensorbord", ["found 'tensorbord'; did you mean 'tensorboard'?"]),
        ("checkpoints.steps=often", ["wanted a whole number, found 'often'"]),
        ("student_name=mm", ["'mm' is the student's name already; set student_name to another"]),
        ("student.options={classes: 3}", ["leave `classes` out"]),
        ("device=tpu", ["wanted auto, cpu, mps, cuda or cuda:NUMBER, found 'tpu'"]),
        ("seed.x=1", ["seed is 0, a value without fields"]),
        ("labelled=0", ["wanted more than 0, found 0"]),
        ("teachers=xx", ["'mm' or 'cm' or 'mm+cm' or 'named', found 'xx'"]),
        ("control=shufled", ["did you mean 'shuffled'?"]),
        ("labelled", ["wanted FIELD=VALUE"]),
        ("labelled=[", ["the value is no YAML"]),
    ],
)
def test_settings(crossdistill: Command, tmp_path: Path, setting: str, words: list[str]) -> None:
    said = crossdistill("run", "av-digits/kd", "--set", setting, "--out", "out")
    assert said.status == 2
    has(said, f"--set {setting}: ", *words)
    assert not (tmp_path / "out").exists()


def test_good_settings_reach_their_places() -> None:
    recipe = make(
        "av-digits/kd",
        [
            "stages.kd.method.name=supervised",
            "stages.supervised-mm.weighting=uncertainty",
            "stages.1.optimizer.learning_rate=1e-4",
            "tracking=tensorboard",
            "data.labelled=0.25",
        ],
    )
    assert (recipe.stages[1].method.name, recipe.stages[0].weighting.name) == ("supervised", "uncertainty")
    assert (recipe.stages[1].optimizer.learning_rate, recipe.tracking) == (1e-4, ("tensorboard",))
    assert recipe.data.labelled == 0.25


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("av-digits/kdd", ["no recipe is called 'av-digits/kdd'", "the method is unknown: did you mean 'kd'"]),
        ("av-digit/kd", ["the data is unknown: did you mean 'av-digits'"]),
        ("lenet5", ["DATA/METHOD", "package.module:function", "path/to/file.py:function", "recipe.yaml"]),
        ("nosuch.module:make", ["no module 'nosuch'", "PYTHONPATH", ".py file"]),
        ("crossdistill.recipes.av_digits:avdigits", ["no function 'avdigits'; did you mean 'av_digits'"]),
        ("crossdistill.recipes.av_digits:av_digits", ["method: is required; give it with --set method=..."]),
        ("nosuch.py:make", ["recipe file nosuch.py: there is no such file"]),
        ("nosuch.yaml", ["no recipe can be read from nosuch.yaml", "there is no such file"]),
        (f"{FILES}", [f"{FILES}:FUNCTION"]),
        (f"{FILES}:liv", ["no function 'liv'; did you mean 'live'?"]),
        (f"{FILES}:NOT_A_FUNCTION", ["is of type int, not a function that returns a recipe"]),
        (f"{FILES}:returns_none", ["returned an object of type NoneType", "returns a crossdistill.Recipe"]),
        (f"{FILES}:fails", ["fails: IndexError", "recipe_files.py, line"]),
    ],
)
def test_recipes_that_are_not_there(crossdistill: Command, name: str, words: list[str]) -> None:
    has(crossdistill("run", name), *words)


def test_a_real_process_refuses_a_file_without_that_function(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def make():\n    pass\n")
    said = process("run", "mine.py:mak", cwd=tmp_path)
    has(said, "recipe 'mine.py:mak': mine.py has no function 'mak'; did you mean 'make'? known: make")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("def make(:\n", ["cannot be imported: SyntaxError", "mine.py, line 1"]),
        ("import nosuchthing\n", ["cannot be imported: ModuleNotFoundError: No module named 'nosuchthing'", "line 1"]),
        ("x = {}\ny = x['a']\n", ["cannot be imported: KeyError: 'a'", "line 2"]),
    ],
)
def test_files_that_cannot_be_imported(crossdistill: Command, tmp_path: Path, content: str, words: list[str]) -> None:
    (tmp_path / "mine.py").write_text(content)
    has(crossdistill("run", "mine.py:make"), *words)


def test_arguments_of_a_function_are_checked(crossdistill: Command) -> None:
    said = crossdistill("run", f"{FILES}:live", "--set", "epochs=many", "--set", "epcohs=1")
    has(said, "has 2 faults", "--set epochs=many: wanted a whole number", "'epcohs'; did you mean 'epochs'")


def test_yaml_that_is_none(crossdistill: Command, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("name: [a\n")
    has(crossdistill("run", "a.yaml"), "cannot be read as YAML", "line 2, column 1")
    (tmp_path / "b.yaml").write_text("- a\n")
    has(crossdistill("run", "b.yaml"), "wanted a mapping of fields, found list")
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\x00")
    has(crossdistill("run", "c.yaml"), "cannot be read as YAML")


def test_faults_in_a_recipe_file_say_where(crossdistill: Command, tmp_path: Path) -> None:
    values = yaml.safe_load(make("av-digits/kd", []).to_yaml())
    kd = values["stages"][1]
    kd["method"]["temprature"], kd["epoch"], kd["weighting"] = 2, 3, {"name": "gradnorm", "alpah": 1}
    del kd["epochs"]
    values["data"]["labeled"], values["student"]["modle"], values["sed"] = 1, "x", 0
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
    has(
        crossdistill("run", "mine.yaml"),
        "has 7 faults",
        "stages.1.method.temprature: there is no such field; did you mean 'temperature'",
        "stages.1.epoch: there is no such field; did you mean 'epochs'",
        "stages.1.epochs: is required",
        "stages.1.weighting.gradnorm.alpah: there is no such field; did you mean 'alpha'",
        "data.labeled: there is no such field; did you mean 'labelled'",
        "student.modle: there is no such field; did you mean 'model'",
        "sed: there is no such field; did you mean 'seed'",
    )


def test_a_live_recipe_is_refused_with_the_reason_and_the_way_out(tmp_path: Path) -> None:
    """Run from its function, refused from its file, and the command in the refusal works: all of it real."""
    recipe = f"{FILES}:live"
    done = process("run", recipe, "--out", "out", "--set", "epochs=0", cwd=tmp_path)
    assert done.status == 0, done.err
    assert "| toy | first | 100% | kd |" in done.out
    assert "results: out/results.json" in done.err
    said = process("run", "out/recipe.yaml", cwd=tmp_path)
    assert said.status == 2
    has(said, "data, student, teachers.teacher-0: built from live objects", f"crossdistill run {recipe} --set epochs=0")
    assert (tmp_path / "out" / "recipe.yaml").read_text().startswith("# Built from live objects")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["stages.kd.trains=[student:fc9]"], ["stages.kd: member 'image' has no tap 'fc9'; did you mean 'fc1'"]),
        (["stages.kd.teachers=[mn]"], ["stages.kd: no teacher is called 'mn' here; did you mean 'mm'"]),
        (["stages.kd.trains=[]"], ["stages.kd: nothing trains here"]),
        (["student.reads=[vidoe]"], ["student: SmallImage reads 'vidoe', which data 'av-digits' does not have; known"]),
        (["student.options={width: 3}"], ["student: model 'small-image' has no option 'width'; known: classes"]),
        (["student.weights=nosuch.safetensors"], ["student: nosuch.safetensors: there is no such file"]),
        (
            ["stages.kd.optimizer.rates={imgae: 1}", "stages.supervised-mm.optimizer.rates={x: 1}"],
            [
                "has 2 faults",
                "stages.kd: optimizer.rates: no part that trains in this stage is called 'imgae'",
            ],
        ),
        (
            ["stages.kd.weighting={name: uncertainty, regression: [tsak]}"],
            ["regression groups ['tsak'] are not among ['distil', 'task']"],
        ),
    ],
)
def test_what_only_the_data_and_the_networks_can_tell(
    crossdistill: Command, digits: None, tmp_path: Path, settings: list[str], words: list[str]
) -> None:
    options = [word for text in settings for word in ("--set", text)]
    said = crossdistill("run", "av-digits/kd", "--tiny", *options, "--out", "out")
    assert said.status == 2
    has(said, "nothing was trained", *words)
    assert not (tmp_path / "out").exists()


def test_taps_and_shapes_in_a_real_process(digits: None, tmp_path: Path) -> None:
    said = process(
        *(
            "run",
            "av-digits/mst-distill",
            "--tiny",
            "--set",
            "stages.specialise.method.taps={mm: [fc9], audio: [conv3]}",
        ),
        *("--set", "stages.collaborate.optimizer.rates={imagee: 1}"),
        cwd=tmp_path,
    )
    has(said, "has 2 faults", "stages.specialise: teacher 'mm' has no tap 'fc9'; did you mean 'fc1'", "'imagee'")


def test_shapes_that_do_not_fit_name_who_produced_what(crossdistill: Command, digits: None) -> None:
    said = crossdistill(
        "run", "av-digits/kd", "--tiny", "--set", "teachers.mm.model=cnn-i", "--set", "student.model=lenet5"
    )
    has(
        said,
        "has 2 faults",
        "student: network 'LeNet5' refused its input: image of shape (2, 1, 8, 8)",
        "teachers.mm: network 'CNNI' refused its input: image, audio of shape (2, 1, 8, 8), (2, 1, 32, 32)",
    )
    has(crossdistill("run", f"{FILES}:refuses_its_input"), "network 'Linear' refused its input: first of shape (2, 6)")
    has(crossdistill("run", f"{FILES}:other_classes"), "teacher 'teacher' gives logits of shape (7,), the student (4,)")


def test_weights_that_do_not_fit(crossdistill: Command, finished_run: Path) -> None:
    weights = finished_run / "student" / "model.safetensors"
    said = crossdistill("run", "av-digits/kd", "--tiny", "--set", f"teachers.mm.weights={weights}")
    has(
        said,
        f"teachers.mm: the weights in {weights} do not fit SmallMultimodal",
        "missing: image_conv1.weight",
        "fc1.weight (32, 384) instead of (48, 64)",
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run"], "Missing argument 'RECIPE'"),
        (["run", "av-digits/kd", "--sed", "3"], "No such option: --sed"),
        (["run", "av-digits/kd", "--seed", "x"], "--seed"),
        (["rnu"], "No such command 'rnu'"),
        (["list", "model"], "No such command 'model'"),
    ],
)
def test_usage(crossdistill: Command, words: list[str], said: str) -> None:
    result = crossdistill(*words)
    assert result.status == 2
    assert said in result.err
    assert "Traceback" not in result.err


def test_folders_that_are_no_run(crossdistill: Command, tmp_path: Path, finished_run: Path) -> None:
    has(crossdistill("eval", "nosuch"), "nosuch/recipe.yaml", "no such file")
    has(crossdistill("predict", "nosuch", "x.png"), "nosuch is neither a run's folder nor a student's")
    (tmp_path / "begun").mkdir()
    for words in (("--resume",), ()):
        has(crossdistill("run", "begun", *words), "begun/recipe.yaml: there is no such file", "nothing was done yet")
    (tmp_path / "begun" / "recipe.yaml").write_text((finished_run / "recipe.yaml").read_text())
    has(
        crossdistill("eval", "begun"),
        "begun holds no student yet; finish its run with: crossdistill run begun --resume",
    )
    has(crossdistill("eval", finished_run, "--split", "tset"), "no split 'tset'; did you mean 'test'")
    has(crossdistill("eval", finished_run, "--metric", "macro"), "no metric 'macro'; did you mean 'macro-f1'")


def test_files_that_a_student_cannot_read(finished_run: Path, tmp_path: Path, crossdistill: Command) -> None:
    wav, png, array = tmp_path / "x.wav", tmp_path / "x.png", tmp_path / "x.npy"
    wav.write_bytes(b"RIFF")
    png.write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    np.save(array, np.zeros((5, 5), np.float32))
    said = process("predict", finished_run, wav)
    has(said, f"{wav}: this student reads image from .png, .jpg, .jpeg, .npy, not from '.wav'")
    has(crossdistill("predict", finished_run, png), f"{png}: truncated, or not a readable picture")
    has(crossdistill("predict", finished_run, array), f"{array}: an array of shape (5, 5)", "(1, 8, 8) or (8, 8)")
    has(crossdistill("predict", finished_run, "none.png"), "none.png: there is no such file")


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("model.safetensors", b"\x08\x00", ["model.safetensors: damaged"]),
        ("config.json", b"{", ["config.json is damaged"]),
        ("config.json", b'{"model": 3}', ["config.json is of format none", "reads format 2"]),
        ("preparation.safetensors", b"x", ["preparation.safetensors: damaged"]),
    ],
)
def test_a_damaged_student(
    crossdistill: Command, finished_run: Path, tmp_path: Path, file: str, content: bytes, words: list[str]
) -> None:
    folder = tmp_path / "student"
    folder.mkdir()
    for path in (finished_run / "student").iterdir():
        (folder / path.name).write_bytes(path.read_bytes() if path.name != file else content)
    has(crossdistill("predict", folder, "x.png"), *words)


def test_a_student_of_a_foreign_class_is_not_imported(
    crossdistill: Command, finished_run: Path, tmp_path: Path
) -> None:
    config = json.loads((finished_run / "student" / "config.json").read_text())
    config["model"] = {"class": "os.system"}
    folder = tmp_path / "student"
    folder.mkdir()
    for path in (finished_run / "student").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "config.json").write_text(sealed(config))
    has(crossdistill("predict", folder, "x.png"), "'os.system'", "never imported by itself", "module=")


def test_a_missing_extra_says_how_to_install_it(crossdistill: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("wandb", "mlflow"):
        monkeypatch.setitem(sys.modules, package, None)
        said = crossdistill("run", "av-digits/kd", "--tiny", "--set", f"tracking={package}", "--out", "out")
        has(said, f"tracking with {package} needs the package '{package}'", f'pip install "crossdistill[{package}]"')
        assert not Path("out").exists()


def test_all_faults_of_a_comparison_at_once(crossdistill: Command) -> None:
    said = crossdistill(
        "compare", "av-digits", "--methods", "kdd,kd", "--students", "imag", "--labelled", "2", "--seeds", "0"
    )
    has(
        said,
        "has 4 faults; nothing was trained",
        "seeds: wanted at least 1, found 0",
        "no method is called 'kdd'; did you mean 'kd'",
    )
    has(said, "no modality is called 'imag'; did you mean 'image'", "fractions of the labels in (0, 1], found 2.0")
    said = crossdistill("compare", "nosuch")
    has(said, "has 1 fault; nothing was trained", "no recipes are made for 'nosuch'; known: av-digits, av-mnist")
