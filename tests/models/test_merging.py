"""Merging of state dicts and of folders, and the alignment of permuted networks."""

from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import called
from facts import raises

from crossdistill.errors import SettingError, ShapeError
from crossdistill.models.alignment import _groups, permutations_to, permuted
from crossdistill.models.merging import merge
from crossdistill.run_folder.merge import merge_folders
from crossdistill.stage import MergeConfig


def states(count: int = 3) -> list[dict[str, torch.Tensor]]:
    """State dicts of one shape."""
    torch.manual_seed(0)
    return [
        {"a.weight": torch.randn(4, 3), "a.bias": torch.randn(4), "b.weight": torch.randn(2), "n": torch.tensor(3)}
        for _ in range(count)
    ]


def test_weights_that_sum_to_one_make_task_vectors_an_interpolation() -> None:
    first, second, base = states()
    linear = merge([first, second], [0.9, 0.1])
    task = merge([first, second], [0.9, 0.1], base=base, method="task")
    for key in ("a.weight", "a.bias", "b.weight"):
        torch.testing.assert_close(linear[key], 0.9 * first[key] + 0.1 * second[key])
        torch.testing.assert_close(task[key], linear[key])
    assert linear["n"] == 3
    more = merge([first, second], [1.0, 1.0], base=base, method="task", scale=0.5)
    torch.testing.assert_close(
        more["a.bias"], base["a.bias"] + 0.5 * (first["a.bias"] + second["a.bias"] - 2 * base["a.bias"])
    )


def test_layers_have_their_own_weights_by_the_longest_name() -> None:
    first, second, _ = states()
    merged = merge([first, second], [0.5, 0.5], layers={"a.": (1.0, 0.0), "a.bias": (0.0, 1.0)})
    torch.testing.assert_close(merged["a.weight"], first["a.weight"])
    torch.testing.assert_close(merged["a.bias"], second["a.bias"])
    torch.testing.assert_close(merged["b.weight"], (first["b.weight"] + second["b.weight"]) / 2)


def test_ties_trims_elects_and_averages_those_that_agree() -> None:
    base = {"w": torch.zeros(5)}
    first, second = {"w": torch.tensor([4.0, -3.0, 0.1, 2.0, 0.0])}, {"w": torch.tensor([2.0, 1.0, 5.0, -1.5, 0.0])}
    # Kept: 4, -3, 2 of the first; 2, 5, -1.5 of the second.
    merged = merge([first, second], [0.5, 0.5], base=base, method="ties", keep=0.6)
    torch.testing.assert_close(merged["w"], torch.tensor([3.0, -3.0, 5.0, 2.0, 0.0]))
    weighted = merge([first, second], [0.2, 0.8], base=base, method="ties", keep=0.6)
    torch.testing.assert_close(weighted["w"], torch.tensor([2.4, -3.0, 5.0, -1.5, 0.0]))


def test_networks_and_weights_that_do_not_fit_are_refused() -> None:
    first, second, base = states()
    with raises(ShapeError, "'a.bias'", "(4,)", "(5,)"):
        merge([first, {**second, "a.bias": torch.zeros(5)}], [0.5, 0.5])
    with raises(ShapeError, "'a.weight'"):
        merge([first, {key: value for key, value in second.items() if key != "a.weight"}], [0.5, 0.5])
    with raises(ShapeError, "'c'"):
        merge([first, {**second, "c": torch.zeros(5)}], [0.5, 0.5])
    with raises(SettingError, "1.2"):
        merge([first, second], [0.9, 0.3])
    with raises(SettingError, "'ties'"):
        merge([first, second], [0.9, 0.1], method="ties")
    with raises(SettingError, 2, 3):
        merge([first, second], [0.2, 0.3, 0.5], base=base, method="task")
    with raises(SettingError, "nan"):
        merge([first, second], [float("nan"), 0.1])
    with raises(SettingError, "'d.'"):
        merge([first, second], [0.5, 0.5], layers={"d.": (1.0, 0.0)})


def test_settings_that_a_method_does_not_read_are_refused(tmp_path: Path) -> None:
    first, second, base = states()
    for method, given, facts in (
        ("linear", {"scale": 0.5}, ["scale", 0.5, "'linear'", "'ties'"]),
        ("linear", {"base": base}, ["base", "'linear'", "'task'"]),
        ("linear", {"keep": 0.2}, ["keep", "'ties'"]),
        ("task", {"keep": 0.5, "base": base}, ["keep", "'task'", "'ties'"]),
        ("task", {"scale": float("nan"), "base": base}, ["scale", "nan"]),
    ):
        with raises(SettingError, *facts):
            merge([first, second], [0.5, 0.5], method=method, **given)  # type: ignore[arg-type]
    folders = [tmp_path / name for name in "abc"]
    with raises(SettingError, "permute", "base", "'task'"):
        # The base would stay in its order.
        merge_folders(folders[:2], [0.5, 0.5], tmp_path / "out", base=folders[2], method="task", permute=tmp_path)
    with raises(SettingError, "base", "'linear'"):
        merge_folders(folders[:2], [0.5, 0.5], tmp_path / "out", base=folders[2])
    for settings, facts in (
        ({"scale": 0.5}, ["scale"]),
        ({"method": "task", "keep": 0.5}, ["keep"]),
        ({"method": "ties", "permute": True}, ["permute"]),
    ):
        with raises(ValueError, *facts):
            MergeConfig.model_validate({"weights": {"a": 0.5, "b": 0.5}, **settings})
    whole = MergeConfig(weights={"a": 0.5, "b": 0.5})
    assert MergeConfig.model_validate(whole.model_dump()) == whole


def hubert(seed: int, norm: str = "group") -> torch.nn.Module:
    """A small HubertModel."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    config = transformers.HubertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24, conv_dim=(8, 8, 8),
        conv_kernel=(10, 3, 3), conv_stride=(5, 2, 2), num_feat_extract_layers=3, num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=4, feat_extract_norm=norm, conv_bias=norm == "layer",
        do_stable_layer_norm=norm == "layer",
    )  # fmt: skip
    network: torch.nn.Module = transformers.HubertModel(config).eval()
    for parameter in network.parameters():
        # Norms and biases that are not all equal.
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return network


def shuffled(state: dict[str, torch.Tensor], heads: int) -> dict[str, torch.Tensor]:
    """Orders of all groups of units; heads stay together."""
    torch.manual_seed(5)
    orders = {}
    for name, entries in _groups(state).items():
        key, dimension = entries[0]
        size = state[key].shape[dimension]
        orders[name] = torch.randperm(size)
        if name.endswith((".values", ".keys")):
            of_heads = torch.randperm(heads, generator=torch.Generator().manual_seed(int(name.split(".")[1])))
            inner = size // heads
            orders[name] = torch.cat([head * inner + torch.randperm(inner) for head in of_heads.tolist()])
    return orders


@pytest.mark.parametrize("norm", ["group", "layer"])
@torch.no_grad()
def test_a_permuted_network_gives_the_same_outputs_and_is_aligned_back(norm: str) -> None:
    pytest.importorskip("scipy")
    network = hubert(0, norm)
    state = network.state_dict()
    orders = shuffled(state, heads=4)
    assert len(orders) == 3 + 2 * 3
    other = hubert(1, norm)
    changed = permuted(state, orders)
    other.load_state_dict(changed)
    waves = [torch.randn(2, 1200) for _ in range(3)]
    expected = network(waves[0], output_hidden_states=True).hidden_states
    for first, second in zip(expected, other(waves[0], output_hidden_states=True).hidden_states, strict=True):
        torch.testing.assert_close(first, second, atol=1e-4, rtol=1e-4)
    assert any(not torch.equal(state[key], changed[key]) for key in state)
    back = permuted(changed, permutations_to(network, other, waves))
    assert all(torch.equal(state[key], back[key]) for key in state)


def test_folders_of_hugging_face_are_merged_and_load_as_their_parents(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers, soundfile = pytest.importorskip("transformers"), pytest.importorskip("soundfile")
    networks = [hubert(seed) for seed in (0, 1)]
    for name, network in zip("ab", networks, strict=True):
        network.save_pretrained(tmp_path / name)  # type: ignore[operator]
        soundfile.write(tmp_path / f"{name}.wav", np.random.default_rng(0).normal(0, 0.1, 4000), 16_000)
    words = ("merge", tmp_path / "a", tmp_path / "b", "--weights", ".75", ".25", "--out")
    said = called(*words, tmp_path / "out", capsys=capsys, monkeypatch=monkeypatch)
    assert said.status == 0, said.err
    merged = transformers.AutoModel.from_pretrained(tmp_path / "out", local_files_only=True)
    assert type(merged) is type(networks[0])
    for key, value in merged.state_dict().items():
        first, second = (network.state_dict()[key] for network in networks)
        torch.testing.assert_close(value, 0.75 * first + 0.25 * second)
    for option in (("--scale", "0.5"), ("--keep", "0.2"), ("--base", tmp_path / "a")):
        refused = called(*words, tmp_path / "other", *option, capsys=capsys, monkeypatch=monkeypatch)
        assert option[0].removeprefix("--") in refused.complaint()
    again = called(*words, tmp_path / "out", capsys=capsys, monkeypatch=monkeypatch)
    assert (again.status, "exists" in again.err) == (1, True)
    aligned = called(*words, tmp_path / "aligned", "--permute", tmp_path, capsys=capsys, monkeypatch=monkeypatch)
    assert aligned.status == 0, aligned.err
    plain = transformers.AutoModel.from_pretrained(tmp_path / "aligned", local_files_only=True)
    assert not torch.equal(plain.state_dict()["encoder.layers.0.feed_forward.intermediate_dense.bias"],
                           merged.state_dict()["encoder.layers.0.feed_forward.intermediate_dense.bias"])  # fmt: skip
