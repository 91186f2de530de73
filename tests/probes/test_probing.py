"""Probes from the command line to the report: networks, features, few shots, texts, and faults before any work."""

import json
import re
from pathlib import Path

import layouts
import pytest
import torch
from command_line import called
from facts import raises
from own_files import write_sound

from crossdistill import Network
from crossdistill.data import cache
from crossdistill.errors import DataError, SettingError
from crossdistill.probes import features
from crossdistill.probes.clips import Clip
from crossdistill.probes.ctc import Alphabet, fit_speech
from crossdistill.probes.features import frame_features, pooled_features
from crossdistill.probes.frozen import Frozen, open_frozen
from crossdistill.probes.probing import Settings, _named, probe
from crossdistill.probes.report import ProbeReport, ProbeScore
from crossdistill.probes.shots import subsets
from crossdistill.probes.tasks import find_task

transformers = pytest.importorskip("transformers")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def hubert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A HuBERT with group norm, whose values depend on padding, as transformers saves it."""
    folder = tmp_path_factory.mktemp("hubert")
    torch.manual_seed(0)
    config = transformers.HubertConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(8,) * 7,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
    )
    transformers.HubertModel(config).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path / "cache"))


def clips_of(folder: Path) -> list[Clip]:
    return [Clip(path.name, path) for path in sorted(folder.rglob("*.wav"))]


def test_features_are_the_means_of_each_clip_alone(hubert: Path, tmp_path: Path) -> None:
    for number, seconds in enumerate((0.3, 0.2, 0.3, 0.05)):
        write_sound(tmp_path / "clips" / f"{number}.wav", number, seconds, 16000)
    clips = clips_of(tmp_path / "clips")
    frozen = open_frozen(str(hubert))
    found = pooled_features(frozen, clips, CPU)
    frames = frame_features(frozen, clips, CPU)
    assert found.shape == (4, 2, 16)
    model = transformers.HubertModel.from_pretrained(hubert).eval()
    extractor = transformers.Wav2Vec2FeatureExtractor.from_pretrained(hubert)
    for row, clip in enumerate(clips):
        wave = features.wave_of(clip, 16000).numpy()
        values = torch.tensor(extractor(wave, sampling_rate=16000)["input_values"][0])[None]
        with torch.no_grad():
            states = torch.stack(model(values, output_hidden_states=True).hidden_states[1:], 2)[0]
        torch.testing.assert_close(frames[row], states, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found[row], states.mean(0), rtol=1e-4, atol=1e-5)


def test_features_are_computed_once(hubert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sound(tmp_path / "clips" / "a.wav", 1)
    clips = clips_of(tmp_path / "clips")
    first = pooled_features(open_frozen(str(hubert)), clips, CPU)
    # Under another name the weights are the same.
    again = open_frozen(f"transformers:{hubert}")
    with monkeypatch.context() as patched:
        patched.setattr(features, "_computed", lambda *_: pytest.fail("computed again"))
        assert torch.equal(pooled_features(again, clips, CPU), first)
    write_sound(tmp_path / "clips" / "a.wav", 2, 0.4)
    assert not torch.equal(pooled_features(again, clips, CPU), first)


def test_parts_of_a_recording_and_long_ones(hubert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_sound(tmp_path / "clips" / "a.wav", 1, 0.8, 16000)
    wave = features.wave_of(Clip("a", path, start=0.2, seconds=0.3), 8000)
    assert len(wave) == 2400
    monkeypatch.setattr(features, "LONGEST", 0.5)
    frozen = open_frozen(str(hubert))
    halves = [Clip(str(start), path, start=start, seconds=0.4) for start in (0.0, 0.4)]
    whole = frame_features(frozen, clips_of(tmp_path / "clips"), CPU)[0]
    torch.testing.assert_close(whole, torch.cat(frame_features(frozen, halves, CPU)), rtol=1e-4, atol=1e-5)


def test_the_command_writes_a_report_and_its_subsets(
    hubert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = layouts.digits(tmp_path / "digits")
    words = ("probe", hubert, "--task", "spoken-digit", "--task", "digit-speaker", "--data", root)
    rest = ("--shots", 2, 1, "--seeds", 2, "--layers", "sum", "--head", "mlp", "--to", tmp_path / "report")
    said = called(*words, *rest, capsys=capsys, monkeypatch=monkeypatch)
    assert said.status == 0, said.err
    # One network alone would always have 1000 of 1000.
    assert "of 1000" not in said.out
    assert "MARBLE-style" in said.out
    assert re.search(r"spoken-digit +2 a class: 6 ", said.out), said.out
    assert (tmp_path / "report" / "report.md").is_file()
    data = json.loads((tmp_path / "report" / "report.json").read_text())
    assert [(one["task"], one["shots"], len(one["values"])) for one in data["scores"]] == [
        ("spoken-digit", None, 2),
        ("spoken-digit", 2, 2),
        ("spoken-digit", 1, 2),
        ("digit-speaker", None, 2),
        ("digit-speaker", 2, 2),
        ("digit-speaker", 1, 2),
    ]
    scores = {(one["task"], one["shots"]): one for one in data["scores"]}
    # Three tones of different pitch: any network distinguishes them.
    assert scores["spoken-digit", None]["mean"] > 0.9
    assert sum(scores["spoken-digit", None]["layers"]) == pytest.approx(1)
    stored = json.loads((tmp_path / "report" / "subsets" / "spoken-digit-fold0-2shots.json").read_text())
    assert all(
        sorted(one.split("/")[1][0] for one in ids) == ["0", "0", "1", "1", "2", "2"]
        for ids in stored["seeds"].values()
    )


def test_numbers_of_a_manifest(tmp_path: Path, hubert: Path) -> None:
    table = tmp_path / "clips.csv"
    lines = ["path,target,split"]
    for number in range(18):
        write_sound(tmp_path / f"{number}.wav", number, 0.12, 16000)
        lines.append(f"{number}.wav,{number % 7},{('train', 'val', 'test')[number % 3]}")
    table.write_text("\n".join(lines))
    report = probe([str(hubert)], [("manifest-numbers", table)], Settings(seeds=1))
    assert report.scores[0].metric == "r2"
    assert report.scores[0].floor == 0


def test_a_network_without_layers_gives_its_embedding(tmp_path: Path) -> None:
    write_sound(tmp_path / "clips" / "a.wav", 1, 0.2)
    write_sound(tmp_path / "clips" / "b.wav", 2, 0.2)
    network = Network(torch.nn.Linear(1600, 5), ("wave",), output_adapter=lambda value: {"embedding": value})
    frozen = Frozen("own", network, "wave", lambda sounds: torch.stack([one.wave for one in sounds]), 8000, "waves")
    found = pooled_features(frozen, clips_of(tmp_path / "clips"), CPU)
    assert found.shape == (2, 1, 5)
    wave = features.wave_of(clips_of(tmp_path / "clips")[1], 8000)
    torch.testing.assert_close(found[1, 0], network.module(wave[None])[0])
    table = tmp_path / "clips.csv"
    splits = ("train", "validation", "test")
    names = [f"all/{name}{split}.wav,{name},{split}" for name in "ab" for split in splits]
    for number, row in enumerate(names):
        write_sound(tmp_path / row.partition(",")[0], number, 0.2)
    table.write_text("\n".join(("path,target,split", *names)))
    assert len(probe([frozen], [("manifest", table)], Settings(seeds=2)).scores[0].values) == 2
    with raises(SettingError, 0):
        probe([frozen], [("manifest", table)], Settings(layers="sum"))


def test_few_shots_are_balanced_stored_and_read_again(tmp_path: Path) -> None:
    data = find_task("spoken-digit").read(layouts.digits(tmp_path / "digits", 20))
    first = subsets(data, "spoken-digit", 0, 3, range(2), tmp_path / "subsets")
    assert [len(one) for one in first] == [9, 9]
    assert set(first[0]) != set(first[1])
    smaller = subsets(data, "spoken-digit", 0, 2, range(1), None)
    assert set(smaller[0]) < set(first[0])
    file = tmp_path / "subsets" / "spoken-digit-fold0-3shots.json"
    stored = json.loads(file.read_text())
    stored["seeds"]["0"] = stored["seeds"]["1"]
    file.write_text(json.dumps(stored))
    assert subsets(data, "spoken-digit", 0, 3, range(3), tmp_path / "subsets")[:2] == [first[1]] * 2
    stored["seeds"]["0"] = [data.clips[data.folds[0].test[0]].id]
    file.write_text(json.dumps(stored))
    with raises(DataError, data.clips[data.folds[0].test[0]].id):
        subsets(data, "spoken-digit", 0, 3, range(1), tmp_path / "subsets")


def spelled(rows: int) -> tuple[list[str], list[torch.Tensor]]:
    source = torch.Generator().manual_seed(0)
    alphabet, texts, frames = Alphabet("ab "), [], []
    for _ in range(rows):
        length = int(torch.randint(3, 7, (), generator=source))
        text = "".join("ab "[i] for i in torch.randint(0, 3, (length,), generator=source).tolist()).strip() or "a"
        spoken = [code for one in alphabet.encode(text).tolist() for code in (one, one, 0)]
        texts.append(text)
        frames.append(torch.nn.functional.one_hot(torch.tensor(spoken), 4).float()[:, None].repeat(1, 2, 1))
    return texts, frames


def test_letters_are_learned_from_frames() -> None:
    texts, frames = spelled(24)
    found = fit_speech("linear", frames, texts, range(16), range(16, 20), seeds=(0,), rates=(3e-2,), epochs=30)
    assert found.texts(frames[20:])[0] == texts[20:]
    assert found.alphabet.decode(torch.tensor([2, 2, 0, 2, 3, 3])) == "aab"


def test_padding_of_frames_changes_no_text() -> None:
    texts, frames = spelled(12)
    found = fit_speech("mlp", frames, texts, range(6), range(6, 9), seeds=(0,), rates=(1e-2,), epochs=2)
    together = found.texts(frames)[0]
    assert together == [found.texts([one])[0][0] for one in frames]
    loud = [torch.cat([one, torch.full((50, 2, 4), 1e3)])[: len(one)] for one in frames]
    assert found.texts(loud)[0] == together


def test_scores_over_tasks_by_hand() -> None:
    made = [
        ProbeScore("a", "x", None, "accuracy", (0.6, 0.8), 0.1, 9, 9),
        ProbeScore("a", "y", None, "accuracy", (0.4,), 0.1, 9, 9),
        ProbeScore("b", "x", None, "wer", (0.5,), 1.0, 9, 9),
        ProbeScore("b", "y", None, "wer", (0.25,), 1.0, 9, 9),
    ]
    report = ProbeReport(tuple(made), "linear", "last", 2)
    assert report.superb("x") == pytest.approx(1000 * (1 + 0.5 / 0.75) / 2)
    assert report.superb("y") == pytest.approx(1000 * (0.3 / 0.6 + 1) / 2)
    assert report.marble("y") == pytest.approx((40 + 75) / 2)
    assert "70.0 ± 14.1" in report.markdown()


@pytest.mark.usefixtures("unchecked")
def test_settings_that_are_none() -> None:
    with raises(SettingError, "'sum'"):
        Settings(layers="sums").check()  # type: ignore[arg-type]
    with raises(SettingError, "'tpu'"):
        Settings(device="tpu").check()


def test_faults_are_reported_before_anything_is_computed(
    hubert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Frozen, "states", lambda *_: pytest.fail("computed"))
    root = layouts.digits(tmp_path / "digits")
    name = str(hubert)
    with raises(SettingError, "'spoken-digit'"):
        probe([name], [("spoken-digits", root)])
    with raises(DataError, "ravdess-emotion", root, "recordings/"):
        probe([name], [("ravdess-emotion", root)])
    with raises(SettingError, tmp_path / "none"):
        probe([name, str(tmp_path / "none")], [("spoken-digit", root)])
    config = transformers.ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    transformers.ViTModel(config).save_pretrained(tmp_path / "vit")
    with raises(SettingError, "'image'"):
        probe([str(tmp_path / "vit")], [("spoken-digit", root)])
    table = tmp_path / "numbers.csv"
    table.write_text(
        "path,target,split\n"
        + "\n".join(f"digits/recordings/0_ann_{2 * n}.wav,1,{s}" for n, s in enumerate(("train", "val", "test")))
    )
    with raises(SettingError, "manifest-numbers"):
        probe([name], [("manifest-numbers", table)], Settings(shots=(5,)))
    (tmp_path / "out" / "subsets").mkdir(parents=True)
    file = tmp_path / "out" / "subsets" / "digit-speaker-fold0-1shots.json"
    few = {"0": ["recordings/0_ann_10.wav"], "1": ["recordings/0_ann_10.wav", "recordings/0_bob_11.wav"]}
    file.write_text(json.dumps({"seeds": few}))
    tasks = [("spoken-digit", root), ("digit-speaker", root)]
    with raises(DataError, file, "seed 1", 2, 1):
        probe([name], tasks, Settings(seeds=2, shots=(1,)), out=tmp_path / "out")
    file.write_text(json.dumps({"seeds": {"0": few["0"] * 2}}))
    with raises(DataError, file, "seed 0", "recordings/0_ann_10.wav"):
        probe([name], tasks, Settings(seeds=1, shots=(1,)), out=tmp_path / "out")
    frozen = open_frozen(name)
    with raises(SettingError, 2, repr(name)):
        probe([frozen, open_frozen(name)], tasks)


def test_data_of_one_name_have_names_of_their_own(tmp_path: Path) -> None:
    tables = [tmp_path / end for end in ("a/labels.csv", "b/labels.csv", "b/labels.tsv")]
    names = [[task.name for task, _ in _named([("manifest", one) for one in some])] for some in (tables[:2], tables)]
    assert names == [
        ["manifest-a-labels", "manifest-b-labels"],
        ["manifest-a-labels.csv", "manifest-b-labels.csv", "manifest-b-labels.tsv"],
    ]
    # "manifest" of texts.csv is not "manifest-texts".
    tasks = [("manifest", tmp_path / "texts.csv"), ("manifest", tables[0]), ("manifest-texts", tables[0])]
    assert len({task.name for task, _ in _named(tasks)}) == 3
    assert [task.name for task, _ in _named([("manifest", tables[0])] * 2)] == ["manifest"]


def test_an_empty_part_of_a_recording_is_refused(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "a.wav", 1, 1.0)
    for part in (Clip("a", path, start=10.0), Clip("a", path, start=1.0, seconds=0.5)):
        with raises(DataError, path, "1 s", f"{part.start:g} s"):
            features.wave_of(part, 8000)
    for start, seconds in ((-0.5, 0.3), (float("nan"), None), (0.0, 0.0)):
        with raises(DataError, "a"):
            Clip("a", path, start=start, seconds=seconds)


def test_features_are_computed_again_by_other_code(
    hubert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_sound(tmp_path / "clips" / "a.wav", 1)
    clips, frozen = clips_of(tmp_path / "clips"), open_frozen(str(hubert))
    first = pooled_features(frozen, clips, CPU)
    monkeypatch.setattr(features, "_computed", lambda *_: iter([(0, torch.ones(3, 2, 16))]))
    assert torch.equal(pooled_features(frozen, clips, CPU), first)
    # As after an edit of the module that decodes.
    monkeypatch.setattr(cache, "code_key", lambda: "other")
    assert torch.equal(pooled_features(frozen, clips, CPU), torch.ones(1, 2, 16))


@pytest.mark.slow
def test_real_digits_and_emotions(hubert: Path, shared_data: Path) -> None:
    tasks = [("ravdess-emotion", shared_data / "ravdess-speech-16k"), ("esc10", shared_data / "esc10")]
    report = probe([str(hubert)], tasks, Settings(layers="sum", seeds=2, shots=(5,)))
    scores = {(score.task, score.shots): score for score in report.scores}
    assert scores["esc10", None].mean > 0.15
    assert scores["ravdess-emotion", None].test_clips == 360
