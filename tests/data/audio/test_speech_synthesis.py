import random
import sys

import numpy as np
import pytest
from facts import raises

from crossdistill.data.audio.speech_synthesis import ACCENTS, Speaker, Utterance, list_variants, synthesise
from crossdistill.errors import DataError

WORDS = ("zero", "five", "eight")


def speakers(count: int) -> list[Speaker]:
    rng = random.Random(0)
    variants = list_variants()
    return [
        Speaker(
            rng.choice(ACCENTS), variant, tuple(Utterance(w, rng.randint(120, 220), rng.randint(15, 85)) for w in WORDS)
        )
        for variant in rng.sample(variants, count)
    ]


def test_many_voices_that_differ() -> None:
    variants = list_variants()
    assert len(variants) >= 80
    clips, rate = synthesise(
        [Speaker("en", v, (Utterance("nine", 170, 50),)) for v in variants[:30]], lambda done: None
    )
    assert rate == 22050
    assert len({clip.tobytes() for clip in clips}) == 30
    assert all(0.1 < len(clip) / rate < 3 and np.abs(clip).max() > 1000 for clip in clips)


def test_a_speaker_sounds_the_same_whoever_spoke_before(monkeypatch: pytest.MonkeyPatch) -> None:
    own = speakers(24)
    done: list[int] = []
    clips, _ = synthesise(own, done.append)
    assert sorted(done) == list(range(1, 73))
    by_speaker = {speaker: clips[3 * i : 3 * i + 3] for i, speaker in enumerate(own)}
    random.Random(1).shuffle(own)
    # Memory that is read before it is written would show: glibc fills what it hands out.
    monkeypatch.setenv("MALLOC_PERTURB_", "165")
    again, _ = synthesise(own, lambda n: None, most_workers=1)
    for i, speaker in enumerate(own):
        for first, second in zip(by_speaker[speaker], again[3 * i : 3 * i + 3], strict=True):
            assert np.array_equal(first, second), speaker


def test_the_library_stays_in_the_child_process() -> None:
    synthesise(speakers(1), lambda done: None)
    assert "espeakng_loader" not in sys.modules
    if sys.platform == "linux":
        with open("/proc/self/maps") as maps:
            assert "espeak" not in maps.read()


def test_a_child_that_fails_or_dies_at_once_is_reported() -> None:
    with raises(DataError, "ended with 1", "'xx+none'"):
        synthesise([Speaker("xx", "none", (Utterance("one", 170, 50),))], lambda done: None)
    many = [Speaker("en", "m1", tuple(Utterance("one", 170, 50) for _ in range(5000)))]
    with raises(DataError, "crossdistill.data.nothing"):
        synthesise(many, lambda done: None, worker="crossdistill.data.nothing")


def test_an_interrupted_listener_leaves_no_process() -> None:
    def stop(done: int) -> None:
        raise KeyError("enough")

    with raises(KeyError, "enough"):
        synthesise(speakers(2), stop)
