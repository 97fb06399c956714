"""Settings: what is refused and in which words, presets, words, round trips."""

import argparse
import dataclasses
import json
import subprocess
import sys
from typing import Any

import pytest

from kws import config
from kws.config import (
    SPEECH_COMMANDS_URL,
    SPEECH_COMMANDS_WORDS,
    PipelineConfig,
    SynthesizeConfig,
    join_words,
    parse_words,
    split_sources,
)
from kws.recipe import RECIPES, AugmentConfig, FeatureConfig, ModelConfig, Recipe, TrainConfig, make_recipe
from kws.settings import add_flag, field_docs, from_dict

CONFIGS = (FeatureConfig, ModelConfig, AugmentConfig, TrainConfig, Recipe, PipelineConfig, SynthesizeConfig)


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (FeatureConfig, {"hop_length": 0}, "hop_length must be positive, got 0"),
        (FeatureConfig, {"win_length": 600}, r"win_length must be at most n_fft \(512\), got 600"),
        (FeatureConfig, {"n_fft": 513}, "n_fft must be even, got 513"),
        (FeatureConfig, {"num_samples": 256}, r"num_samples must exceed half of n_fft \(512\), got 256"),
        (
            FeatureConfig,
            {"f_max": 9000.0},
            r"f_min, f_max must be between 0 and 8000 Hz, in order, got \(20.0, 9000.0\)",
        ),
        (FeatureConfig, {"fit": "end"}, "fit must be center or start, got 'end'"),
        (FeatureConfig, {"mel_scale": "bark"}, "mel_scale must be slaney or htk, got 'bark'"),
        (ModelConfig, {"width": 130}, r"width must be a multiple of num_heads \(4\), got 130"),
        (ModelConfig, {"stem": "none", "frames_per_token": 2}, "frames_per_token must be 1 if stem is none, got 2"),
        (ModelConfig, {"dropout": 1.0}, "dropout must be at least 0 and less than 1, got 1.0"),
        (AugmentConfig, {"time_shift": -1}, "time_shift must be at least 0, got -1"),
        (AugmentConfig, {"noise_snr_db": (3.0, 1.0)}, r"noise_snr_db must be in order, got \(3.0, 1.0\)"),
        (TrainConfig, {"epochs": 0}, "epochs must be positive, got 0"),
        (TrainConfig, {"optimizer": "sgd"}, "optimizer must be muon, adamw or adam, got 'sgd'"),
        (TrainConfig, {"precision": "fp8"}, "precision must be auto, bf16 or float32, got 'fp8'"),
        (PipelineConfig, {"source": ""}, "source must be a URL, an archive or a folder, got ''"),
        (PipelineConfig, {"sha256": "ABC"}, "sha256 must be 64 lower-case hexadecimal digits, got 'ABC'"),
        (PipelineConfig, {"preset": "best"}, "preset must be one of default, small, streams, baseline, got 'best'"),
        (PipelineConfig, {"split": "word"}, "split must be speaker or random, got 'word'"),
        (PipelineConfig, {"min_accuracy": 80.0}, "min_accuracy must be between 0 and 1, got 80.0"),
        (PipelineConfig, {"num_nodes": 0}, "num_nodes must be positive, got 0"),
        (SynthesizeConfig, {"clips_per_word": 2}, "clips_per_word must be at least 3, got 2"),
    ],
)
def test_value_out_of_range_is_refused_with_name_rule_and_value(
    cls: type[Any], values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        cls(**values)


@pytest.mark.parametrize("cls", CONFIGS)
def test_settings_are_frozen_keyword_only_and_every_field_is_explained(cls: type[Any]) -> None:
    first = dataclasses.fields(cls)[0]
    with pytest.raises(TypeError):
        cls(first.default)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(cls(), first.name, first.default)
    names = [field.name for field in dataclasses.fields(cls)]
    undocumented = [name for name in names if not field_docs(cls).get(name)]
    assert undocumented == []


def test_baseline_is_what_the_project_started_from() -> None:
    baseline = RECIPES["baseline"]
    assert baseline.split == "random"
    assert baseline.features == FeatureConfig(
        fit="start",
        n_fft=400,
        win_length=400,
        hop_length=200,
        num_mels=128,
        f_min=0.0,
        f_max=8000.0,
        mel_scale="htk",
        log=False,
        normalize=False,
    )
    assert (baseline.features.num_frames, baseline.features.dtype) == (81, "float32")
    assert baseline.model == ModelConfig(
        num_layers=4,
        num_heads=4,
        width=128,
        feedforward=2048,
        frames_per_token=1,
        stem="none",
        positions=False,
        norm_first=False,
        activation="relu",
        dropout=0.1,
        drop_path=0.0,
    )
    train = baseline.train
    assert (train.epochs, train.batch_size, train.learning_rate, train.seed) == (30, 256, 1e-3, 41)
    assert (train.optimizer, train.weight_decay, train.schedule, train.scale_with_processes) == (
        "adam",
        0,
        "step",
        True,
    )
    assert (train.label_smoothing, train.clip_norm, train.ema_decay, train.precision) == (0, 0, 0, "float32")
    assert not baseline.augment.is_on


def test_default_takes_speakers_apart_and_stores_half_precision() -> None:
    default = RECIPES["default"]
    assert default.split == "speaker"
    assert (default.features.num_frames, default.features.dtype) == (81, "float16")


@pytest.mark.parametrize("preset", sorted(RECIPES))
def test_recipe_survives_a_round_trip_through_json(preset: str) -> None:
    recipe = RECIPES[preset]
    assert from_dict(Recipe, json.loads(json.dumps(dataclasses.asdict(recipe)))) == recipe
    assert recipe.name == preset


def test_defaults_of_the_classes_are_the_default_recipe() -> None:
    assert make_recipe() == RECIPES["default"] == Recipe()


def test_unknown_field_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ModelConfig must have fields among num_layers, .*, got 'depth'"):
        from_dict(ModelConfig, {"depth": 3})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"width": "wide"}, "width must be of the type int, got 'wide'"),
        ({"width": 128.0}, "width must be of the type int, got 128.0"),
        ({"width": True, "num_heads": 1}, "width must be of the type int, got True"),
        ({"dropout": float("nan")}, "dropout must be at least 0 and less than 1, got nan"),
        ({"positions": 1}, "positions must be of the type bool, got 1"),
        ([1], r"ModelConfig must be a table of settings, got \[1\]"),
    ],
)
def test_value_of_another_type_is_refused(values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_dict(ModelConfig, values)


def test_what_was_not_given_is_as_the_recipe_says_and_0_can_be_given() -> None:
    assert make_recipe("baseline", split="", epochs=None, learning_rate="", debug=False) == RECIPES["baseline"]
    with pytest.raises(ValueError, match="epochs must be positive, got 0"):
        make_recipe(epochs=0)
    assert make_recipe(set=["train.warmup=0"]).train.warmup == 0


def test_texts_of_a_pipeline_mean_what_values_mean() -> None:
    texts = make_recipe(epochs="7", learning_rate="1e-3", seed="5", split="random")
    assert texts == make_recipe(epochs=7, learning_rate=1e-3, seed=5, split="random")
    assert (
        PipelineConfig(epochs=7, preset="streams", set="augment.gain_db=-3,3").arguments().items()
        >= {"epochs": "7", "batch_size": "", "set": "augment.gain_db=-3,3", "num_nodes": 1}.items()
    )


def test_sources_that_are_given_replace_the_default_and_are_joined_by_lines() -> None:
    parser = argparse.ArgumentParser()
    for name in ("source", "set"):
        add_flag(parser, PipelineConfig, name)
    assert parser.parse_args([]).source == SPEECH_COMMANDS_URL
    given = ["--source", "my words", "--source", "s3://b/k", "--set", "a=1 b=2", "--set", "c=3"]
    for _ in range(2):  # a parser keeps nothing
        parsed = parser.parse_args(given)
        assert (parsed.source, parsed.set) == ("my words\ns3://b/k", "a=1 b=2 c=3")
    assert split_sources(parsed.source) == ["my words", "s3://b/k"]


def test_any_setting_of_the_recipe_can_be_set() -> None:
    assignments = ["train.weight_decay=0.3", "features.num_mels=64", "model.positions=false", "split=random"]
    recipe = make_recipe("streams", [*assignments, "augment.noise_snr_db=5,20"], epochs=3)
    assert (recipe.train.weight_decay, recipe.train.epochs, recipe.train.min_clips) == (0.3, 3, 0)
    assert (recipe.features.num_mels, recipe.model.positions, recipe.split) == (64, False, "random")
    assert recipe.augment == dataclasses.replace(RECIPES["streams"].augment, noise_snr_db=(5.0, 20.0))


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("train.weight_decay", "set must be FIELD=VALUE, such as train.weight_decay=0.1, got 'train.weight_decay'"),
        ("train.wieght_decay=1", r"set must name a .* got 'train.wieght_decay' \(did you mean train.weight_decay\?\)"),
        ("weight_decay=1", r"got 'weight_decay' \(did you mean train.weight_decay\?\)"),
        ("train.epochs=many", "train.epochs must be of the type int, got 'many'"),
        ("train.debug=1", "train.debug must be of the type bool, got '1'"),
        ("augment.noise_snr_db=5", r"augment.noise_snr_db must be of the type .*tuple.*, got '5'"),
        ("train.warmup=1", "warmup must be at least 0 and less than 1, got 1.0"),
        ("model.stem=wide", "stem must be conv or none, got 'wide'"),
    ],
)
def test_setting_that_does_not_exist_or_cannot_be_is_refused(assignment: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_recipe(set=[assignment])
    with pytest.raises(ValueError, match=message):
        PipelineConfig(set=assignment)


def test_epochs_that_are_given_are_the_epochs_that_are_trained() -> None:
    train = make_recipe(epochs=7).train
    assert (train.epochs, train.min_clips) == (7, 0)


def test_from_a_model_fewer_clips_suffice_unless_epochs_are_given() -> None:
    train = make_recipe(init="champion").train
    assert 0 < train.min_clips < RECIPES["default"].train.min_clips
    assert make_recipe(init="champion", epochs=7).train.min_clips == 0
    assert make_recipe("baseline", init="champion").train.min_clips == 0


@pytest.mark.parametrize("preset", sorted(RECIPES))
def test_debug_is_ten_epochs_of_batches_of_64_unless_told_otherwise(preset: str) -> None:
    train = make_recipe(preset, debug=True).train
    assert (train.epochs, train.batch_size, train.min_clips, train.debug) == (10, 64, 0, True)
    assert make_recipe(preset, debug=True, epochs=2).train.epochs == 2


def test_unknown_preset_is_refused() -> None:
    with pytest.raises(ValueError, match="preset must be one of default, small, streams, baseline, got 'best'"):
        make_recipe("best")


def test_words_are_all_auto_or_a_list_in_its_order() -> None:
    assert parse_words("all") == SPEECH_COMMANDS_WORDS
    assert len(set(SPEECH_COMMANDS_WORDS)) == 35
    assert parse_words("auto") is None
    assert parse_words("yes, no,stop") == parse_words("yes\nno\nstop\n") == ("yes", "no", "stop")


@pytest.mark.parametrize(
    "words",
    [
        ("ja/nein", "con"),
        (".net", "Dr. No", "../no"),
        ("a, b", 'say "x"'),
        ("نعم", "می\u200cخواهم", "👨\u200d👩"),
        ("何", "हाँ"),
    ],
)
def test_words_are_any_text_and_read_as_they_were_written(words: tuple[str, ...]) -> None:
    assert parse_words(join_words(words)) == words


def test_words_that_look_the_same_are_the_same() -> None:
    assert parse_words("cafe\u0301,ice\u00a0cream,\u200fنعم\u200e") == ("café", "ice cream", "نعم")


@pytest.mark.parametrize("words", ["", "yes", "yes,yes", "yes,", "yes,_noise_", "yes,a\u202eb", "yes,a\tb"])
def test_words_that_cannot_be_two_are_refused(words: str) -> None:
    with pytest.raises(ValueError, match=r"^(words|a word) must .*, got "):
        parse_words(words)


def test_published_archive_is_the_one_torchaudio_knows() -> None:
    from torchaudio.datasets import speechcommands

    digests = {url.rpartition("/")[2]: digest for url, digest in speechcommands._CHECKSUMS.items()}
    assert digests[config.SPEECH_COMMANDS_URL.rpartition("/")[2]] == config.SPEECH_COMMANDS_SHA256


def test_importing_settings_loads_neither_torch_nor_kfp() -> None:
    modules = (
        "kws.config, kws.recipe, kws.cli, kws.data.splits, kws.preprocess.audio, "
        "kws.train.runs, kws.train.step, kws.launch.choose"
    )
    code = f"import sys, {modules}; print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "kfp", "kubernetes", "matplotlib", "soundfile"} & set(shown.stdout.split())
    assert shown.stderr == ""
