"""Losses and nets against the golden numbers of the reference implementations, in float64, gradients included.

One row of `CHECKS` says how a quantity is computed from the arrays of its file. Every key of a file is exactly one of:
an input, a checked quantity, the gradient `X__grad_Y` of one, or in `EXPECTED_LATER`. Adding code later means moving
an entry from `EXPECTED_LATER` into a row of `CHECKS`; any other folder with other draws (CROSSDISTILL_GOLDEN) works.
"""

import os
import re
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from crossdistill import losses
from crossdistill.nets import GateNet, GateNetDense, MaskNet1d, MaskNet2d
from crossdistill.nets.memory import moved

FOLDER = Path(os.environ.get("CROSSDISTILL_GOLDEN", Path(__file__).resolve().parents[3] / "shared" / "golden"))
FILES = sorted([*FOLDER.glob("mst_*.npz"), *FOLDER.glob("mdistiller_*.npz")])
TOLERANCE = 1e-6
TEMPERATURE = 4.0  # where the key names none
MASK_HEADS = 3  # the one size that no array tells; see the folder's README

Arrays = Mapping[str, Tensor]
Compute = Callable[[Arrays, re.Match[str]], Tensor]


def _module(arrays: Arrays, prefix: str, build: Callable[[Mapping[str, Tensor]], nn.Module], value: str) -> Tensor:
    """Run a module on the stored weights; they stay leaves, so gradients with respect to them can be asked for."""
    state = {key.removeprefix(f"{prefix}."): tensor for key, tensor in arrays.items() if key.startswith(f"{prefix}.")}
    module = build(state).double().eval()
    module.load_state_dict({key: tensor.detach() for key, tensor in state.items()}, strict=True)
    return functional_call(module, state, (arrays[value],), strict=True)


def _mask1d(state: Mapping[str, Tensor]) -> nn.Module:
    return MaskNet1d(state["embed.weight"].shape[1], state["fc.weight"].shape[1], MASK_HEADS)


def _mask2d(state: Mapping[str, Tensor]) -> nn.Module:
    return MaskNet2d(state["embed.weight"].shape[1], state["fc.weight"].shape[1], MASK_HEADS)


def _gate(state: Mapping[str, Tensor]) -> nn.Module:
    return GateNet(state["fc1.weight"].shape[1], len(state["fc2.weight"]), activation=False)


def _gate_dense(state: Mapping[str, Tensor]) -> nn.Module:
    return GateNetDense(state["conv_point.weight"].shape[1], len(state["fc.weight"]))


def _collaborative(arrays: Arrays, _: re.Match[str]) -> Tensor:
    members = {name: arrays[name] for name in ("student", "teacher", "third")}
    tasks = torch.stack([losses.cross_entropy(logits, arrays["target"]) for logits in members.values()]).sum(0)
    return (tasks + losses.collaborative_kl(members, TEMPERATURE)).mean()


def _routed(arrays: Arrays, key: re.Match[str]) -> Tensor:
    student, teachers, gate = arrays["student"], arrays["specialised"].detach(), arrays["gate_logits"]
    return losses.routed_kl(student, teachers, gate, int(key["k"]), TEMPERATURE, reduce="mean").mean()


def _taught(student: Tensor, teacher: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """The references detach the side that teaches; losses never do so by themselves."""
    return losses.distillation_kl(student, teacher.detach(), temperature).mean()


def _multi_level(arrays: Arrays, _: re.Match[str]) -> Tensor:
    student, teacher = arrays["student"], arrays["teacher"].detach()
    temperatures = (2.0, 3.0, 4.0, 5.0, 6.0)
    rows = torch.stack([losses.distillation_kl(student, teacher, t).mean() for t in temperatures])
    pairs = [
        f(student, teacher, t, "mean") for f in (losses.class_correlation, losses.row_correlation) for t in temperatures
    ]
    return (rows.sum() + torch.stack(pairs).sum()) / len(temperatures) / 3


def _non_target(arrays: Arrays, learner: str, guide: str) -> Tensor:
    gate = losses.kendall_tau_b(arrays["student"], arrays["teacher"]) > 0
    return (losses.non_target_kl(arrays[learner], arrays[guide].detach(), arrays["target"]) * gate).mean()


def _contrast(arrays: Arrays, _: re.Match[str]) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for anchors, bank in ((arrays["crd_s"], arrays["crd_bank_t"]), (arrays["crd_t"], arrays["crd_bank_s"])):
        logits = losses.contrast_logits(anchors, bank, arrays["crd_contrast"], 0.07)
        total = total + losses.contrast_nce(logits, losses.log_normaliser(logits, len(bank)), len(bank)).mean()
    return total


def _bank_after(arrays: Arrays, side: str) -> Tensor:
    return moved(arrays[f"crd_bank_{side}"], arrays["crd_index"], arrays[f"crd_{side}"], 0.5)


def _dkd(arrays: Arrays, alpha: float, beta: float, temperature: float = TEMPERATURE) -> Tensor:
    logits = (arrays["student"], arrays["teacher"].detach(), arrays["target"], temperature)
    return (alpha * losses.target_class_kl(*logits) + beta * losses.other_classes_kl(*logits)).mean()


def _stages(arrays: Arrays, prefix: str = "feat") -> list[tuple[Tensor, Tensor]]:
    count = sum(re.fullmatch(rf"{prefix}_s\d+", name) is not None for name in arrays)
    return [(arrays[f"{prefix}_s{i}"], arrays[f"{prefix}_t{i}"].detach()) for i in range(count)]


def _over_stages(arrays: Arrays, loss: Callable[[Tensor, Tensor], Tensor], prefix: str = "feat") -> Tensor:
    return torch.stack([loss(*pair).mean() for pair in _stages(arrays, prefix)]).sum()


def _margin(arrays: Arrays, key: re.Match[str]) -> Tensor:
    margin = torch.full_like(arrays["ofd_s"][0, :, 0, 0], float(key["margin"])).detach()
    return losses.partial_distance(arrays["ofd_s"], arrays["ofd_t"].detach(), margin).mean()


def _pooled(arrays: Arrays, key: re.Match[str]) -> Tensor:
    student, teacher = arrays["pooled_s"], arrays["pooled_t"].detach()
    return float(key["d"]) * losses.rkd_distance(student, teacher) + float(key["a"]) * losses.rkd_angle(
        student, teacher
    )


# Pattern of a key -> how to compute it.
CHECKS: dict[str, Compute] = {
    r"kd_T(?P<T>[\d.]+)": lambda a, key: _taught(a["student"], a["teacher"], float(key["T"])),
    r"dense_kd_T(?P<T>[\d.]+)": lambda a, key: _taught(a["dense_student"], a["dense_teacher"], float(key["T"])),
    r"collaborative": _collaborative,
    r"adaptation_teacher_to_student": lambda a, _: _taught(a["teacher"], a["student"]),
    r"load_balance_kl_paper": lambda a, _: losses.balance_kl(a["gate_logits"]),
    r"load_balance_kl_official": lambda a, _: losses.balance_kl(a["gate_logits"], divide_by_teachers=True),
    r"load_balance_cv": lambda a, _: losses.balance_cv(a["gate_logits"]),
    r"topk(?P<k>\d+)_indices": lambda a, key: losses.top_teachers(a["gate_logits"], int(key["k"])),
    r"topk(?P<k>\d+)_loss_mean": _routed,
    r"masknet1d_mask": lambda a, _: _module(a, "masknet1d", _mask1d, "masknet1d_input"),
    r"masknet2d_mask": lambda a, _: _module(a, "masknet2d", _mask2d, "masknet2d_input"),
    r"gatenet_logits": lambda a, _: _module(a, "gatenet", _gate, "student"),
    r"gatenet_dense_logits": lambda a, _: _module(a, "gatenet_dense", _gate_dense, "gatenet_dense_input"),
    r"mlld_mst_variant": _multi_level,
    r"rkd_distance": lambda a, _: losses.rkd_distance(a["feat_s"], a["feat_t"].detach()),
    r"rkd_angle": lambda a, _: losses.rkd_angle(a["feat_s"], a["feat_t"].detach()),
    r"rkd_(?P<d>\d+)_(?P<a>\d+)": _pooled,
    r"ofa_eps(?P<e>[\d.]+)_T(?P<T>[\d.]+)": lambda a, key: losses.ofa(
        a["student"], a["teacher"].detach(), a["target"], float(key["e"]), float(key["T"])
    ).mean(),
    r"kendall_tau_b": lambda a, _: losses.kendall_tau_b(a["student"], a["teacher"]),
    r"c2kd_nontarget_s_from_t": lambda a, _: _non_target(a, "student", "teacher"),
    r"c2kd_nontarget_t_from_s": lambda a, _: _non_target(a, "teacher", "student"),
    r"crd_loss": _contrast,
    r"crd_bank_s_after": lambda a, _: _bank_after(a, "s"),
    r"crd_bank_t_after": lambda a, _: _bank_after(a, "t"),
    r"lskd_T(?P<T>[\d.]+)": lambda a, key: _taught(
        losses.standardised(a["student"]), losses.standardised(a["teacher"]), float(key["T"])
    ),
    r"dkd_a(?P<a>[\d.]+)_b(?P<b>[\d.]+)_T(?P<T>[\d.]+)": lambda a, key: _dkd(
        a, float(key["a"]), float(key["b"]), float(key["T"])
    ),
    r"dkd_tckd": lambda a, _: _dkd(a, 1.0, 0.0),
    r"dkd_nckd": lambda a, _: _dkd(a, 0.0, 1.0),
    r"at_p(?P<p>[\d.]+)": lambda a, key: _over_stages(
        a, lambda mine, theirs: losses.attention_transfer(mine, theirs, float(key["p"]))
    ),
    r"nst": lambda a, _: _over_stages(a, losses.selectivity_transfer),
    r"pkt": lambda a, _: losses.probabilistic_transfer(a["pooled_s"], a["pooled_t"].detach()),
    r"sp_last": lambda a, _: losses.similarity_preserving(*_stages(a)[-1]),
    r"reviewkd_hcl": lambda a, _: _over_stages(a, losses.hierarchical_context, "hcl"),
    r"ofd_margin_(?P<margin>-?[\d.]+)": _margin,
}

# Quantities whose code does not exist yet: glob patterns, without `__grad_...`. Every other key must be known.
EXPECTED_LATER: set[str] = set()

INPUTS = re.compile(
    r"(dense_)?(student|teacher)|third|target|gate_logits|specialised"
    r"|(masknet[12]d|gatenet(_dense)?)\..+|(masknet[12]d|gatenet_dense)_input"
    r"|feat_[st]\d*|pooled_[st]|hcl_[st]\d+|ofd_[st]|crd_[st]|crd_index|crd_contrast|crd_bank_[st]"
)


@cache
def _stored(file: Path) -> dict[str, np.ndarray]:
    with np.load(file, allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}


def _check_of(key: str) -> tuple[Compute, re.Match[str]] | None:
    """The row for this quantity, which may be a gradient of it."""
    quantity = key.split("__grad_")[0]
    found = [(compute, match) for pattern, compute in CHECKS.items() if (match := re.fullmatch(pattern, quantity))]
    assert len(found) <= 1, f"{key}: {len(found)} rows of CHECKS claim it"
    return found[0] if found else None


def _is_later(key: str) -> bool:
    return any(fnmatchcase(key.split("__grad_")[0], pattern) for pattern in EXPECTED_LATER)


def _is_input(key: str) -> bool:
    return INPUTS.fullmatch(key) is not None


def _all_keys() -> list[tuple[Path, str]]:
    return [(file, key) for file in FILES for key in _stored(file)]


def _quantities() -> list[object]:
    return [pytest.param(f, k, id=f"{f.stem}-{k}") for f, k in _all_keys() if _check_of(k) and not _is_input(k)]


def _computed(stored: Mapping[str, np.ndarray], key: str) -> Tensor:
    quantity, _, source = key.partition("__grad_")
    arrays = {name: torch.tensor(value) for name, value in stored.items() if _is_input(name)}
    if source:
        arrays[source].requires_grad_()
    row = _check_of(quantity)
    result = row[0](arrays, row[1])
    if not source:
        return result.detach()
    if not result.requires_grad:
        return torch.zeros_like(arrays[source])
    (gradient,) = torch.autograd.grad(result.sum(), [arrays[source]], allow_unused=True, materialize_grads=True)
    return gradient


def _difference(ours: Tensor, golden: Tensor) -> str | None:
    """What is wrong, or None: |a - b| <= 1e-6 · max|b|; whole numbers have to be equal."""
    if ours.numel() != golden.numel():
        return f"shape {tuple(ours.shape)}, golden {tuple(golden.shape)}"
    ours = ours.reshape(golden.shape)
    if not golden.is_floating_point():
        return None if torch.equal(ours, golden) else f"{ours.tolist()}, golden {golden.tolist()}"
    if ours.dtype != torch.float64:
        return f"computed in {ours.dtype}, not in float64"
    error, allowed = (ours - golden).abs().max().item(), TOLERANCE * golden.abs().max().item()
    return None if error <= allowed else f"off by {error:.3g}, allowed are {allowed:.3g}"


needs_folder = pytest.mark.skipif(
    not FOLDER.is_dir(), reason=f"no golden numbers at {FOLDER}; CROSSDISTILL_GOLDEN names another folder"
)


@needs_folder
def test_there_is_something_to_check() -> None:
    assert FILES, f"{FOLDER} holds neither mst_*.npz nor mdistiller_*.npz"
    assert len(_quantities()) > 0


@needs_folder
@pytest.mark.parametrize(("file", "key"), _quantities())
def test_agrees_with_the_reference(file: Path, key: str) -> None:
    stored = _stored(file)
    assert _difference(_computed(stored, key), torch.tensor(stored[key])) is None


def test_a_new_key_would_be_noticed() -> None:
    for key in ("kd_t4", "topk_loss_mean", "feat_x", "rkd_third", "new__grad_student"):
        assert not _is_input(key), key
        assert _check_of(key) is None, key
        assert not _is_later(key), key


@needs_folder
def test_every_key_is_known() -> None:
    unknown = [
        f"{file.name}: {key}"
        for file, key in _all_keys()
        if not (_is_input(key) or _check_of(key) is not None or _is_later(key))
    ]
    assert unknown == []


@needs_folder
def test_expected_later_holds_exactly_the_keys_without_a_check() -> None:
    keys = [(f"{file.name}: {key}", key) for file, key in _all_keys()]
    assert [name for name, key in keys if _is_later(key) and _check_of(key)] == [], "these have a check: drop them"
    assert [name for name, key in keys if _is_input(key) and (_is_later(key) or _check_of(key))] == []


def test_no_entry_of_expected_later_can_hide_a_check() -> None:
    # Also for draws that are not here: the pattern of a check with a number in its groups is not expected later.
    examples = [re.sub(r"\(\?P<\w+>[^)]*\)", "2", pattern) for pattern in CHECKS]
    assert all(_check_of(example) for example in examples)
    assert [example for example in examples if _is_later(example)] == []


def test_a_wrong_number_is_found() -> None:
    golden = torch.tensor([1.0, -2.0], dtype=torch.float64)
    assert _difference(golden.clone(), golden) is None
    assert "off by" in str(_difference(golden + 3e-6, golden))
    assert "off by" in str(_difference(golden * torch.nan, golden))
    assert "float64" in str(_difference(golden.float(), golden))
    assert "shape" in str(_difference(golden[:1], golden))
    assert "off by" in str(_difference(golden, torch.zeros_like(golden)))
    assert "golden" in str(_difference(torch.tensor([1]), torch.tensor([2])))
