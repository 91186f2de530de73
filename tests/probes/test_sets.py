"""Readers of official layouts: tiny folders as the data sets have them, and the real files where they are."""

import csv
import hashlib
import json
from pathlib import Path

import layouts
import pytest
from facts import raises, states
from own_files import write_sound

from crossdistill.errors import DataError, SettingError
from crossdistill.probes.clips import Clip, Fold, ProbeData
from crossdistill.probes.sets.speech_commands import WORDS, which_split
from crossdistill.probes.tasks import TASKS, find_task


def read(task: str, root: Path) -> ProbeData:
    data = find_task(task).read(root)
    for fold in data.folds:
        parts = (fold.train, fold.validation, fold.test)
        assert all(parts), task
        rows = [row for part in parts for row in part]
        assert len(rows) == len(set(rows)), f"{task}: a clip is in two splits"
    return data


def labels(data: ProbeData, rows: tuple[int, ...]) -> set[str]:
    return {data.clips[row].labels[0] for row in rows}


def ids(data: ProbeData, rows: tuple[int, ...]) -> list[str]:
    return [data.clips[row].id for row in rows]


def write_csv(path: Path, *rows: tuple[object, ...]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def test_every_task_says_what_it_wanted(tmp_path: Path) -> None:
    for name, task in TASKS.items():
        if not name.startswith("manifest"):
            with raises(DataError, name, tmp_path):
                task.read(tmp_path)
    with raises(SettingError, "spoken-digit"):
        find_task("spoken-digits")


def test_speech_commands_by_hash_and_with_the_test_set(tmp_path: Path) -> None:
    names = [f"{number:08x}_nohash_0.wav" for number in range(40)]
    layouts.touched(tmp_path, *(f"{word}/{name}" for word in (*WORDS, "bed", "cat") for name in names))
    write_sound(tmp_path / "_background_noise_" / "hum.wav", 1, 60.0, rate=1000)
    data = read("keyword-spotting", tmp_path)
    assert "SUPERB" in data.remark
    assert len(data.classes()[0]) == 12
    (fold,) = data.folds
    unknown = [row for row in fold.train if data.clips[row].labels == ("_unknown_",)]
    known = [row for row in fold.train if data.clips[row].labels == ("yes",)]
    assert len(unknown) == len(known) > 20
    # Of 60 s of noise, 48, 6 and 6 without overlap.
    silence = [
        [data.clips[row].start for row in part if data.clips[row].labels == ("_silence_",)] for part in _parts(fold)
    ]
    assert silence == [list(range(48)), list(range(48, 54)), list(range(54, 60))]
    layouts.touched(tmp_path, *(f"speech_commands_test_set_v0.01/{w}/x.wav" for w in ("yes", "_silence_", "_unknown_")))
    other = read("keyword-spotting", tmp_path)
    assert labels(other, other.folds[0].test) == {"yes", "_silence_", "_unknown_"}
    assert len(other.folds[0].train) == len(fold.train)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        # Of validation_list.txt and testing_list.txt of v0.01, and two files that are in neither.
        ("026290a7_nohash_0.wav", "validation"),
        ("060cd039_nohash_1.wav", "validation"),
        ("099d52ad_nohash_0.wav", "validation"),
        ("0c40e715_nohash_0.wav", "test"),
        ("0ea0e2f4_nohash_1.wav", "test"),
        ("00176480_nohash_0.wav", "train"),
        ("004ae714_nohash_0.wav", "train"),
    ],
)
def test_speech_commands_splits_as_its_lists(name: str, split: str) -> None:
    number = int.from_bytes(hashlib.sha1(name.split("_nohash_")[0].encode()).digest()) % 2**27
    percent = 100 * number / (2**27 - 1)
    assert split == ("validation" if percent < 10 else "test" if percent < 20 else "train")
    assert which_split(name) == split


def test_the_split_does_not_depend_on_which_folder_is_the_root(tmp_path: Path) -> None:
    folder = tmp_path / "speech_commands_v0.01"
    names = [f"{number:08x}_nohash_0.wav" for number in range(40)]
    layouts.touched(folder, *(f"{word}/{name}" for word in (*WORDS, "bed", "cat") for name in names))
    write_sound(folder / "_background_noise_" / "hum.wav", 1, 20.0, rate=1000)
    layouts.touched(tmp_path, *(f"genres/{g}/{g}.{i:05}.wav" for g in ("blues", "jazz") for i in range(20)))
    pairs = ("keyword-spotting", tmp_path, folder), ("gtzan-genre", tmp_path, tmp_path / "genres")
    for task, outer, inner in pairs:
        parts = []
        for root in (outer, inner):
            data = read(task, root)
            parts.append([[(data.clips[row].path, data.clips[row].start) for row in p] for p in _parts(data.folds[0])])
        assert parts[0] == parts[1], task


def _parts(fold: Fold) -> tuple[tuple[int, ...], ...]:
    return fold.train, fold.validation, fold.test


def test_fluent_speech_commands(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        head = ("", "path", "speakerId", "transcription", "action", "object", "location")
        name = f"wavs/speakers/{split}/a.wav"
        write_csv(tmp_path / "data" / f"{split}_data.csv", head, (0, name, "s", "x", "activate", "lights", "none"))
        layouts.touched(tmp_path, name)
    data = read("intent", tmp_path)
    assert data.slots == ("action", "object", "location")
    assert data.clips[0].labels == ("activate", "lights", "none")
    (tmp_path / "wavs/speakers/test/a.wav").unlink()
    with raises(DataError, "intent", 1, 3):
        find_task("intent").read(tmp_path)


def test_iemocap_leaves_each_session_out(tmp_path: Path) -> None:
    for session in range(1, 6):
        base = tmp_path / f"Session{session}"
        lines = ""
        for number, emotion in enumerate(("neu", "exc", "xxx", "ang")):
            name = f"Ses0{session}F_impro01_F{number:03}"
            lines += f"[6.2901 - 8.2357]\t{name}\t{emotion}\t[2.5, 2.5, 2.5]\n"
            layouts.touched(base, f"sentences/wav/Ses0{session}F_impro01/{name}.wav")
        (base / "dialog" / "EmoEvaluation").mkdir(parents=True)
        (base / "dialog" / "EmoEvaluation" / f"Ses0{session}F_impro01.txt").write_text("% header\n\n" + lines)
    data = read("iemocap-emotion", tmp_path)
    assert data.classes() == (("angry", "happy", "neutral"),)
    assert len(data.folds) == 5
    assert {one.split("/")[0] for one in ids(data, data.folds[2].test)} == {"Session3"}
    states(data.remark, "SUPERB", 5, 3)


def test_voxceleb_and_vocalset(tmp_path: Path) -> None:
    vox, vocal = tmp_path / "vox", tmp_path / "vocal"
    lines = [f"{split} id1000{speaker}/vid{split}/00001.wav" for split in (1, 2, 3) for speaker in (1, 2)]
    layouts.touched(vox, *(f"dev/wav/{line[2:]}" for line in lines))
    (vox / "iden_split.txt").write_text("\n".join(lines))
    data = read("voxceleb-speaker", vox)
    assert data.classes() == (("id10001", "id10002"),)
    assert data.clips[data.folds[0].test[0]].path.parts[-2] == "vid3"

    singers = ("f1", "f2", "f3", "m1", "m10", "m2", "m3")
    names = [f"FULL/x/{s}_arpeggios_{t}_c_{v}.wav" for s in singers for t in ("belt", "lip_trill") for v in "aeiou"]
    layouts.touched(vocal, *names)
    assert read("vocalset-singer", vocal).classes() == (tuple(sorted(singers)),)
    data = read("vocalset-technique", vocal)
    assert data.classes() == (("belt", "lip_trill"),)
    (fold,) = data.folds
    who = [
        {data.clips[row].path.name.split("_")[0] for row in part} for part in (fold.train, fold.validation, fold.test)
    ]
    assert not who[0] & who[2]
    assert not who[1] & who[2]
    for split, singer in (("train", "f1"), ("dev", "f2"), ("test", "m1")):
        (vocal / f"{split}_t.txt").write_text("\n".join(Path(n).name for n in names if f"/{singer}_" in n))
    data = read("vocalset-technique", vocal)
    assert all("/m1_" in one for one in ids(data, data.folds[0].test))
    layouts.touched(vocal, "FULL/y/m1_arpeggios_belt_c_a.wav")
    with raises(
        DataError, "vocalset-technique", "FULL/x/m1_arpeggios_belt_c_a.wav", "FULL/y/m1_arpeggios_belt_c_a.wav"
    ):
        find_task("vocalset-technique").read(vocal)


def test_notes(tmp_path: Path) -> None:
    layouts.nsynth(tmp_path / "nsynth")
    assert read("nsynth-pitch", tmp_path / "nsynth").classes() == (("60", "61"),)
    assert read("nsynth-instrument", tmp_path / "nsynth").classes() == (("bass", "guitar"),)
    layouts.notes(tmp_path / "notes")
    data = read("philharmonia-instrument", tmp_path / "notes")
    assert "cor anglais" in data.classes()[0]
    played = [
        {one.rpartition("/")[2].split("_")[:2].__str__() for one in ids(data, part)}
        for part in (data.folds[0].train, data.folds[0].test)
    ]
    assert not played[0] & played[1]
    assert "Cs5" in read("philharmonia-pitch", tmp_path / "notes").classes()[0]


def test_music(tmp_path: Path) -> None:
    gtzan = layouts.touched(
        tmp_path / "gtzan", *(f"genres/{g}/{g}.0000{i}.wav" for g in ("blues", "jazz") for i in range(6))
    )
    layouts.touched(gtzan, "genres/jazz/jazz.00054.wav")
    data = read("gtzan-genre", gtzan)
    assert len(data.clips) == 12
    assert data.remark
    for split, number in (("train", 0), ("valid", 1), ("test", 2)):
        (gtzan / f"{split}_filtered.txt").write_text(f"blues/blues.0000{number}.wav\njazz/jazz.0000{number}.wav\n")
    data = read("gtzan-genre", gtzan)
    assert ids(data, data.folds[0].test) == ["genres/blues/blues.00002.wav", "genres/jazz/jazz.00002.wav"]

    keys = layouts.touched(tmp_path / "keys", *(f"wav/{i}.wav" for i in range(3)))
    entries = {str(i): {"y": "C# minor", "split": split} for i, split in enumerate(("train", "valid", "test"))}
    (keys / "giantsteps_clips.json").write_text(json.dumps(entries))
    assert read("giantsteps-key", keys).clips[0].labels == ("Db minor",)
    # Without a word, a clip of an unknown split was left out.
    (keys / "giantsteps_clips.json").write_text(json.dumps(entries | {"0": {"y": "C# minor", "split": "trian"}}))
    with raises(DataError, "giantsteps-key", "'trian'"):
        read("giantsteps-key", keys)
    layouts.touched(tmp_path / "official", *(f"audio/{i}.LOFI.mp3" for i in range(20)))
    (tmp_path / "official" / "annotations" / "key").mkdir(parents=True)
    for i in range(20):
        (tmp_path / "official" / "annotations" / "key" / f"{i}.LOFI.key").write_text("Eb minor\n")
    assert len(read("giantsteps-key", tmp_path / "official").clips) == 20

    songs = layouts.touched(tmp_path / "emo", *(f"clips_45seconds/{i}.mp3" for i in range(20)))
    head = ("song_id", "mean_arousal", "std_arousal", "mean_valence", "std_valence")
    write_csv(songs / "annotations" / "static_annotations.csv", head, *((i, i / 2, 1, 5, 1) for i in range(20)))
    data = read("emomusic", songs)
    assert data.clips[3].numbers == (1.5, 5.0)
    (songs / "emomusic.json").write_text(json.dumps({"1": {"y": [1], "split": "train"}}))
    layouts.touched(songs, "wav/1.wav")
    with raises(DataError, "[1]"):
        read("emomusic", songs)
    (songs / "emomusic.json").write_text('{"1": {"y": [1, NaN], "split": "train"}}')
    with raises(DataError, "nan"):
        read("emomusic", songs)


def test_environment(tmp_path: Path) -> None:
    head = ("filename", "fold", "target", "category", "esc10", "src_file", "take")
    rows = [
        (f"{f}-10{s}-A-{s}.wav", f, s, ("dog", "rain", "cow")[s], s < 2, s, "A") for f in range(1, 6) for s in range(3)
    ]
    write_csv(tmp_path / "meta" / "esc50.csv", head, *rows)
    layouts.touched(tmp_path, *(f"audio/{row[0]}" for row in rows))
    data = read("esc50", tmp_path)
    assert len(data.folds) == 5
    assert all(one.startswith("audio/2-") for one in ids(data, data.folds[1].test))
    assert all(one.startswith("audio/3-") for one in ids(data, data.folds[1].validation))
    states(data.remark, "published", 5, 3)
    assert read("esc10", tmp_path).classes() == (("dog", "rain"),)


def test_librispeech_and_manifest(tmp_path: Path) -> None:
    libri = tmp_path / "LibriSpeech"
    for folder in ("train-clean-100", "dev-clean", "test-clean"):
        layouts.touched(libri, f"{folder}/19/198/19-198-0000.flac")
        (libri / folder / "19" / "198" / "19-198.trans.txt").write_text("19-198-0000 NORTHANGER abbey\n")
    assert read("librispeech-asr", tmp_path).clips[0].labels == ("NORTHANGER ABBEY",)

    table = tmp_path / "clips.csv"
    rows = [("a.wav", "x", "train", 0), ("b.wav", "y", "val", 0), ("c.wav", "x", "test", 1.5)]
    write_csv(table, ("path", "target", "split", "start"), *rows)
    layouts.touched(tmp_path, "a.wav", "b.wav", "c.wav")
    data = read("manifest", table)
    assert data.folds == (Fold((0,), (1,), (2,)),)
    assert data.clips[2].start == 1.5
    with raises(DataError, "'x'"):
        read("manifest-numbers", table)
    # The names of splits are those of the training's tables.
    write_csv(table, ("path", "target", "split"), ("a.wav", "x", "TR"), ("b.wav", "y", "Dev"), ("c.wav", "x", "eval"))
    assert read("manifest", table).folds == (Fold((0,), (1,), (2,)),)
    write_csv(table, ("path", "target", "split"), ("a.wav", "x", "train"), ("b.wav", "y", "vall"))
    with raises(DataError, "line 3", "'vall'"):
        read("manifest", table)


@pytest.mark.parametrize(
    ("column", "cell"),
    [("start", "nan"), ("start", "-0.5"), ("start", "inf"), ("duration", "0"), ("duration", "nan"), ("duration", "-1")],
)
def test_parts_that_are_none_name_their_line(tmp_path: Path, column: str, cell: str) -> None:
    layouts.touched(tmp_path, "a.wav", "b.wav")
    write_csv(tmp_path / "clips.csv", ("path", "target", column), ("a.wav", 1, ""), ("b.wav", 2, cell))
    with raises(DataError, "manifest", "line 3", repr(column), repr(cell)):
        read("manifest", tmp_path / "clips.csv")


def test_targets_are_finite_and_parts_unique(tmp_path: Path) -> None:
    layouts.touched(tmp_path, "a.wav", "b.wav")
    table = tmp_path / "clips.csv"
    write_csv(table, ("path", "target"), ("a.wav", 1), ("b.wav", "nan"))
    with raises(DataError, "line 3", "'nan'"):
        read("manifest-numbers", table)
    with raises(DataError, "nan"):
        Clip("a", tmp_path / "a.wav", numbers=(float("nan"),))
    head = ("path", "target", "split", "start", "duration")
    # Of one path: starts that differ in the seventh digit, and one start with two lengths.
    parts = (("train", 1234.561, ""), ("val", 1234.562, ""), ("test", 0, 1.5), ("test", 0, 2.5), ("test", "", ""))
    write_csv(table, head, *(("a.wav", "x", *part) for part in parts))
    data = read("manifest", table)
    assert len({clip.id for clip in data.clips}) == 5
    write_csv(table, head, *(("a.wav", "x", *part) for part in (*parts, ("train", "0.0", "1.50"))))
    with raises(DataError, "lines 4, 7", "a.wav@0.0+1.5"):
        read("manifest", table)
    with raises(DataError, data.clips[0].id):
        ProbeData((data.clips[0], data.clips[0]), ())


REAL = (
    ("ravdess-emotion", "ravdess-speech-16k", 360, 8, 5),
    ("ravdess-speaker", "ravdess-speech-16k", 360, 6, 1),
    ("spoken-digit", "free-spoken-digit-dataset", 3000, 10, 1),
    ("digit-speaker", "free-spoken-digit-dataset", 3000, 6, 1),
    ("esc10", "esc10", 120, 10, 2),
    ("philharmonia-instrument", "philharmonia", 1075, 8, 1),
)


@pytest.mark.parametrize(("task", "folder", "clips", "classes", "folds"), REAL)
def test_real_files(shared_data: Path, task: str, folder: str, clips: int, classes: int, folds: int) -> None:
    data = read(task, shared_data / folder)
    assert (len(data.clips), len(data.classes()[0]), len(data.folds)) == (clips, classes, folds)


def test_actors_of_ravdess_are_in_one_split(shared_data: Path) -> None:
    data = read("ravdess-emotion", shared_data / "ravdess-speech-16k")
    actors = [clip.path.parent.name for clip in data.clips]
    for fold in data.folds:
        assert not {actors[row] for row in fold.test} & {actors[row] for row in (*fold.train, *fold.validation)}
