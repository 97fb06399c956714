"""Training: on real clips and real processes, killed and started again."""

import argparse
import dataclasses
import json
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from together import run_together

from kws import files, steps
from kws.config import SILENCE, UNKNOWN
from kws.download.synthesize import synthesize
from kws.launch.torchrun import TorchrunLauncher
from kws.model import bundle, versions
from kws.model.calibration import fit_temperature
from kws.model.network import AudioTransformer
from kws.preprocess.step import preprocess
from kws.preprocess.tensors import Tensors
from kws.recipe import NO_AUGMENTATION, RECIPES, AugmentConfig, ModelConfig, Recipe, TrainConfig, make_recipe
from kws.train import __main__ as train_process
from kws.train import checkpoint, process, runs, start
from kws.train.distributed import World
from kws.train.step import default_processes, train
from kws.train.trainer import Trainer, used_together

ALONE = World(rank=0, size=1, device=torch.device("cpu"))


SMALL = ModelConfig(num_layers=1, num_heads=2, width=32, feedforward=64, frames_per_token=4)


@pytest.fixture(scope="session")
def tensors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tensors of 90 synthetic clips of 3 words."""
    folder = tmp_path_factory.mktemp("tensors")
    synthesize(folder / "corpus", words=["yes", "no", "stop"], clips_per_word=30)
    return preprocess(folder / "corpus", folder, words="auto", num_threads=1)


@pytest.fixture(scope="session")
def trained(tensors: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run of `settings()`, with its checkpoints and the id "a". Read only."""
    return process.train(tensors, settings(), runs_folder=tmp_path_factory.mktemp("runs"), run_id="a")


def settings(*, augment: AugmentConfig = RECIPES["default"].augment, **changes: Any) -> Recipe:
    """Returns the default recipe with a small model, few clips, and changes of the training settings."""
    quick = {"epochs": 2, "batch_size": 16, "min_clips": 0, "precision": "float32", "ema_decay": 0.9}
    return Recipe(model=SMALL, augment=augment, train=TrainConfig(**(quick | changes)))


def weights(run: Path) -> dict[str, torch.Tensor]:
    content: dict[str, torch.Tensor] = torch.load(run / runs.BEST, weights_only=True)["weights"]
    return content


def assert_same_model(run: Path, other: Path) -> None:
    one, two = weights(run), weights(other)
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert torch.equal(value, two[name]), name


def command(tensors: Path, place: str, folder: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "kws.train", "--tensors", str(tensors), place, str(folder), *more]


def test_one_batch_is_overfitted_to_zero_loss(tensors: Path, tmp_path: Path) -> None:
    recipe = settings(augment=NO_AUGMENTATION, label_smoothing=0.0, ema_decay=0.0, learning_rate=5e-3)
    one = Trainer(Tensors(tensors), recipe, ALONE)
    one.epochs = 1000  # keeps the learning rate near its peak
    batch = torch.arange(0, 60, 8)
    losses = []
    for step in range(150):
        one.position.clips_done = min(step, 40)  # past the warm-up
        one.position.epoch = 60
        one.position.step = step
        losses.append(float(one.step(batch)[0]))
    assert losses[0] > 0.5
    assert losses[-1] < 1e-3


def test_a_model_of_tokens_needs_classes_of_unknown_words_and_silence(tensors: Path) -> None:
    opened = Tensors(tensors)
    recipe = dataclasses.replace(settings(), model=dataclasses.replace(RECIPES["streams"].model, num_layers=1))
    with pytest.raises(ValueError, match=r"model\.scores must be clip without clips of unknown words and silence"):
        Trainer(opened, recipe, ALONE)
    opened.words[:] = ["no", UNKNOWN, SILENCE]
    assert len(Trainer(opened, recipe, ALONE).step(torch.arange(16))) == 2


def test_the_most_frequent_unknown_words_have_classes_of_their_own_in_training_alone(tensors: Path) -> None:
    opened = Tensors(tensors)
    opened.words[:] = ["no", UNKNOWN, SILENCE]
    model = dataclasses.replace(RECIPES["streams"].model, num_layers=1, other_words=1)
    one = Trainer(opened, dataclasses.replace(settings(), model=model), ALONE)
    words = [clip.word for clip in one.train_split.clips]
    assert set(zip(words, one.train_split.labels.tolist(), strict=True)) == {("no", 0), ("yes", 1), ("stop", 3)}
    assert len(one.step(torch.arange(16))) == 2
    _, matrix = one.validation(one.model)
    assert matrix.shape == (3, 3)


def test_a_run_has_as_many_classes_of_other_words_as_there_are(tensors: Path, tmp_path: Path) -> None:
    recipe = dataclasses.replace(settings(), model=RECIPES["streams"].model)
    assert runs.fit_to_tensors(recipe, tensors).model.other_words == 0
    shutil.copytree(tensors, tmp_path / "tensors")
    manifest = files.read_json(tensors / files.MANIFEST) | {"unknown_words": ["bed", "cat"]}
    files.write_json(tmp_path / "tensors" / files.MANIFEST, manifest)
    assert runs.fit_to_tensors(recipe, tmp_path / "tensors").model.other_words == 2


def test_temperature_is_fitted_on_clips_as_they_are_and_as_training_changes_them_without_masks(tensors: Path) -> None:
    one = Trainer(Tensors(tensors), settings(epochs=8), ALONE)
    for _ in range(8):
        list(one.train_epoch())
        one.end_epoch()
    with torch.no_grad():
        one.model.head.weight *= 20  # sure of everything, so that one mistake shows in the temperature

    def fitted(**augment: Any) -> tuple[float, float]:
        one.recipe = dataclasses.replace(one.recipe, augment=dataclasses.replace(NO_AUGMENTATION, **augment))
        return one.temperature(one.model), one.temperature(one.model)

    alone = fit_temperature(*one.validation.scores(one.model))
    assert fitted() == fitted(num_time_masks=2, time_mask=30) == (alone, alone)
    first, second = fitted(time_shift=80)
    assert first == second != alone


def test_a_run_leaves_model_metrics_events_and_manifest(tensors: Path, trained: Path) -> None:
    run = trained
    manifest = files.read_json(run / files.MANIFEST)
    rows = [json.loads(line) for line in (run / runs.METRICS).read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert manifest["sha256"] == files.sha256_of(run / runs.BEST)
    assert manifest["validation_accuracy"] == max(row["validation_accuracy"] for row in rows)
    assert rows[manifest["best_epoch"] - 1]["validation_accuracy"] == manifest["validation_accuracy"]
    assert list(run.glob("events.out.tfevents.*"))
    recognizer = bundle.load(run / runs.BEST)
    assert recognizer.words == ["no", "stop", "yes"]
    assert recognizer.about["run"] == run.name
    assert recognizer.temperature != 1.0
    opened = Tensors(tensors)
    assert torch.equal(recognizer.model.mean, opened.mean)


def test_a_complete_run_that_is_started_again_does_nothing(tensors: Path, trained: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*.pth")}
    assert process.train(tensors, settings(), runs_folder=trained.parent, run_id="a") == trained
    assert before == {path: path.stat().st_mtime_ns for path in trained.rglob("*.pth")}


@pytest.mark.parametrize("stop_at", [2, 4, 5])
def test_a_resumed_run_equals_an_uninterrupted_one_exactly(
    tensors: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    config = settings(checkpoint_steps=2)
    step = Trainer.step

    def interrupted(self: Trainer, indices: torch.Tensor) -> torch.Tensor:
        if self.position.step == stop_at:
            raise KeyboardInterrupt
        return step(self, indices)

    monkeypatch.setattr(Trainer, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        process.train(tensors, config, runs_folder=tmp_path / "cut")
    monkeypatch.setattr(Trainer, "step", step)
    resumed = process.train(tensors, config, runs_folder=tmp_path / "cut")
    assert len(list((tmp_path / "cut").glob("*-*"))) == 1, "the unfinished run is resumed"
    assert_same_model(trained, resumed)

    def metrics(run: Path) -> list[dict[str, float]]:
        rows = [json.loads(line) for line in (run / runs.METRICS).read_text().splitlines()]
        return [{name: value for name, value in row.items() if name != "clips_per_second"} for row in rows]

    assert metrics(trained) == metrics(resumed)


def test_the_number_of_processes_does_not_change_which_clips_make_a_batch(tensors: Path, tmp_path: Path) -> None:
    one = Trainer(Tensors(tensors), settings(), ALONE)
    order = torch.randperm(one.num_clips)
    together = one.share_of(order, 32, 0).tolist()
    one.world, one.batch_size = World(rank=0, size=2, device=torch.device("cpu")), 8
    halves = [one.share_of(order, 32, rank).tolist() for rank in range(2)]
    assert len(together) == 16
    assert sorted(together) == sorted(halves[0] + halves[1])


def test_a_run_of_other_settings_is_refused_by_the_name_of_the_setting(tensors: Path, trained: Path) -> None:
    with pytest.raises(ValueError, match=r"train\.epochs \(2, here 3\)"):
        process.train(tensors, settings(epochs=3), runs_folder=trained.parent, run_id="a")
    changed = settings(checkpoint_steps=7)
    assert process.train(tensors, changed, runs_folder=trained.parent, run_id="a") == trained


def test_a_run_that_was_killed_while_its_folder_was_made_is_taken_for_a_new_one(tensors: Path, tmp_path: Path) -> None:
    (tmp_path / "20260101-000000-mine").mkdir()
    run = process.train(tensors, settings(), runs_folder=tmp_path, run_id="mine")
    assert run.name == "20260101-000000-mine"
    with pytest.raises(ValueError, match=r"train.seed \(41, here 42\)"):
        process.train(tensors, settings(seed=42), runs_folder=tmp_path, run_id="mine")


def test_a_folder_given_for_the_run_is_made_and_keeps_its_settings(tensors: Path, tmp_path: Path) -> None:
    assert files.is_complete(process.train(tensors, settings(), run=tmp_path / "mine"))
    with pytest.raises(ValueError, match=r"train\.seed"):
        process.train(tensors, settings(seed=42), run=tmp_path / "mine")


def test_the_id_of_a_run_is_the_whole_of_what_follows_the_time(tmp_path: Path) -> None:
    config = {"recipe": dataclasses.asdict(Recipe())}
    first = runs.open_run(tmp_path, "a-b", config)
    second = runs.open_run(tmp_path, "b", config)
    assert first != second
    assert [runs.open_run(tmp_path, name, config) for name in ("a-b", "b")] == [first, second]
    for wrong in ("../b", "*", "a b"):
        with pytest.raises(ValueError, match="run_id must have only letters"):
            runs.open_run(tmp_path, wrong, config)


def test_damaged_checkpoint_is_said_to_be_so_and_the_one_before_is_taken(
    tensors: Path, trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    damaged = shutil.copytree(trained, tmp_path / "damaged")
    (damaged / files.MANIFEST).unlink()
    last = checkpoint.checkpoints_of(damaged)[-1]
    last.write_bytes(last.read_bytes()[:-2000])
    process.train(tensors, settings(), run=damaged)
    assert f"{last} is damaged; using the one before it" in caplog.text
    assert "resuming at step" in caplog.text
    assert_same_model(damaged, trained)


def test_what_a_killed_process_left_half_written_is_deleted(tensors: Path, tmp_path: Path) -> None:
    left = [tmp_path / "mine" / "checkpoints" / ".step-00000002.pth.0123abcd", tmp_path / "mine" / ".best.pth.0123abcd"]
    left[0].parent.mkdir(parents=True)
    for path in left:
        path.write_bytes(b"half")
    process.train(tensors, settings(), run=tmp_path / "mine")
    assert not any(path.exists() for path in left)


def test_tensors_of_another_preset_are_refused_with_the_remedy(tensors: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="kws preprocess --preset baseline"):
        process.train(tensors, RECIPES["baseline"], runs_folder=tmp_path)


def test_a_loss_that_is_no_number_stops_with_the_clips_of_the_batch(tensors: Path, tmp_path: Path) -> None:
    one = Trainer(Tensors(tensors), settings(), ALONE)
    lost = int(one._order()[16 + 3])  # in the second batch
    one.train_split.parts[0].features[one.train_split.rows[lost]] = torch.nan
    with pytest.raises(FloatingPointError, match=f"got nan at step 1 of epoch 1; .*{one.train_split.clips[lost].id}"):
        list(one.train_epoch())


def lose_together(rank: int, tensors: Path, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    try:
        one = Trainer(Tensors(tensors), settings(), World(rank=rank, size=2, device=torch.device("cpu")))
        lost = int(one._order()[16 + 1])  # the first clip of the second process in the second step
        one.train_split.parts[0].features[one.train_split.rows[lost]] = torch.nan
        with pytest.raises(FloatingPointError) as raised:
            list(one.train_epoch())
        (folder / str(rank)).write_text(f"{one.train_split.clips[lost].id in str(raised.value)} {raised.value}")
    finally:
        dist.destroy_process_group()


def test_every_process_names_the_clips_of_the_one_whose_loss_was_no_number_first(tensors: Path, tmp_path: Path) -> None:
    run_together(lose_together, tensors, tmp_path)
    said = [(tmp_path / str(rank)).read_text() for rank in range(2)]
    assert said[0] == said[1]
    assert said[0].startswith("True the loss must be finite, got nan at step 1 of epoch 1;")


def use_together(rank: int, folder: Path) -> None:
    while time.process_time() < 0.3:  # a fork begins at 0
        math.sqrt(2)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    try:
        mine = steps.used()
        found = used_together(World(rank=rank, size=2, device=torch.device("cpu")))
        files.write_json(folder / f"{rank}.json", [mine, found])
    finally:
        dist.destroy_process_group()


def test_what_a_training_used_is_the_sum_of_its_processes_and_the_memory_of_the_largest(tmp_path: Path) -> None:
    run_together(use_together, tmp_path)
    (mine, found), (other, same) = (files.read_json(tmp_path / f"{rank}.json") for rank in range(2))
    assert found == same
    assert found["cpu_seconds"] >= round(mine["cpu_seconds"] + other["cpu_seconds"], 1) > mine["cpu_seconds"] > 0
    assert found["peak_memory_mb"] >= max(mine["peak_memory_mb"], other["peak_memory_mb"])
    assert found["peak_memory_mb"] < mine["peak_memory_mb"] + other["peak_memory_mb"]
    assert mine.keys() == found.keys()


class Node(TorchrunLauncher):
    """A machine of some cores and GPUs."""

    def __init__(self, cores: float, gpus: int = 0) -> None:
        super().__init__()
        object.__setattr__(self, "has", (cores, gpus))

    def cores_and_gpus(self) -> tuple[float, int]:
        return self.has  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize(
    ("recipe", "node", "num_nodes", "processes"),
    [
        (Recipe(), Node(2), 1, 2),
        (Recipe(), Node(2.5), 1, 2),
        (Recipe(), Node(0.5), 1, 1),
        (Recipe(), Node(3), 1, 2),  # 64 clips are not divided by 3
        (Recipe(), Node(64), 1, 4),  # at least 16 clips for each
        (Recipe(), Node(64), 2, 2),
        (Recipe(), Node(64), 4, 1),
        (Recipe(), Node(8, gpus=8), 1, 8),
        (make_recipe(debug=True), Node(8), 1, 1),  # over before the processes had started
        (make_recipe(debug=True), Node(8, gpus=2), 1, 2),
        (make_recipe(set=["train.min_clips=0"]), Node(8), 1, 1),
        (RECIPES["baseline"], Node(8), 1, 1),  # more processes would be another training
        (RECIPES["baseline"], Node(8, gpus=8), 1, 1),
    ],
)
def test_without_a_number_there_is_a_process_for_every_core_or_gpu_that_is_worth_while(
    recipe: Recipe, node: Node, num_nodes: int, processes: int, tensors: Path
) -> None:
    assert default_processes(recipe, tensors, node, num_nodes) == processes


def test_a_checkpoint_that_does_not_fit_the_disk_leaves_the_last_one_whole(tensors: Path, tmp_path: Path) -> None:
    import resource

    one = Trainer(Tensors(tensors), settings(), ALONE)
    checkpoint.save(tmp_path, 0, one.state(), 3)
    (first,) = checkpoint.checkpoints_of(tmp_path)
    content = first.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(content) // 2, limits[1]))
        with pytest.raises((OSError, RuntimeError)):
            checkpoint.save(tmp_path, 1, one.state(), 3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert checkpoint.checkpoints_of(tmp_path) == [first]
    assert first.read_bytes() == content
    assert list(first.parent.iterdir()) == [first], "nothing half written stays"


def test_only_the_latest_checkpoints_are_kept(tensors: Path, tmp_path: Path) -> None:
    run = process.train(tensors, settings(checkpoint_steps=1, keep_checkpoints=2, epochs=1), runs_folder=tmp_path)
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == [
        f"step-{step:08d}.pth" for step in (3, 4)
    ]


def test_the_averaged_weights_are_what_is_saved(tensors: Path, trained: Path, tmp_path: Path) -> None:
    plain = process.train(tensors, settings(ema_decay=0.0), runs_folder=tmp_path)
    assert not torch.equal(weights(plain)["head.weight"], weights(trained)["head.weight"])


def test_the_learning_rates_of_both_schedules_are_as_published(tensors: Path, tmp_path: Path) -> None:
    def rates(recipe: Recipe, world: World) -> list[float]:
        one = Trainer(Tensors(tensors), recipe, ALONE)
        one.world = world
        one.batch_size = 16 // world.size
        found = []
        for epoch in range(one.epochs):
            one.position.epoch = epoch
            found.append(one.learning_rate())
        return found

    two = World(rank=0, size=2, device=torch.device("cpu"))
    baseline = Recipe(train=dataclasses.replace(RECIPES["baseline"].train, epochs=7))
    np.testing.assert_allclose(rates(baseline, ALONE), [1e-3] * 3 + [9e-4] * 3 + [8.1e-4])
    np.testing.assert_allclose(rates(baseline, two), np.array([1e-3] * 3 + [9e-4] * 3 + [8.1e-4]) * 2)
    cosine = settings(epochs=10, warmup=0.2, learning_rate=1e-3, scale_with_processes=False)
    found = rates(cosine, ALONE)
    assert found[0] < found[1] < found[2] == pytest.approx(1e-3)
    assert found[6] == pytest.approx(5e-4)
    assert found == rates(cosine, two)


def test_the_baseline_trains_with_its_own_features(tensors: Path, tmp_path: Path) -> None:
    corpus = tensors.parents[1] / "corpus"
    tensors = preprocess(corpus, tmp_path, RECIPES["baseline"], words="yes,no", num_threads=1)
    run = process.train(tensors, make_recipe("baseline", epochs=1), runs_folder=tmp_path / "runs")
    best = bundle.load(run / runs.BEST)
    assert best.features == RECIPES["baseline"].features
    assert (best.model.mean == 0).all()  # raw power is not normalized
    assert (best.model.std == 1).all()


# Starting from a model.


def publish(
    data_root: Path, version: str, seed: int, model: ModelConfig = RECIPES["default"].model, preset: str = "default"
) -> Path:
    """Makes a champion with random weights, which knows yes and up."""
    torch.manual_seed(seed)
    features = RECIPES[preset].features
    network = AudioTransformer(model, features, 2)
    network.set_normalization(torch.full((features.num_mels,), -6.0), torch.full((features.num_mels,), 3.0))
    path = data_root / "models" / version / versions.MODEL
    bundle.save(
        path, bundle.Recognizer(model=network, words=["up", "yes"], features=features, about={"preset": preset})
    )
    manifest = {"version": version, "files": {versions.MODEL: files.sha256_of(path)}}
    files.write_json(path.parent / files.MANIFEST, manifest)
    versions.appoint(data_root, version, None, by="a test", reason="a test")
    return path


def test_all_but_the_rows_of_new_words_is_the_models_that_training_starts_from(tensors: Path, tmp_path: Path) -> None:
    known = bundle.load(publish(tmp_path, "v1", seed=5, model=SMALL))
    new = Trainer(Tensors(tensors), settings(), ALONE).model.state_dict()
    one = Trainer(Tensors(tensors), settings(), ALONE, known)
    expected = dict(known.model.state_dict())
    for name in ("head.weight", "head.bias"):
        expected[name] = torch.stack([new[name][0], new[name][1], expected[name][1]])  # no, stop, yes
    for model in (one.model, one.averaged):
        for name, value in model.state_dict().items():
            assert torch.equal(value, expected[name]), name
    assert torch.equal(one.update.augment.mean[:, 0], known.model.mean)


def test_a_run_says_which_model_it_started_from_and_another_model_is_another_run(
    tensors: Path, trained: Path, tmp_path: Path
) -> None:
    model = publish(tmp_path, "v1", seed=5, model=SMALL)
    run = process.train(tensors, settings(init="champion"), runs_folder=tmp_path / "runs", run_id="a")
    record = {"model": "v1", "sha256": files.sha256_of(model)}
    assert files.read_json(run / runs.CONFIG)["init"] == record
    assert bundle.load(run / runs.BEST).about["init"] == record
    assert files.sha256_of(run / runs.INIT) == record["sha256"]
    with pytest.raises(ValueError, match=r"got other values for train\.init \(champion, here v1\)"):
        process.train(tensors, settings(init="v1"), runs_folder=tmp_path / "runs", run_id="a")
    for same in ("v1", "models/v1/model.pth", str(model)):
        other = process.train(tensors, settings(init=same), runs_folder=tmp_path / "runs")
        assert_same_model(run, other)
    assert not (trained / runs.INIT).exists()
    assert not torch.equal(weights(run)["mean"], weights(trained)["mean"])


def test_of_epochs_that_are_equally_good_the_last_is_kept(tensors: Path) -> None:
    one = Trainer(Tensors(tensors), settings(), ALONE)
    for _ in range(2):  # nothing is trained: both epochs are the same
        one.position.clips_done = 1
        assert one.end_epoch()[2]


@pytest.mark.parametrize(
    ("init", "message"),
    [
        ("champion", r"init must be a \.pth file, as there is no champion in .*models yet, got 'champion'"),
        ("v2", r"init must be champion, a version \(there is none yet\) or the path of a \.pth .* got 'v2'$"),
        ("noise.pth", r"model must be a \.pth file of kws train, got .*init\.pth.*, which is damaged or another"),
    ],
)
def test_without_a_model_to_start_from_training_is_refused(
    tensors: Path, tmp_path: Path, init: str, message: str
) -> None:
    (tmp_path / "noise.pth").write_bytes(b"noise")
    with pytest.raises(ValueError, match=message):
        process.train(tensors, settings(init=init), runs_folder=tmp_path / "runs")


def test_model_of_other_features_or_shape_is_refused_with_the_names_and_the_preset(tmp_path: Path) -> None:
    baseline = publish(tmp_path, "v1", seed=5, model=RECIPES["baseline"].model, preset="baseline")
    with pytest.raises(ValueError, match=r"n_fft \(400, here 512\).*; give --preset baseline$"):
        start.read_start(baseline, Recipe())
    small = publish(tmp_path, "v2", seed=5, model=SMALL)
    with pytest.raises(ValueError, match=r"with other feedforward \(64, here 512\), .*; train it again with"):
        start.read_start(small, Recipe())
    regular = dataclasses.replace(RECIPES["default"].model, dropout=0.3, drop_path=0.0)
    assert start.read_start(publish(tmp_path, "v3", seed=5, model=regular), Recipe()).words == ["up", "yes"]


def test_copy_of_the_model_that_was_changed_since_is_refused(tensors: Path, tmp_path: Path) -> None:
    publish(tmp_path, "v1", seed=5, model=SMALL)
    run = process.train(tensors, settings(init="v1"), runs_folder=tmp_path / "runs", run_id="a")
    (run / files.MANIFEST).unlink()
    (run / runs.INIT).write_bytes((run / runs.INIT).read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"init\.pth must have the SHA-256 .* of config\.json.*start a new run"):
        process.train(tensors, settings(init="v1"), runs_folder=tmp_path / "runs", run_id="a")


# Real processes.


def test_a_stopped_run_goes_on_from_the_champion_of_its_beginning(
    tensors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(tmp_path, "v1", seed=5, model=SMALL)
    straight = process.train(tensors, settings(init="v1", epochs=1), runs_folder=tmp_path / "straight")

    def stop(self: Trainer, indices: torch.Tensor) -> torch.Tensor:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", stop)
        with pytest.raises(KeyboardInterrupt):
            process.train(tensors, settings(init="champion", epochs=1), runs_folder=tmp_path / "stopped")
    (stopped,) = (tmp_path / "stopped").glob("*-*")
    assert not list(stopped.glob("checkpoints/*"))
    publish(tmp_path, "v2", seed=6, model=SMALL)
    assert process.train(tensors, settings(init="champion", epochs=1), runs_folder=tmp_path / "stopped") == stopped
    assert_same_model(straight, stopped)


def test_two_processes_of_torchrun_train_one_model_from_one_model(tensors: Path, tmp_path: Path) -> None:
    publish(tmp_path, "v1", seed=5)
    recipe = make_recipe(epochs=1, batch_size=32, init="v1")
    run = train(tensors, tmp_path / "runs", recipe=recipe, run_id="two", processes_per_node=2)
    assert files.read_json(run / files.MANIFEST)["epochs"] == 1
    assert run.name.endswith("-two")
    (row,) = [json.loads(line) for line in (run / runs.METRICS).read_text().splitlines()]
    assert row["step"] == files.read_json(run / files.MANIFEST)["num_clips"] // 32
    assert bundle.load(run / runs.BEST).about["init"]["model"] == "v1"
    assert torch.equal(weights(run)["mean"], torch.full_like(weights(run)["mean"], -6.0))


def wait_for(condition: Any, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def test_a_process_killed_at_any_moment_goes_on_and_ends_with_the_same_model(tensors: Path, tmp_path: Path) -> None:
    recipe = make_recipe(epochs=3, batch_size=16)
    straight = process.train(tensors, recipe, runs_folder=tmp_path / "straight")
    more = ("--epochs", "3", "--batch-size", "16")
    begun = subprocess.Popen(command(tensors, "--runs", tmp_path / "killed", *more), stderr=subprocess.DEVNULL)
    wait_for(lambda: list((tmp_path / "killed").glob("*/checkpoints/step-*.pth")))
    begun.kill()
    begun.wait()
    (killed,) = (tmp_path / "killed").glob("*-*")
    assert not files.is_complete(killed)
    assert process.train(tensors, recipe, runs_folder=tmp_path / "killed") == killed
    assert_same_model(straight, killed)


def assert_stopped_with_a_checkpoint(run: Path) -> None:
    assert not files.is_complete(run)
    latest = max((run / "checkpoints").iterdir())
    assert torch.load(latest, weights_only=True)["position"]["step"] > 0


def test_a_signal_writes_a_checkpoint_and_exits_with_the_status_of_a_shell(tensors: Path, tmp_path: Path) -> None:
    begun = subprocess.Popen(
        command(tensors, "--runs", tmp_path, "--epochs", "500", "--batch-size", "16"), stderr=subprocess.DEVNULL
    )
    try:
        wait_for(lambda: list(tmp_path.glob("*/checkpoints/step-*.pth")))
        begun.send_signal(signal.SIGTERM)
        assert begun.wait(timeout=120) == 143
    finally:
        begun.kill()
    assert_stopped_with_a_checkpoint(*tmp_path.glob("*-*"))


def test_ctrl_c_does_so_too(tensors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = runs.open_run(tmp_path, "a", runs.describe(tensors, runs.fit_to_tensors(settings(), tensors)))
    step = Trainer.step

    def interrupted(self: Trainer, indices: torch.Tensor) -> torch.Tensor:
        if not self.stop_asked:  # a second one would end it at once
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, indices)

    monkeypatch.setattr(Trainer, "step", interrupted)
    with pytest.raises(SystemExit) as ended:
        train_process.run(argparse.Namespace(run_folder=folder, runs=None, run_id=""))
    assert ended.value.code == 130
    assert_stopped_with_a_checkpoint(folder)


def test_a_run_that_was_opened_says_by_itself_how_to_train(tensors: Path, tmp_path: Path) -> None:
    recipe = make_recipe(
        "streams", ["augment.gain_db=-3,3"], epochs=1, batch_size=32, learning_rate=1e-3, seed=7, debug=True
    )
    folder = runs.open_run(tmp_path, "mine", runs.describe(tensors, recipe))
    assert runs.read_config(folder) == (tensors, recipe)
    with pytest.raises(ValueError, match=r"run_folder must be a run folder, with its config\.json"):
        runs.read_config(tmp_path)
