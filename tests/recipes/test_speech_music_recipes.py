"""Recipes of speech and music from a manifest and small real networks in folders, as a user types them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from facts import raises, states
from safetensors.torch import load_file
from torch import nn
from traces import compare_trace, plainly_trained

from crossdistill import Batch, NetworkConfig, Recipe, load_student, run
from crossdistill.errors import CrossdistillError, RecipeError, RunError, SettingError
from crossdistill.methods.multi_distillation import MultiDistillation
from crossdistill.outputs import Signal
from crossdistill.recipes import find, make, names
from crossdistill.recipes.speech_music import METHODS, WARM_UP, optimizer, single
from crossdistill.run_folder.merge import merge_folders
from crossdistill.training.evaluation import evaluate_folder
from crossdistill.training.optimizer import optimizer_for, schedule_for

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("soxr")
transformers = pytest.importorskip("transformers")


def encoder(folder: Path, width: int, layers: int) -> str:
    """A small HuBERT of 250 frames a second."""
    config = transformers.HubertConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=24,
        conv_dim=[8, 8],
        conv_kernel=[16, 4],
        conv_stride=[16, 4],
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        layerdrop=0.0,
        mask_time_prob=0.0,
        **dict.fromkeys(("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout"), 0.0),
    )
    model = transformers.HubertModel(config)
    source = torch.Generator().manual_seed(width)
    with torch.no_grad():
        # Drawn here, so that the traces do not depend on how a version of transformers draws them.
        for _, weight in sorted(model.named_parameters()):
            weight.copy_(
                torch.randn(weight.shape, generator=source) * (0.2 if weight.ndim > 1 else 0.02) + (weight == 1)
            )
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "sampling_rate": 16000, "feature_size": 1}
            | {"do_normalize": False, "padding_value": 0.0, "return_attention_mask": True}
        )
    )
    return f"transformers:{folder}"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Words after `crossdistill run speech-music/METHOD`."""
    root = tmp_path_factory.mktemp("speech-music")
    source, lines = np.random.default_rng(0), ["path,domain"]
    for number in range(24):
        # One length: which frames are padding is known to networks that have `frames`.
        seconds = 0.1
        time = np.arange(round(seconds * 16_000)) / 16_000
        tone = 0.3 * np.sin(2 * np.pi * 200 * time)
        wave = source.standard_normal(len(time)) * 0.2 if number % 2 else tone
        soundfile.write(root / f"{number}.wav", wave.astype(np.float32), 16_000)
        lines.append(f"{number}.wav,{'music' if number % 2 else 'speech'}")
    (root / "clips.csv").write_text("\n".join(lines) + "\n")
    teachers = {"speech": encoder(root / "speech", 16, 3), "music": encoder(root / "music", 24, 4)}
    return [
        f"data.manifest={root / 'clips.csv'}",
        "data.workers=0",
        *(f"teachers.{name}={folder}" for name, folder in teachers.items()),
        f"student={encoder(root / 'student', 12, 2)}",
        "epochs=1",
        "batch_size=8",
    ]


@pytest.mark.parametrize("method", METHODS)
def test_a_recipe_leaves_its_trace(method: str, settings: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    recipe = make(f"speech-music/{method}", settings)
    compare_trace(f"speech-music-{method}", plainly_trained(recipe, 0.002), out)
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["kind"] == "validation"
    wanted = {"second-stage": {"music/layer4"}}.get(method, {"speech/layer3", "music/layer4"})
    assert wanted <= set(last)
    assert (out / "student").is_dir()


def test_settings_of_a_teacher_before_its_name_stay(settings: list[str]) -> None:
    words = ["teachers.speech.dtype=bfloat16", *settings]
    behind = make("speech-music/translate", words).teachers["speech"]
    assert behind == make("speech-music/translate", [*settings, words[0]]).teachers["speech"]
    assert isinstance(behind, NetworkConfig)
    assert behind.dtype == "bfloat16"


def test_students_of_one_first_state_are_merged_and_a_resumed_run_merges_them_again(
    settings: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ["merge.weights.speech=0.9", "merge.weights.music=0.1", "routing=hard", "learning_rate=0.001"]
    recipe = make("speech-music/merge", [*settings, *words])
    run(recipe, out)
    folders = sorted(path.name for path in (out / "stages").iterdir())
    assert folders == ["00-student-speech", "01-student-music", "02-merge"]
    files = [f"00-student-speech/{single('speech')}", f"01-student-music/{single('music')}", "02-merge/student"]
    speech, music, merged = (load_file(out / "stages" / f"{file}.safetensors") for file in files)
    assert any(not torch.equal(speech[name], music[name]) for name in speech)
    for name, value in merged.items():
        assert torch.allclose(value, 0.9 * speech[name] + 0.1 * music[name], atol=1e-6), name
    before = (out / "metrics.jsonl").read_text()
    for gone in (out / "stages" / "02-merge", out / "student"):
        shutil.rmtree(gone)
    (out / "results.json").unlink()
    run(recipe, out, resume=True)
    again = load_file(out / "stages" / "02-merge" / "student.safetensors")
    assert all(torch.equal(value, again[name]) for name, value in merged.items())
    assert (out / "metrics.jsonl").read_text() == before


def test_settings_of_the_student_reach_every_student_that_is_merged(settings: list[str], tmp_path: Path) -> None:
    words = [word for word in settings if not word.startswith("student=")]
    initial = settings[-3].partition("=")[2]
    options = {"width": 128, "channels": 8, "initial": initial, "initial_norm": False, "feature_grad_mult": 1.0}
    more = [f"student.options.{name}={value}" for name, value in options.items()]
    recipe = make("speech-music/merge", [*words, *more])
    assert recipe.student.options == options
    for name in ("speech", "music"):
        member = recipe.teachers[single(name)]
        assert (member.model, member.options, member.tune) == (recipe.student.model, options, "all")
        assert recipe.teachers[name] != member
    # A recipe that is read from a file takes settings in the same way; another member's own settings stay.
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    more = ["student.options.width=192", "student.tune=last-1", f"teachers.{single('music')}.options.channels=9"]
    again = make(str(tmp_path), more)
    speech, music = (again.teachers[single(name)] for name in ("speech", "music"))
    assert (speech.options, speech.tune) == ({**options, "width": 192}, "last-1")
    assert (music.options, music.tune) == ({**options, "channels": 9}, "all")


def test_clips_below_the_receptive_field_are_refused_before_training(settings: list[str], tmp_path: Path) -> None:
    manifest = Path(next(word for word in settings if word.startswith("data.manifest")).partition("=")[2])
    wave = np.random.default_rng(5).standard_normal(60).astype(np.float32) * 0.1
    soundfile.write(manifest.parent / "short.wav", wave, 16_000)
    (manifest.parent / "with_short.csv").write_text(manifest.read_text() + "short.wav,music\n")
    words = [*settings, f"data.manifest={manifest.parent / 'with_short.csv'}", "data.min_seconds=0.003"]
    with pytest.raises(RecipeError) as refused:
        run(make("speech-music/translate", words), tmp_path / "out")
    states(refused.value, "'student'", "'music'", 1, 25, 60, "data.min_seconds")


def test_a_mert_of_another_rate_teaches_in_its_own_rendering(settings: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "mert"
    encoder(folder, 24, 4)
    for name, values in (
        ("config.json", {"model_type": "mert_model", "auto_map": {"AutoModel": "modeling_MERT.MERTModel"}}),
        ("preprocessor_config.json", {"sampling_rate": 24000, "do_normalize": True}),
    ):
        (folder / name).write_text(json.dumps({**json.loads((folder / name).read_text()), **values}))
    words = [one for one in settings if not one.startswith("teachers.music")]
    words.append(f"teachers.music=transformers:{folder}")
    # Without rates, 37 frames beside 25.
    with pytest.raises(RecipeError, match="frame_rates"):
        run(make("speech-music/translate", words), tmp_path / "refused")
    rates = "frame_rates={student: 250, music: 375, speech: 250}"
    run(make("speech-music/translate", [*words, rates]), tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert any("music/layer4" in line for line in lines)


def test_the_student_of_a_run_opens_with_transformers(settings: list[str], tmp_path: Path) -> None:
    run(make("speech-music/translate", [*settings, "learning_rate=0.001"]), tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    written = {name for line in lines for name in line}
    assert {"raw/multi-distillation/speech", "raw/multi-distillation/music", "speech/layer3", "music/layer4"} <= written
    folder = tmp_path / "out" / "student"
    model, report = transformers.AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    assert "AutoModel.from_pretrained" in (folder / "README.md").read_text()
    waves, taps = torch.randn(2, 1600), ("layer1", "layer2")
    network = load_student(folder).network
    with torch.no_grad():
        found = network(Batch({network.reads[0]: waves}, torch.arange(2)), set(map(Signal.feature, taps))).features
        wanted = model(waves, output_hidden_states=True)
    assert torch.equal(found["layer1"], wanted.hidden_states[1])
    assert torch.equal(found["layer2"], wanted.last_hidden_state)
    # Without labels: what it can do, and what to do instead of what it cannot.
    manifest = next(Path(word.partition("=")[2]) for word in settings if word.startswith("data.manifest="))
    student, files = load_student(folder), [manifest.parent / "0.wav", tmp_path / "longer.wav"]
    soundfile.write(files[1], np.tile(soundfile.read(files[0])[0], 2).astype(np.float32), 16_000)
    assert 'student.embeddings(["a file"])' in (folder / "README.md").read_text()
    both = student.embeddings(files)
    assert both.shape == (2, 12)
    assert all(torch.equal(student.embeddings(file)[0], both[row]) for row, file in enumerate(files))
    for call, facts in (
        (student.predict, ["no classes", "embeddings(FILES)", "crossdistill probe"]),
        (lambda files: student.embeddings(files[:0]), ["no example"]),
    ):
        with raises(SettingError, *facts):
            call(files)
    for metric in (None, "accuracy"):
        with raises(SettingError, "none", "results.json", "crossdistill probe"):
            evaluate_folder(tmp_path / "out", Recipe.from_yaml(tmp_path / "out" / "recipe.yaml"), "test", metric)


def test_a_student_is_a_teacher_of_the_next_run(settings: list[str], tmp_path: Path) -> None:
    run(make("speech-music/translate", [*settings, "steps=1"]), tmp_path / "first")
    second = [f"teachers.speech=run:{tmp_path / 'first'}", "layers.speech=[2]", "steps=1"]
    others = [one for one in settings if not one.startswith("teachers.speech")]
    run(make("speech-music/translate", [*others, *second]), tmp_path / "second")
    lines = (tmp_path / "second" / "metrics.jsonl").read_text()
    assert "speech/layer2" in lines
    assert "music/layer4" in lines
    folders = [tmp_path / name for name in ("first", "second")]
    merged = merge_folders(folders, [0.5, 0.5], tmp_path / "merged")
    transformers.AutoModel.from_pretrained(merged)
    assert load_student(merged).network.taps == load_student(folders[0]).network.taps
    # Of two students with one config.json, each belongs to its run alone.
    shutil.rmtree(folders[0] / "student")
    shutil.copytree(folders[1] / "student", folders[0] / "student")
    with raises(RunError, "crossdistill.json"):
        load_student(folders[0])


def test_the_published_schedule_reaches_its_rate_and_ends_at_zero() -> None:
    # A tenth of the published 200,000 steps, of which 14,000 warm up.
    weight = nn.Parameter(torch.zeros(1))
    config = optimizer(1)
    assert config.arguments == {"betas": [0.9, 0.98], "eps": 1e-6}
    made = optimizer_for(config, [{"params": [weight]}])
    schedule = schedule_for(config, made, 20_000, 1)
    rates = []
    for _ in range(20_000):
        rates.append(schedule.get_last_lr()[0])
        made._opt_called = True
        schedule.step()
    assert pytest.approx(14_000) == WARM_UP * 200_000
    assert rates[1_400] == pytest.approx(2e-4, rel=1e-3)
    assert max(rates) <= 2e-4 * (1 + 1e-9)
    assert schedule.get_last_lr()[0] == pytest.approx(0.0, abs=1e-9)


def test_recipes_are_found_by_name_and_faults_name_what_to_do(settings: list[str], tmp_path: Path) -> None:
    assert {f"speech-music/{method}" for method in METHODS} <= set(names())
    with pytest.raises(SettingError, match="translate-soft"):
        find("speech-music/translate-sotf")
    with pytest.raises(SettingError, match=r"teachers\.speech"):
        make("speech-music/translate", [])
    with pytest.raises(CrossdistillError, match="lenght"):
        make("speech-music/translate", [*settings, "data.lenght=3"])
    lonely = [one for one in settings if not one.startswith("teachers.music")]
    with pytest.raises(RecipeError, match="'music'"):
        run(make("speech-music/translate", lonely), tmp_path / "out")
    other = make("speech-music/translate", [*lonely, "domains.speech=[speech, music]"])
    assert isinstance(other.stages[0].method, MultiDistillation)
    assert other.stages[0].method.domains == {"speech": ("speech", "music")}


def test_settings_reach_the_stage(settings: list[str]) -> None:
    words = ["weighting=gradnorm", "translator=hybrid", "layers.speech=[1, 3]", "steps=2", "micro_batches=2"]
    recipe: Recipe = make("speech-music/translate", [*settings, *words])
    stage = recipe.stages[0]
    method = stage.method
    assert isinstance(method, MultiDistillation)
    assert (stage.weighting.name, stage.steps, stage.micro_batches, stage.clip_norm) == ("gradnorm", 2, 2, 5.0)
    assert (method.layers, method.convolution) == ({"speech": (1, 3)}, ("music",))
    words = ["drop=0.25", "routing=all", "normalise=batch", "standardise=z-score"]
    method = make("speech-music/translate", [*settings, *words]).stages[0].method
    assert isinstance(method, MultiDistillation)
    assert (method.drop, method.routing, method.normalise, method.standardise) == (0.25, "all", "batch", "z-score")
    soft = make("speech-music/translate-soft", [*settings, "soft_by=confidence", "sharpness=2"]).stages[0].method
    assert isinstance(soft, MultiDistillation)
    assert (soft.routing, soft.soft_by, soft.sharpness) == ("soft", "confidence", 2.0)
    merge = make("speech-music/merge", [*settings, "merge.method=ties", "merge.keep=0.5"]).stages[-1].merge
    assert merge is not None
    assert (merge.method, merge.keep) == ("ties", 0.5)
    assert merge.weights == {single("speech"): 0.5, single("music"): 0.5}


def test_a_stage_of_some_teachers_keeps_their_settings(settings: list[str]) -> None:
    plain = [word for word in settings if not word.startswith("teachers.")]
    folder = next(word for word in settings if word.startswith("teachers.speech")).partition("=")[2]
    names = ("speech", "sound", "whisper")
    words = [*plain, *(f"teachers.{name}={folder}" for name in names), "translator=hybrid"]
    whole = make("speech-music/translate", words).stages[0].method
    assert isinstance(whole, MultiDistillation)
    for recipe in ("second-stage", "merge"):
        stages = make(f"speech-music/{recipe}", words).stages
        for stage in stages[: 2 if recipe == "second-stage" else 3]:
            assert isinstance(stage.method, MultiDistillation)
            assert stage.teachers is not None
            # A teacher has the head that it has beside all others.
            wanted = {name for name in stage.teachers if name in names[1:]}
            assert set(stage.method.convolution or ()) == wanted == set(whole.convolution or ()) & set(stage.teachers)
    # Another kind of head reads no names.
    for stage in make("speech-music/second-stage", words[:-1]).stages:
        assert isinstance(stage.method, MultiDistillation)
        assert stage.method.convolution is None
    with pytest.raises(SettingError, match="soft"):
        make("speech-music/second-stage", [*settings, "routing=soft"])


@pytest.mark.parametrize(
    ("recipe", "word", "facts"),
    [
        ("translate", "drop=1", ["drop", 1]),
        ("translate", "routing=soff", ["routing", "soft"]),
        ("translate", "normalise=rows", ["normalise", "teacher", "batch"]),
        ("translate", "standardise=zscore", ["standardise", "z-score"]),
        ("translate", "soft_by=confidence", ["soft_by", "routing=soft"]),
        ("translate", "merge.weights.speech=1", ["speech-music/merge"]),
        ("translate-soft", "normalise=teacher", ["normalise", "routing=soft"]),
        ("translate-soft", "routing=hard", ["speech-music/translate"]),
        ("translate-soft", "soft_by=entropy", ["soft_by", "confidence"]),
        ("merge", "routing=soft", ["routing=all", "routing=hard"]),
        ("merge", "translator=shared", ["shared", "lconv"]),
        ("merge", "merge.weights.spech=1", ["spech", "speech"]),
        ("merge", "merge.weights.speech=1", ["music", 0]),
        ("merge", "merge.weights={speech: 0.9, music: 0.2}", ["1.1", "task"]),
        ("merge", "merge.method=slerp", ["merge.method", "ties"]),
        ("merge", "merge.kept=0.5", ["kept", "keep"]),
        ("merge", "merge.keep=0.5", ["keep", "ties"]),
        ("merge", "merge.scale=0.5", ["scale", "task"]),
        ("merge", "merge={method: task, permute: true}", ["permute", "base"]),
    ],
)
def test_wrong_settings_are_refused_before_training(
    recipe: str, word: str, facts: list[object], settings: list[str], tmp_path: Path
) -> None:
    with pytest.raises((RecipeError, SettingError)) as refused:
        run(make(f"speech-music/{recipe}", [*settings, word]), tmp_path / "out")
    states(refused.value, *facts)
    assert not (tmp_path / "out" / "stages").exists()
