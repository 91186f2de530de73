"""timm, open_clip, ONNX files, LoRA and functions; `make test-backends` has the packages that are missing here."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import Heard
from facts import states
from numpy.typing import NDArray

from crossdistill import Dataset, Network, Recipe, Stage, load_student, run
from crossdistill.backends.names import build
from crossdistill.data.rendered import rendered
from crossdistill.errors import CrossdistillError, MissingExtraError, SettingError
from crossdistill.outputs import Signal
from crossdistill.recipe import NetworkConfig

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def built(name: str, digits: Dataset, how: str | None = None, *, student: bool = False, **options: Any) -> Any:
    return build(name, options, None, how, "float32", member="big", dataset=digits, student=student)


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        ("timm:resnet18", "timm", "timm"),
        ("open_clip:ViT-B-32", "open_clip", "clip"),
        ("onnx:FILE", "onnxruntime", "onnx"),
    ],
)
def test_a_missing_package_names_its_extra(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str, extra: str
) -> None:
    monkeypatch.setitem(__import__("sys").modules, package, None)
    (tmp_path / "net.onnx").write_bytes(b"")
    with pytest.raises((MissingExtraError, SettingError)) as caught:
        built(name.replace("FILE", str(tmp_path / "net.onnx")), digits)
    assert package in str(caught.value)
    if isinstance(caught.value, MissingExtraError):
        assert f"crossdistill[{extra}]" in str(caught.value)


def test_a_student_of_timm_reads_the_data_as_they_are(digits: Dataset, tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="the extra `timm` is not installed")
    recipe = Recipe(
        data=digits,
        student=NetworkConfig.model_validate("timm:mobilenetv4_conv_small"),
        teachers={"big": NetworkConfig(model="small-image")},
        stages=(
            Stage(method="supervised", learner="big", epochs=1, batch_size=18),
            Stage(method="kd", epochs=1, batch_size=18),
        ),
    )
    display = Heard()
    run(recipe, tmp_path / "out", display=display)
    assert "its first weights are random" in "\n".join(display.lines)
    student = load_student(tmp_path / "out")
    assert student.network.reads == ("image",)
    found = student.predict(np.zeros((8, 8), dtype=np.uint8))
    assert found[0].label in digits.classes


def test_timm_s_layers_size_and_faults(digits: Dataset) -> None:
    pytest.importorskip("timm", reason="the extra `timm` is not installed")
    network = built("timm:vit_tiny_patch16_224", digits, student=True, pretrained=False).network
    assert network.reads == ("image@student",)
    assert network.renderings["image@student"].shape == (3, 224, 224)
    assert len(network.taps) == 12
    with pytest.raises(SettingError, match="mobilenetv4_conv_small"):
        built("timm:mobilenetv4_conv_smal", digits)
    with pytest.raises(SettingError, match="dept"):
        built("timm:resnet18", digits, student=True, dept=3)
    teacher = built("timm:resnet18", digits, pretrained=False)
    assert "all weights train" in teacher.notes[0]


def test_the_picture_side_of_open_clip(digits: Dataset) -> None:
    open_clip = pytest.importorskip("open_clip", reason="the extra `clip` is not installed")
    name = "ViT-S-32-alt" if "ViT-S-32-alt" in open_clip.list_models() else "ViT-B-32"
    made = built(f"open_clip:{name}", digits, prompt="the digit {}")
    data = rendered(digits, made.network.renderings, "it")
    spec = made.network.probe(data.example())
    assert spec.logits == (10,)
    assert spec.embedding is not None
    assert len(made.network.taps) > 5
    model = made.network.module.get_submodule("body.visual")
    with torch.no_grad():
        batch = data.batch(torch.arange(4))
        found = made.network.eval()(batch)
        image = torch.nn.functional.normalize(model(torch.as_tensor(batch.inputs["image@big"])), dim=1)
    torch.testing.assert_close(found.embedding, image)
    text = made.network.module.get_submodule("head").weight
    torch.testing.assert_close(text.norm(dim=1), torch.full((10,), 1 / 0.07), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.logits, image @ text.T)
    states(made.notes[0], "zero-shot", "'the digit 0'")
    with pytest.raises(SettingError, match="ViT-B-32"):
        built("open_clip:ViT-B-33", digits)


def test_lora_trains_its_matrices_and_the_head(folder: Callable[[str], Path], digits: Dataset, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="the extra `lora` is not installed")
    place = shutil.copytree(folder("vit"), tmp_path / "vit")
    network = built(f"transformers:{place}", digits, "lora-4").network
    moving = {name for name, one in network.module.named_parameters() if one.requires_grad}
    assert all("lora_" in name or "classifier" in name for name in moving)
    assert len(moving) == 2 * 18 + 2
    stages = (Stage(method="supervised", epochs=1, batch_size=18),)
    student = NetworkConfig(model=f"transformers:{place}", tune="lora-4")
    run(Recipe(data=digits, student=student, stages=stages), tmp_path / "out", display=Heard())
    shutil.rmtree(place)
    assert load_student(tmp_path / "out").network.reads == ("image@student",)


def onnx_file(path: Path) -> Path:
    """Two inputs (pictures, and a factor), three outputs: scores, hidden, and a state whose rows come second."""
    onnx = pytest.importorskip("onnx", reason="onnx writes the test's file")
    pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
    from onnx import TensorProto as T
    from onnx import helper as h
    from onnx import numpy_helper

    weights = np.random.default_rng(0).normal(size=(64, 10)).astype(np.float32)
    nodes = [
        h.make_node("Flatten", ["pictures"], ["flat"]),
        h.make_node("MatMul", ["flat", "weights"], ["raw"]),
        h.make_node("Mul", ["raw", "factor"], ["scores"]),
        h.make_node("Relu", ["flat"], ["hidden.1"]),
        h.make_node("Identity", ["state"], ["next"]),
    ]
    graph = h.make_graph(
        nodes,
        "small",
        [
            h.make_tensor_value_info("pictures", T.FLOAT, ["batch", 1, 8, 8]),
            h.make_tensor_value_info("factor", T.FLOAT, []),
            h.make_tensor_value_info("state", T.FLOAT, [2, "batch", 3]),
        ],
        [
            h.make_tensor_value_info("scores", T.FLOAT, ["batch", 10]),
            h.make_tensor_value_info("hidden.1", T.FLOAT, ["batch", 64]),
            h.make_tensor_value_info("next", T.FLOAT, [2, "batch", 3]),
        ],
        [numpy_helper.from_array(weights, "weights")],
    )
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=9), path)
    return path


def test_an_onnx_file_teaches(digits: Dataset, tmp_path: Path) -> None:
    path = onnx_file(tmp_path / "small.onnx")
    network = built(f"onnx:{path}", digits, inputs={"factor": 2.0}).network
    spec = network.probe(digits.example())
    assert spec.logits == (10,)
    assert spec.embedding == (64,)
    assert spec.features == {"scores": (10,), "hidden_1": (64,)}
    assert not network.unkeyed()
    other = built(f"onnx:{path}", digits, inputs={"factor": 1.0}).network
    other.probe(digits.example())
    batch = digits.example()
    torch.testing.assert_close(network(batch).logits, 2 * other(batch).logits)
    assert network.wiring() != other.wiring()
    recipe = Recipe(
        data=digits,
        student=NetworkConfig(model="small-image"),
        teachers={"big": NetworkConfig(model=f"onnx:{path}", options={"inputs": {"factor": 1.0}})},
        stages=(Stage(method="kd", epochs=3, batch_size=18),),
    )
    display = Heard()
    run(recipe, tmp_path / "out", display=display)
    assert "kd: big logits: banked" in "\n".join(display.lines)
    with pytest.raises(SettingError, match="score"):
        built(f"onnx:{path}", digits, logits="scorse")
    (tmp_path / "broken.onnx").write_bytes(b"nothing")
    with pytest.raises(CrossdistillError, match="broken"):
        built(f"onnx:{tmp_path / 'broken.onnx'}", digits)


def test_a_function_teaches_and_is_called_once_for_each_row(digits: Dataset, tmp_path: Path) -> None:
    calls: list[int] = []

    def server(pictures: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        calls.append(len(pictures))
        flat = pictures.reshape(len(pictures), -1).astype(np.float64)
        return {"logits": flat[:, :10], "embedding": flat[:, :3], "middle": flat[:, 3:7]}

    teacher = Network.from_function(server, key="v1", reads="image", taps=("middle",))
    assert not teacher.unkeyed()
    outputs = teacher(digits.example(), {Signal.LOGITS, Signal.feature("middle")})
    assert outputs.features["middle"].shape == (2, 4)
    other = Network.from_function(server, key="v2", reads="image", taps=("middle",))
    assert teacher.wiring() != other.wiring()
    assert teacher.wiring() == Network.from_function(len, key="v1", reads="image", taps=("middle",)).wiring()
    recipe = Recipe(
        data=digits,
        student=NetworkConfig(model="small-image"),
        teachers={"server": teacher},
        stages=(Stage(method="kd", epochs=4, batch_size=18),),
    )
    display = Heard()
    run(recipe, tmp_path / "out", display=display)
    assert "kd: server logits: banked" in "\n".join(display.lines)
    calls.clear()
    run(recipe, tmp_path / "again", display=display, banks=tmp_path / "out" / "banks")
    # Only trial passes on a few rows, and the test split.
    assert sum(calls) < len(digits)
    with pytest.raises(SettingError, match="key"):
        Network.from_function(server, key="", reads="image")


def test_a_class_of_one_s_own(digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_nets.py").write_text(
        "from torch import nn\n\n\n"
        "class Small(nn.Sequential):\n"
        "    def __init__(self, classes: int, width: int = 8) -> None:\n"
        "        super().__init__(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    network = built("own_nets:Small", digits, width=5).network
    assert network.probe(digits.example()).logits == (10,)
    recipe = Recipe(
        data=digits,
        student=NetworkConfig.model_validate("own_nets:Small"),
        stages=(Stage(method="supervised", epochs=1, batch_size=18),),
    )
    run(recipe, tmp_path / "out", display=Heard())
    with pytest.raises(SettingError, match=r"Smal.*Small"):
        built("own_nets:Smal", digits)
    with pytest.raises(SettingError, match=r"widht.*width"):
        built("own_nets:Small", digits, widht=5)
    two = Dataset.from_arrays("two", {"a": torch.zeros(9, 2), "b": torch.zeros(9, 2)}, [0, 1, 2] * 3)
    with pytest.raises(SettingError, match="reads"):
        built("own_nets:Small", two)
