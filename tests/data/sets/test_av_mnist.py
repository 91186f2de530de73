import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from builders import reference_arrays
from facts import raises

from crossdistill.data import cache, find_data
from crossdistill.data.dataset import Dataset
from crossdistill.data.sets.av_mnist import AvMnistConfig
from crossdistill.data.split import paper_split
from crossdistill.errors import DataError, SettingError

ROWS = 120
SPEAKERS = ("ann", "bob", "cy", "dee", "eve")


@pytest.fixture(autouse=True, scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CROSSDISTILL_CACHE", str(tmp_path_factory.mktemp("kept")))
        yield


def write_root(root: Path) -> Path:
    """A small root in the layout of the real one."""
    rng = np.random.default_rng(0)
    (root / "mnist").mkdir(parents=True)
    shapes = rng.random((10, 28, 28)) * 200
    for part, rows in (("train", 100), ("t10k", 40)):
        digits = np.arange(rows) % 10
        images = np.clip(shapes[digits] + rng.normal(0, 20, (rows, 28, 28)), 0, 255).astype(np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", digits.astype(np.uint8))):
            content = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()
            (root / "mnist" / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(content))
    speech = root / "free-spoken-digit-dataset" / "recordings"
    speech.mkdir(parents=True)
    for digit in range(10):
        for speaker in SPEAKERS:
            wave = np.sin(np.arange(4000) * (0.1 + 0.1 * digit)) / 2
            soundfile.write(speech / f"{digit}_{speaker}_0.wav", wave, 8000)
    for kind in ("rain", "dog"):
        (root / "esc10" / kind).mkdir(parents=True)
        for number in range(3):
            noise = rng.standard_normal(30000) / 10
            noise[:15000] = 0  # a pause, as real clips have
            soundfile.write(root / "esc10" / kind / f"{number}.ogg", noise, 44100)
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_root(tmp_path_factory.mktemp("raw") / "data")


@pytest.fixture(scope="module")
def by_speaker(root: Path) -> Dataset:
    return AvMnistConfig(root=root, rows=ROWS).load()


def apart(dataset: Dataset, source: str) -> bool:
    own = [set(dataset.groups[source][rows].tolist()) for rows in dataset.splits.values()]
    return not (own[0] & own[1] or own[0] & own[2] or own[1] & own[2])


def test_shapes_and_ranges(by_speaker: Dataset) -> None:
    assert by_speaker.inputs["image"].shape == (ROWS, 1, 28, 28)
    assert by_speaker.inputs["audio"].shape == (ROWS, 1, 112, 112)
    for tensor in by_speaker.inputs.values():
        assert tensor.dtype == torch.float32
        assert tensor.flatten(1).amin(1).eq(0).all()
        assert tensor.flatten(1).amax(1).eq(1).all()
    assert [len(rows) for rows in by_speaker.splits.values()] == [72, 24, 24]


def test_by_speaker_nothing_is_shared(by_speaker: Dataset) -> None:
    assert all(apart(by_speaker, source) for source in ("handwriting", "voice", "recording", "noise"))
    assert "share no speaker, no noise clip and no picture" in by_speaker.about
    assert "matched by digit, so pairing itself carries the class" in by_speaker.about


def test_by_sample_is_the_papers_split(root: Path) -> None:
    dataset = AvMnistConfig(root=root, split="sample", seed=1).load()
    assert len(dataset) == 140
    wanted = paper_split(140, 1)
    assert all(dataset.splits[split].equal(wanted[split]) for split in wanted)
    assert dataset.groups["handwriting"].equal(torch.arange(140))
    assert dataset.targets[:100].equal(torch.arange(100) % 10)
    assert not apart(dataset, "voice")
    assert "the same clip may train and test" in dataset.about


def test_the_basis_is_fitted_on_training_pictures_alone(root: Path, by_speaker: Dataset) -> None:
    everything = AvMnistConfig(root=root, rows=ROWS, release_compat=True).load()
    assert everything.inputs["audio"].equal(by_speaker.inputs["audio"])
    mine, theirs = (d.input_specs["image"].parameters for d in (by_speaker, everything))
    assert not mine["mean"].equal(theirs["mean"])
    raw = np.frombuffer(
        gzip.decompress((root / "mnist" / "train-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16
    )
    more = np.frombuffer(
        gzip.decompress((root / "mnist" / "t10k-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16
    )
    pictures = torch.from_numpy(np.concatenate([raw, more]).reshape(-1, 784) / 255).float()
    source = by_speaker.groups["handwriting"]
    assert mine["mean"].allclose(pictures[source[by_speaker.splits["train"]]].mean(0), atol=1e-6)
    assert theirs["mean"].allclose(pictures[source].mean(0), atol=1e-6)


def test_components_and_energy(root: Path) -> None:
    for count in (2, 5):
        dataset = AvMnistConfig(root=root, rows=ROWS, components=count).load()
        assert dataset.input_specs["image"].parameters["basis"].shape == (count, 784)
    assert len(AvMnistConfig(root=root, rows=ROWS, energy=0.9).load().input_specs["image"].parameters["basis"]) > 5


def test_two_builds_are_equal_and_noise_follows_seed_and_ratio(
    root: Path, by_speaker: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CROSSDISTILL_CACHE", str(tmp_path))
    again = AvMnistConfig(root=root, rows=ROWS).load()
    assert again.fingerprint == by_speaker.fingerprint
    assert again.inputs["audio"].equal(by_speaker.inputs["audio"])
    for other in (AvMnistConfig(root=root, rows=ROWS, snr_db=20.0), AvMnistConfig(root=root, rows=ROWS, seed=1)):
        assert other.cached() is None
        assert not other.load().inputs["audio"].equal(by_speaker.inputs["audio"])
        assert other.cached() is not None


def test_what_other_code_built_is_not_taken(root: Path, by_speaker: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    assert AvMnistConfig(root=root, rows=ROWS).cached() is not None
    monkeypatch.setattr(cache, "code_key", lambda: "of another version")
    assert AvMnistConfig(root=root, rows=ROWS).cached() is None


def test_louder_speech_is_closer_to_clean_speech(root: Path) -> None:
    quiet, loud, clean = (
        AvMnistConfig(root=root, rows=ROWS, snr_db=db).load().inputs["audio"] for db in (-5.0, 15.0, 60.0)
    )
    assert (loud - clean).abs().mean() < (quiet - clean).abs().mean()


def test_folders_of_ones_own(root: Path, by_speaker: Dataset) -> None:
    config = AvMnistConfig(
        images=root / "mnist", speech=root / "free-spoken-digit-dataset" / "recordings", noise=root / "esc10", rows=ROWS
    )
    assert config.load().fingerprint == by_speaker.fingerprint


@pytest.mark.parametrize(
    "name",
    [
        "mnist/train-images-idx3-ubyte.gz",
        "mnist/t10k-labels-idx1-ubyte.gz",
        "free-spoken-digit-dataset/recordings/3_bob_0.wav",
        "esc10/dog/1.ogg",
    ],
)
def test_truncated_files_are_named(name: str, tmp_path: Path) -> None:
    root = write_root(tmp_path / "data")
    path = root / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    config = AvMnistConfig(root=root, rows=ROWS)
    with raises(DataError, Path(name).name):
        config.load()
    assert config.cached() is None


def test_missing_material_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CROSSDISTILL_DATA", raising=False)
    with raises(DataError, "data.root", "CROSSDISTILL_DATA"):
        AvMnistConfig().load()
    with raises(DataError, tmp_path / "none"):
        AvMnistConfig(root=tmp_path / "none").load()
    with raises(DataError, "train-images-idx3-ubyte.gz"):
        AvMnistConfig(root=tmp_path).load()
    root = write_root(tmp_path / "data")
    for path in (root / "esc10").rglob("*.ogg"):
        path.unlink()
    with raises(DataError, "noise", "esc10"):
        AvMnistConfig(root=root).load()
    with raises(SettingError, 140):
        AvMnistConfig(root=write_root(tmp_path / "other"), rows=141).load()


def test_too_few_speakers(tmp_path: Path) -> None:
    root = write_root(tmp_path / "data")
    for path in (root / "free-spoken-digit-dataset" / "recordings").iterdir():
        if path.name[2:5] not in ("ann", "bob"):
            path.unlink()
    with raises(DataError, "2: ann, bob"):
        AvMnistConfig(root=root).load()


@pytest.mark.parametrize(
    ("image_shape", "audio_shape"), [((784,), (112, 112)), ((28, 28), (112, 112)), ((1, 28, 28), (1, 112, 112))]
)
@pytest.mark.parametrize("release_compat", [False, True])
def test_the_references_arrays(
    image_shape: tuple[int, ...], audio_shape: tuple[int, ...], release_compat: bool, tmp_path: Path
) -> None:
    written = reference_arrays(tmp_path, image_shape, audio_shape)
    dataset = AvMnistConfig(root=tmp_path, split="sample", release_compat=release_compat).load()
    assert "from ready arrays (avmnist)" in dataset.about
    assert dataset.splits["train"].equal(paper_split(100, 0)["train"])
    assert dataset.targets.tolist() == [*(i % 10 for i in range(60)), *(i % 10 for i in range(40))]
    for kind, side in (("image", 28), ("audio", 112)):
        both = [written[f"{kind}/{part}_data"].reshape(-1, 1, side, side) for part in ("train", "test")]
        raw = torch.from_numpy(np.concatenate(both).astype(np.float32))
        if len(image_shape) == 3:
            seen = raw if release_compat else raw[dataset.splits["train"]]
            low, high = seen.min(), seen.max()
        else:
            low, high = raw.amin((1, 2, 3), keepdim=True), raw.amax((1, 2, 3), keepdim=True)
        assert dataset.inputs[kind].allclose((raw - low) / (high - low), atol=1e-6), kind


def test_arrays_that_cannot_be_used(tmp_path: Path, root: Path) -> None:
    reference_arrays(tmp_path)
    with raises(SettingError, "data.split=sample", "data.images"):
        AvMnistConfig(root=tmp_path).load()
    mnist = {
        "images": root / "mnist",
        "speech": root / "free-spoken-digit-dataset" / "recordings",
        "noise": root / "esc10",
    }
    assert AvMnistConfig(root=tmp_path, rows=ROWS, **mnist).load().groups, "named folders go first"
    chosen = AvMnistConfig(root=tmp_path, split="sample", rows=50)
    assert len(chosen.load()) == 50

    audio = tmp_path / "avmnist" / "audio" / "train_data.npy"
    content = audio.read_bytes()
    audio.write_bytes(content[:-100])
    with raises(DataError, "audio/train_data.npy"):
        chosen.load()
    audio.write_bytes(content)
    np.save(tmp_path / "avmnist" / "train_labels.npy", np.arange(59))
    with raises(DataError, 60, "train_labels.npy has 59 labels"):
        chosen.load()
    np.save(tmp_path / "avmnist" / "train_labels.npy", np.arange(60) % 10)
    np.save(audio, np.zeros((60, 28, 28)))
    with raises(DataError, "(28, 28)"):
        chosen.load()
    audio.unlink()
    with raises(DataError, "audio/train_data.npy"):
        chosen.load()


def test_settings(root: Path) -> None:
    assert find_data("av-mnist") is AvMnistConfig
    assert AvMnistConfig().split == "speaker"
    assert AvMnistConfig().rows is None
    assert AvMnistConfig().tiny().rows == 200
    with raises(SettingError, "'av-mnist'"):
        find_data("av-minst")
    with raises(SettingError, "0 to 19"):
        AvMnistConfig(root=root, split="sample", seed=20).load()


def test_the_real_thing_at_two_hundred_rows(shared_data: Path) -> None:
    if not all((shared_data / name).is_dir() for name in ("mnist", "free-spoken-digit-dataset", "esc10")):
        pytest.skip(f"{shared_data} lacks mnist, free-spoken-digit-dataset or esc10")
    dataset = AvMnistConfig(root=shared_data, rows=200).load()
    assert dataset.inputs["image"].shape == (200, 1, 28, 28)
    assert dataset.inputs["audio"].shape == (200, 1, 112, 112)
    assert all(apart(dataset, source) for source in ("handwriting", "voice", "recording", "noise"))
    assert dataset.targets.bincount(minlength=10).min() > 5


@pytest.mark.slow
def test_four_components_carry_a_quarter_of_mnist(shared_data: Path) -> None:
    from crossdistill.data.idx_file import read_idx
    from crossdistill.data.principal import fit_principal

    path = shared_data / "mnist" / "train-images-idx3-ubyte.gz"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    pictures = torch.from_numpy(read_idx(path, 3).reshape(-1, 784) / np.float32(255))
    principal = fit_principal(pictures, energy=0.25)
    assert len(principal.basis) == 4
    assert principal.energy == pytest.approx(0.28, abs=0.02)


def test_another_packages_data_is_found_by_its_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.metadata

    def offered(group: str) -> list[importlib.metadata.EntryPoint]:
        assert group == "crossdistill.data"
        return [importlib.metadata.EntryPoint("foreign", "crossdistill.data.sets.av_mnist:AvMnistConfig", group)]

    monkeypatch.setattr(importlib.metadata, "entry_points", offered)
    assert find_data("foreign") is AvMnistConfig
    with raises(SettingError, "av-digits", "av-mnist", "foreign"):
        find_data("zzz")
