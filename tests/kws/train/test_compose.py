"""Streams composed of clips, speech and noise: what is where, and its truth; the loss of their tokens."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from kws.preprocess.tensors import Speech
from kws.recipe import NO_AUGMENTATION, AugmentConfig, ComposeConfig, FeatureConfig
from kws.train.compose import IGNORED, NO_WORD, Composer, extents
from kws.train.losses import token_loss

FEATURES = FeatureConfig(num_mels=8)
UNKNOWN, SILENT = 2, 3
QUIET = math.log(FEATURES.log_offset)
PLAIN = ComposeConfig(
    speech_probability=0, noise_probability=0, piece_probability=0, level_db=0, reverberation_probability=0
)


def clips(*labels: int) -> tuple[Tensor, Tensor]:
    """Features [clips, 8, 81] with a word in frames 30 to 50, louder in the mel bin of its label."""
    features = torch.full((len(labels), 8, 81), QUIET)
    features[:, :, 30:51] = -3.0
    for number, label in enumerate(labels):
        features[number, label, 30:51] = 1.0
    return features, torch.tensor(labels)


def speech(usable: bool = True) -> Speech:
    lengths = torch.tensor([900, 700])
    features = torch.full((1600, 8), -9.0, dtype=torch.float16)
    features[:, 7] = 0.0
    free = torch.full((1600,), usable)
    return Speech(features=features, usable=free, lengths=lengths)


def composer(config: ComposeConfig = PLAIN, augment: AugmentConfig = NO_AUGMENTATION, **given: Speech) -> Composer:
    return Composer(config, augment, FEATURES, 4, 4, given.get("speech"), None)


def test_middle_of_a_word_has_its_label_and_its_sound_and_the_rest_is_silence() -> None:
    torch.manual_seed(0)
    features, truth = composer()(*clips(0, 1, 0, 1, 1, 1, 0, 0))
    assert (features.shape, truth.shape) == ((2, 8, 320), (2, 80))
    for stream, labels in zip(features, truth, strict=True):
        assert {0, 1} & set(labels.tolist())
        for token, label in enumerate(labels.tolist()):
            frame = stream[:, 4 * token]
            if label in (0, 1):
                assert int(frame.argmax()) == label
                assert frame.max() > -4
            if label == SILENT:
                assert frame.max() == pytest.approx(QUIET, abs=1e-3)


def test_tokens_beside_the_middle_of_a_word_count_for_nothing_and_unknown_words_are_none() -> None:
    torch.manual_seed(1)
    config = dataclasses.replace(PLAIN, first=(1.0, 1.0), gap=(9.0, 9.0), close_probability=0)
    _, truth = composer(config)(*clips(1, 0, 0, 0))
    labels = truth[0].tolist()
    begin = labels.index(1)
    middle = begin + labels.count(1) // 2
    assert labels[middle] == 1
    assert 3 <= labels.count(1) <= 5  # 0.11 s to either side
    assert labels[begin - 1] == IGNORED == labels[begin + labels.count(1)]
    assert labels[0] == SILENT == labels[-1]
    assert labels.count(0) == 0, "the others are behind the end"
    _, truth = composer(config)(*clips(UNKNOWN, 0, 0, 0))
    assert {UNKNOWN, NO_WORD, SILENT} == set(truth[0].tolist())


def test_a_word_that_the_stream_cuts_counts_for_nothing() -> None:
    config = dataclasses.replace(PLAIN, first=(-0.15, -0.15), gap=(9.0, 9.0), close_probability=0)
    _, truth = composer(config)(*clips(1, 0, 0, 0))
    assert truth[0, 0] == IGNORED
    assert 1 not in truth[0].tolist()


def test_words_that_follow_closely_are_all_heard_whole() -> None:
    torch.manual_seed(2)
    config = dataclasses.replace(PLAIN, first=(0.2, 0.2), close_probability=1, close_gap=(0.0, 0.0))
    features, truth = composer(config)(*clips(0, 1, 0, 1))
    frames = features[0].max(dim=0).values > -4
    changes = features[0, :2].argmax(dim=0)[frames]
    assert torch.unique_consecutive(changes).tolist() == [0, 1, 0, 1]
    assert int(frames.sum()) >= 4 * 21 - 4
    assert [label for label in torch.unique_consecutive(truth[0]).tolist() if label in (0, 1)] == [0, 1, 0, 1]


def test_speech_is_no_word_and_what_may_be_one_is_ignored() -> None:
    always = dataclasses.replace(PLAIN, speech_probability=1)
    features, truth = composer(always, speech=speech())(*clips(0, 1, 0, 1))
    assert set(truth.flatten().tolist()) <= {NO_WORD, SILENT}
    assert (truth == NO_WORD).float().mean() > 0.2
    heard = truth[0] == NO_WORD
    assert bool((features[0, :, ::4].argmax(dim=0)[heard][2:-10] == 7).all())
    _, truth = composer(always, speech=speech(usable=False))(*clips(0, 1, 0, 1))
    assert IGNORED in truth.flatten().tolist()


def test_noise_has_the_level_that_was_asked_for() -> None:
    torch.manual_seed(3)
    quiet = dataclasses.replace(PLAIN, first=(0.0, 0.0))
    for snr in (0.0, 20.0):
        noisy = dataclasses.replace(NO_AUGMENTATION, noise_probability=1.0, noise_snr_db=(snr, snr))
        mixed = composer(quiet, noisy, speech=speech())
        features, labels = clips(*[0] * 64)
        power = (mixed(features, labels)[0].exp() - FEATURES.log_offset).sum(1)
        noise = power.sort(dim=1).values[:, :160].mean()  # words take less than half of the frames
        word = features.exp().sum(1).mean()
        assert float(10 * torch.log10(word / noise)) == pytest.approx(snr, abs=4)


def test_streams_are_the_same_for_a_seed_and_their_shapes_always() -> None:
    strong = AugmentConfig()
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(composer(ComposeConfig(), strong, speech=speech())(*clips(0, 1, UNKNOWN, SILENT, 0, 1, 0)))
    assert torch.equal(found[0][0], found[1][0])
    assert not torch.equal(found[0][0], found[2][0])
    assert all(features.shape == (1, 8, 320) and bool(features.isfinite().all()) for features, _ in found)


def test_extents_hold_the_energy_of_a_word() -> None:
    features, _ = clips(0)
    begin, middle, end = extents(features.exp().transpose(1, 2))
    assert [begin.item(), middle.item(), end.item()] == pytest.approx([28, 40, 53], abs=2)


def test_loss_of_tokens_takes_unknown_and_silence_for_the_same_where_no_word_is() -> None:
    config = ComposeConfig()
    sure = torch.full((1, 4, 4), -20.0)
    sure[0, range(4), (0, UNKNOWN, SILENT, 1)] = 0.0
    labels = torch.tensor([[0, NO_WORD, NO_WORD, IGNORED]])
    loss, share = token_loss(sure, labels, 4, 0.0, config)
    assert float(loss) == pytest.approx(0, abs=1e-6)
    assert float(share) == 1
    wrong = sure.clone()
    wrong[0, 1] = torch.tensor([0.0, -20.0, -20.0, -20.0])
    assert float(token_loss(wrong, labels, 4, 0.0, config)[0]) > 5
    ignored = sure.clone()
    ignored[0, 3] = torch.tensor([9.0, -20.0, -20.0, -20.0])
    assert float(token_loss(ignored, labels, 4, 0.0, config)[0]) == pytest.approx(0, abs=1e-6)
    nothing = torch.full((1, 4), IGNORED)
    assert bool(token_loss(sure, nothing, 4, 0.0, config)[0].isfinite())


def test_loss_of_tokens_tells_other_words_apart_and_takes_any_of_them_for_no_word() -> None:
    config = ComposeConfig()
    sure = torch.full((1, 4, 6), -20.0)
    sure[0, range(4), (0, 4, 5, SILENT)] = 0.0
    labels = torch.tensor([[0, 4, NO_WORD, SILENT]])
    loss, share = token_loss(sure, labels, 4, 0.0, config)
    assert float(loss) == pytest.approx(0, abs=1e-6)
    assert float(share) == 1
    labels[0, 1] = 5
    assert float(token_loss(sure, labels, 4, 0.0, config)[0]) > 5
