import importlib.util
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from facts import raises

from crossdistill.data import cache, find_data
from crossdistill.data.dataset import Dataset
from crossdistill.data.sets.av_digits import AvDigitsConfig
from crossdistill.errors import DataError, MissingExtraError

TINY = {"train_clips": 120, "validation_clips": 40, "test_clips": 80}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("kept")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CROSSDISTILL_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def dataset(kept: Path) -> Dataset:
    return AvDigitsConfig(**TINY).load()


def same(a: Dataset, b: Dataset) -> bool:
    return a.fingerprint == b.fingerprint and all(a.inputs[name].equal(b.inputs[name]) for name in a.inputs)


def test_shapes_and_normalisation(dataset: Dataset) -> None:
    assert {split: len(rows) for split, rows in dataset.splits.items()} == {"train": 120, "validation": 40, "test": 80}
    assert (dataset.inputs["image"].shape, dataset.inputs["audio"].shape) == ((240, 1, 8, 8), (240, 1, 32, 32))
    assert dataset.classes == tuple("0123456789")
    train = dataset.inputs["audio"][dataset.splits["train"]]
    assert float(train.mean()) == pytest.approx(0, abs=1e-3)
    assert float(train.std()) == pytest.approx(1, abs=1e-3)
    for rows in dataset.splits.values():
        assert dataset.targets[rows].bincount().unique().tolist() == [len(rows) // 10]


def test_no_handwriting_and_no_voice_in_two_splits(dataset: Dataset) -> None:
    for source in ("handwriting", "voice"):
        own = [set(dataset.groups[source][rows].tolist()) for rows in dataset.splits.values()]
        assert all(own)
        assert not own[0] & own[1]
        assert not own[0] & own[2]
        assert not own[1] & own[2]


def test_pictures_are_real_ones_of_which_few_components_are_left(dataset: Dataset) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    source = dataset.groups["handwriting"]
    assert digits.target[source].tolist() == dataset.targets.tolist()
    flat = dataset.inputs["image"].flatten(1).double()
    train = source[dataset.splits["train"]].unique()
    raw = torch.from_numpy(digits.images / 16).flatten(1)
    centre = raw[train].mean(0)
    _, values, basis = torch.linalg.svd(raw[train] - centre, full_matrices=False)
    energy = (values**2).cumsum(0) / (values**2).sum()
    count = int((energy < 0.25).sum()) + 1
    assert torch.linalg.matrix_rank(flat - flat.mean(0), rtol=1e-4) == count == 2
    left = centre + (raw[source] - centre) @ basis[:count].T @ basis[:count]
    how = dataset.input_specs["image"].options["normalisation"]
    assert flat.allclose((left - how["mean"]) / how["deviation"], atol=1e-4)


def test_the_description_is_honest(dataset: Dataset) -> None:
    assert "matched by digit, so pairing itself carries the class" in dataset.about
    assert "share no handwritten sample and no voice" in dataset.about
    assert any("GPL-3" in licence.licence for licence in dataset.licences)
    json.dumps({name: dict(spec.options) for name, spec in dataset.input_specs.items()})


def test_it_is_kept_and_two_builds_are_equal_on_any_number_of_threads(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = AvDigitsConfig(**TINY)
    entry = config.cached()
    assert entry.name == "av-digits"
    assert entry.size_bytes > 240 * (1024 + 64) * 4
    assert same(dataset, config.load(lambda *said: pytest.fail(f"built again: {said}")))
    monkeypatch.setenv("CROSSDISTILL_CACHE", str(tmp_path))
    assert config.cached() is None
    torch.set_num_threads(2)
    try:
        assert same(dataset, config.load())
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_it_is_built_again_when_the_recipe_changes_or_a_file_is_damaged(
    dataset: Dataset, kept: Path, caplog: pytest.LogCaptureFixture
) -> None:
    said: dict[str, list[tuple[int, int]]] = {}
    louder = AvDigitsConfig(**TINY, snr_db=10)
    assert louder.cached() is None
    other = louder.load(lambda what, done, total: said.setdefault(what, []).append((done, total)))
    assert set(said) == {"synthesising speech", "adding noise"}
    assert all(steps == sorted(steps) and steps[-1] == (240, 240) for steps in said.values())
    assert other.inputs["image"].equal(dataset.inputs["image"])
    assert not other.inputs["audio"].allclose(dataset.inputs["audio"])
    assert AvDigitsConfig(**TINY, seed=1).cached() is None
    assert AvDigitsConfig(**TINY, labelled=0.5).cached() is not None, "hidden labels are not part of what is built"

    entry = louder.cached()
    damaged = entry.path / "input.audio.npy"
    damaged.write_bytes(damaged.read_bytes()[:1000])
    with caplog.at_level(logging.WARNING):
        assert same(other, louder.load())
    assert "input.audio.npy has 1,000 bytes" in caplog.text


def test_what_other_code_built_is_not_taken(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    assert AvDigitsConfig(**TINY).cached() is not None
    monkeypatch.setattr(cache, "code_key", lambda: "of another version")
    assert AvDigitsConfig(**TINY).cached() is None


def test_hidden_labels(dataset: Dataset) -> None:
    hidden = AvDigitsConfig(**TINY, labelled=0.25).load()
    assert int(hidden.labelled[hidden.splits["train"]].sum()) == 30
    assert same(hidden, dataset)


def test_recordings_instead_of_synthesis(tmp_path: Path, kept: Path) -> None:
    rng = np.random.default_rng(0)
    for speaker in ("ann", "bob", "cy", "dee"):
        for digit in range(10):
            wave = np.sin(np.arange(3000) * (0.1 + 0.05 * digit)) + 0.01 * rng.standard_normal(3000)
            soundfile.write(tmp_path / f"{digit}_{speaker}_0.wav", wave / 2, 8000)
    (tmp_path / "readme.txt").write_text("not a recording")
    config = AvDigitsConfig(**TINY, speech=tmp_path)
    dataset = config.load()
    voices = [set(dataset.groups["voice"][rows].tolist()) for rows in dataset.splits.values()]
    assert sum(map(len, voices)) == 4
    assert len(set.union(*voices)) == 4
    assert len(dataset) == 40
    assert "recordings, 4 speakers" in dataset.about
    assert not any("eSpeak" in licence.source for licence in dataset.licences)
    first = config.cached()
    soundfile.write(tmp_path / "0_ann_0.wav", rng.standard_normal(3000) / 9, 8000)
    assert first is not None
    assert config.cached() is None, "another recording is other data"

    (tmp_path / "5_bob_0.wav").write_bytes((tmp_path / "5_bob_0.wav").read_bytes()[:500])
    with raises(DataError, "5_bob_0.wav"):
        config.load()
    assert config.cached() is None


def test_recordings_that_cannot_be_used(tmp_path: Path) -> None:
    with raises(DataError, tmp_path / "none"):
        AvDigitsConfig(speech=tmp_path / "none").load()
    with raises(DataError, "7_jackson_32"):
        AvDigitsConfig(speech=tmp_path).load()
    soundfile.write(tmp_path / "0_ann_0.wav", np.ones(100) / 2, 8000)
    with raises(DataError, "three", "1: ann"):
        AvDigitsConfig(speech=tmp_path).load()


@pytest.mark.parametrize("package", ["sklearn", "espeakng_loader"])
def test_a_missing_extra_says_how_to_install_it(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else found(name))
    with raises(MissingExtraError, 'pip install "crossdistill[demo]"'):
        AvDigitsConfig().load()


def test_settings() -> None:
    assert find_data("av-digits") is AvDigitsConfig
    assert AvDigitsConfig().test_clips >= 3000
    assert AvDigitsConfig().tiny().train_clips == 300
    with raises(ValueError, "snr_bd"):
        AvDigitsConfig.model_validate({"snr_bd": 3})
    with raises(ValueError, "labelled"):
        AvDigitsConfig(labelled=0)


def test_listing_the_names_imports_no_torch() -> None:
    import subprocess

    code = "import sys, crossdistill.data as d; assert 'av-digits' in d.DATA; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.slow
def test_the_whole_is_built_in_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setenv("CROSSDISTILL_CACHE", str(tmp_path))
    start = time.monotonic()
    dataset = AvDigitsConfig().load()
    assert time.monotonic() - start < 60
    assert len(dataset.splits["test"]) == 3000
    assert len(cache.entries()) == 1
