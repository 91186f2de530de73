"""Devices that are not there, or do not work, and optimizers of torches of several ages: sentences, not tracebacks."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Command
from torch import Tensor, nn

from crossdistill.errors import SettingError
from crossdistill.runtime.distributed import devices
from crossdistill.stage import OptimizerConfig
from crossdistill.training.optimizer import ChunkedAdam, optimizer_for


def refusal(wanted: str) -> str:
    with pytest.raises(SettingError) as caught, devices(wanted):
        pass
    return str(caught.value)


@pytest.mark.parametrize(
    ("wanted", "built", "fact"),
    [("cuda", "13.0", "driver"), ("cuda:7", "13.0", "driver"), ("cuda", None, "without CUDA"), ("mps", None, "MPS")],
)
def test_e_device_that_is_not_there(
    wanted: str, built: str | None, fact: str, monkeypatch: pytest.MonkeyPatch, crossdistill: Command, tmp_path: Path
) -> None:
    monkeypatch.setattr("crossdistill.runtime.distributed.kinds", lambda: ["cpu"])
    monkeypatch.setattr(torch.version, "cuda", built)
    text = refusal(wanted)
    assert repr(wanted) in text
    assert "finds cpu" in text
    assert fact in text
    said = crossdistill("run", "av-digits/kd", "--tiny", "--set", f"device={wanted}", "--out", tmp_path / "out")
    assert said.status in {1, 2}
    assert text in said.err
    assert "Traceback" not in said.err


@pytest.mark.parametrize("wanted", ["cuda", "cuda:0", "auto"])
@pytest.mark.parametrize("fault", [RuntimeError("Found no NVIDIA driver on your system."), AssertionError("not built")])
def test_e_device_whose_driver_does_not_work(wanted: str, fault: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def zeros(*_: object, **__: object) -> Tensor:
        raise fault

    monkeypatch.setattr("crossdistill.runtime.distributed.kinds", lambda: ["cpu", "cuda"])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr("crossdistill.runtime.distributed.torch.zeros", zeros)
    text = refusal(wanted)
    assert str(fault) in text
    assert "cpu" in text


def test_e_device_number_beyond_those_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crossdistill.runtime.distributed.kinds", lambda: ["cpu", "cuda"])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    text = refusal("cuda:7")
    assert "cuda:7" in text
    assert "2 CUDA devices" in text


MOVE = "crossdistill.training.optimizer.ChunkedAdam._function"


def older(function: Callable[..., Any]) -> Any:
    """The same function, without the argument that newer torches added."""

    @functools.wraps(function)
    def checked(*words: Any, **given: Any) -> Any:
        if "decoupled_weight_decay" in given:
            raise TypeError("got an unexpected keyword argument 'decoupled_weight_decay'")
        return function(*words, **given)

    return checked if function.__name__ == "__init__" else staticmethod(checked)


@pytest.mark.parametrize("name", ["adam", "adamw"])
@pytest.mark.parametrize("moments", ["memory", "disk"])
def test_e_optimizer_takes_no_argument_that_old_torches_lack(
    name: str, moments: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """torch 2.6's Adam has no decoupled decay, neither its class nor its function."""
    if name == "adam":
        # AdamW of newer torches is itself an Adam with decoupled decay.
        for where, own in (("torch.optim.Adam.__init__", torch.optim.Adam.__init__), (MOVE, ChunkedAdam._function)):
            monkeypatch.setattr(where, older(own))
    config = OptimizerConfig(name=name, learning_rate=0.1, weight_decay=0.5, moments=moments)
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(8, 6))
    twin = nn.Parameter(weight.detach().clone())
    mine = optimizer_for(config, [{"params": [weight], "lr": 0.1}], folder=tmp_path, large_bytes=1)
    theirs = (torch.optim.AdamW if name == "adamw" else torch.optim.Adam)([twin], 0.1, weight_decay=0.5)
    for _ in range(3):
        gradient = torch.randn(8, 6)
        weight.grad, twin.grad = gradient.clone(), gradient.clone()
        mine.step()
        theirs.step()
    torch.testing.assert_close(weight, twin)
