"""Recognition of speech in the layout of LibriSpeech (Panayotov et al., ICASSP 2015)."""

from pathlib import Path

from crossdistill.errors import DataError
from crossdistill.probes.clips import ProbeData, clip_of, divided, layout_error, sound_named

FOLDERS = {"train": "train-*", "validation": "dev-clean", "test": "test-clean"}


def read(root: Path) -> ProbeData:
    """Texts of `SPEAKER-CHAPTER.trans.txt`: trained on every `train-*` that is there, tested on `test-clean`.

    Raises:
        DataError: a folder or a listed recording is missing.
    """
    root = root / "LibriSpeech" if (root / "LibriSpeech").is_dir() else root
    clips, splits = [], []
    for split, pattern in FOLDERS.items():
        files = sorted(root.glob(f"{pattern}/*/*/*.trans.txt"))
        if not files:
            raise layout_error(root, f"{pattern}/SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt")
        for file in files:
            for line in file.read_text(encoding="utf-8").splitlines():
                name, _, text = line.strip().partition(" ")
                path = sound_named(file.parent / name)
                if path is None:
                    raise DataError(f"{file}: lists {name}, and there is no {name}.flac beside it")
                clips.append(clip_of(path, root, text.strip().upper()))
                splits.append(split)
    trained = ", ".join(sorted(folder.name for folder in root.glob(FOLDERS["train"])))
    return divided(clips, splits, root, f"trained on {trained}; SUPERB trains on train-clean-100", ("text",))
