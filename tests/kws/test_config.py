"""Settings: what is refused and in which words, presets, words, round trips."""

import dataclasses
import json
import subprocess
import sys
from typing import Any

import pytest

from kws import config
from kws.config import (
    PRESETS,
    SPEECH_COMMANDS_WORDS,
    AugmentConfig,
    FeatureConfig,
    ModelConfig,
    PipelineConfig,
    SynthesizeConfig,
    TrainConfig,
    field_docs,
    from_dict,
    parse_words,
    train_config,
)

CONFIGS = (FeatureConfig, ModelConfig, AugmentConfig, TrainConfig, PipelineConfig, SynthesizeConfig)


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
        (PipelineConfig, {"preset": "best"}, "preset must be one of default, streams, baseline, got 'best'"),
        (PipelineConfig, {"split": "word"}, "split must be speaker or random, got 'word'"),
        (PipelineConfig, {"min_accuracy": 80.0}, "min_accuracy must be between 0 and 1, got 80.0"),
        (PipelineConfig, {"num_nodes": 0}, "num_nodes must be positive, got 0"),
        (SynthesizeConfig, {"clips_per_word": 2}, "clips_per_word must be at least 3, a voice for every split, got 2"),
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
    assert undocumented == ([] if cls is not TrainConfig else ["augment"])


def test_baseline_is_what_the_project_started_from() -> None:
    baseline = PRESETS["baseline"]
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
    assert train.augment == AugmentConfig()


def test_default_takes_speakers_apart_and_stores_half_precision() -> None:
    default = PRESETS["default"]
    assert default.split == "speaker"
    assert (default.features.num_frames, default.features.dtype) == (81, "float16")


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_settings_survive_a_round_trip_through_json(preset: str) -> None:
    chosen = PRESETS[preset]
    for value in (chosen.features, chosen.model, chosen.train):
        read = json.loads(json.dumps(dataclasses.asdict(value)))
        assert from_dict(type(value), read) == value


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


def test_overrides_of_0_leave_the_preset_alone() -> None:
    assert train_config(preset="default", epochs=0, batch_size=0, learning_rate=0.0, debug=False) == (
        PRESETS["default"].train
    )


def test_epochs_that_are_given_are_the_epochs_that_are_trained() -> None:
    train = train_config(preset="default", epochs=7)
    assert (train.epochs, train.min_clips) == (7, 0)


def test_from_a_model_fewer_clips_suffice_unless_epochs_are_given() -> None:
    train = train_config(preset="default", init="champion")
    assert 0 < train.min_clips < PRESETS["default"].train.min_clips
    assert train_config(preset="default", init="champion", epochs=7).min_clips == 0
    assert train_config(preset="baseline", init="champion").min_clips == 0


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_debug_is_ten_epochs_of_batches_of_64_unless_told_otherwise(preset: str) -> None:
    train = train_config(preset=preset, debug=True)
    assert (train.epochs, train.batch_size, train.min_clips, train.debug) == (10, 64, 0, True)
    assert train_config(preset=preset, debug=True, epochs=2).epochs == 2


def test_unknown_preset_is_refused() -> None:
    with pytest.raises(ValueError, match="preset must be one of default, streams, baseline, got 'best'"):
        train_config(preset="best")


def test_words_are_all_auto_or_a_list_in_its_order() -> None:
    assert parse_words("all") == SPEECH_COMMANDS_WORDS
    assert len(set(SPEECH_COMMANDS_WORDS)) == 35
    assert parse_words("auto") is None
    assert parse_words("yes, no,stop") == ("yes", "no", "stop")


@pytest.mark.parametrize("words", ["", "yes", "yes,yes", "yes,", "yes,../no", "yes,_noise_", "yes,.hidden"])
def test_words_that_name_no_two_folders_are_refused(words: str) -> None:
    with pytest.raises(ValueError, match=r"^(words|a word) must .*, got "):
        parse_words(words)


def test_published_archive_is_the_one_torchaudio_knows() -> None:
    from torchaudio.datasets import speechcommands

    digests = {url.rpartition("/")[2]: digest for url, digest in speechcommands._CHECKSUMS.items()}
    assert digests[config.SPEECH_COMMANDS_URL.rpartition("/")[2]] == config.SPEECH_COMMANDS_SHA256


def test_importing_settings_loads_neither_torch_nor_kfp() -> None:
    modules = (
        "kws.config, kws.cli, kws.preprocess.splits, kws.preprocess.audio, kws.preprocess.step, kws.train.runs, "
        "kws.train.step, kws.launch.choose"
    )
    code = f"import sys, {modules}; print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "kfp", "kubernetes", "matplotlib", "soundfile"} & set(shown.stdout.split())
    assert shown.stderr == ""
