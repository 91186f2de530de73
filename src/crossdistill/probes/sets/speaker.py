"""Speaker identification: the identification split of VoxCeleb1 (Nagrani et al., 2017), and RAVDESS's actors."""

from pathlib import Path

from crossdistill.probes.clips import Clip, ProbeData, clip_of, divided, layout_error, named_sounds
from crossdistill.probes.sets.emotion import NAME

LISTS = ("iden_split.txt", "veri_test_class.txt")
SPLITS = {"1": "train", "2": "validation", "3": "test"}
FOLDERS = ("dev/wav", "test/wav", "wav", "dev", "test", "")


def voxceleb(root: Path) -> ProbeData:
    """1,251 speakers by the list `iden_split.txt`: lines such as `1 id10001/1zcIwhmdeo4/00001.wav`.

    Raises:
        DataError: there is no list, or a listed file is missing.
    """
    file = next((root / name for name in LISTS if (root / name).is_file()), None)
    if file is None:
        raise layout_error(root, "iden_split.txt and wav/SPEAKER/VIDEO/NUMBER.wav (or dev/wav and test/wav)")
    clips: list[Clip] = []
    splits: list[str] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        number, _, name = line.strip().partition(" ")
        if number not in SPLITS:
            continue
        path = next((root / folder / name for folder in FOLDERS if (root / folder / name).is_file()), None)
        if path is None:
            raise layout_error(root, f"{name}, which {file.name} lists, in wav/, dev/wav/ or test/wav/")
        clips.append(clip_of(path, root, name.partition("/")[0]))
        splits.append(SPLITS[number])
    return divided(clips, splits, root)


def ravdess(root: Path) -> ProbeData:
    """The actors of RAVDESS, by emotions: those of the test and of the validation are not in the training.

    Raises:
        DataError: no file is named as in RAVDESS.
    """
    named = named_sounds(root, NAME)
    if not named:
        raise layout_error(root, "Actor_01/03-01-EE-II-SS-RR-AA.wav (emotion, intensity, sentence, repetition, actor)")
    clips = [clip_of(path, root, f"actor {name['actor']}") for path, name in named]
    held = {"07": "test", "08": "test", "05": "validation"}
    splits = [held.get(name["emotion"], "train") for _, name in named]
    remark = "RAVDESS has no split of speakers: tested on the emotions disgust and surprised, validated on angry"
    return divided(clips, splits, root, remark)
