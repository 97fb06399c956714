"""Composes streams of a few seconds from clips, running speech and noise, with the truth for every token.

A model that hears words in a stream has to learn from streams: words at any place, close to other words or alone, whole
sentences in which none of its words is spoken, all of it in rooms and noise. They are made anew for every step, from
features: the mel powers of independent sounds add up.

Letters in shapes, besides those of `kws.model.network`:
    N  streams in a batch
    S  clips in a stream
    T  frames of a stream
    M  frames of a clip
"""

import dataclasses
import math

import torch
from torch import Tensor

from kws.preprocess.tensors import Speech
from kws.recipe import AugmentConfig, ComposeConfig, FeatureConfig
from kws.train.augment import power_ratio, uniform

NO_WORD = -1
"""Label of a token at which no word of the model is spoken: `_unknown_` and `_silence_` are both right."""

IGNORED = -2
"""Label of a token that counts for nothing: near the middle of a word, or where it is not known what is said."""

FADE = 2
"""Frames around a word that are always heard with it."""

LOWEST_POWER = 1e-4
"""Smallest mean power of a clip, so that digital silence is not amplified without end."""

EDGE = 4
"""Frames by which a word may begin before its stream, or end after it, and still be whole."""


class Composer:
    """Turns a batch of clips into streams. All shapes depend on the number of clips alone."""

    def __init__(
        self,
        config: ComposeConfig,
        augment: AugmentConfig,
        features: FeatureConfig,
        num_words: int,
        frames_per_token: int,
        speech: Speech | None,
        noise: Tensor | None,
    ) -> None:
        """Initializes the composition.

        Args:
            config: how streams are composed.
            augment: its time stretch and noise are applied here, where the places of the words are known.
            features: the feature settings, with log.
            num_words: the number of classes; the last two are unknown words and silence.
            frames_per_token: frames per token.
            speech: running speech that trains; None: there is none.
            noise: features of background noise, [pieces, num_mels, frames of a clip]; pieces that follow each other in
                a recording do so here; None: there is none.
        """
        self.config, self.augment = config, augment
        self.offset, self.per_second = features.log_offset, features.sample_rate / features.hop_length
        self.frames_per_token = frames_per_token
        clip_frames = features.num_frames - 1
        self.num_frames = config.clips_per_stream * clip_frames // frames_per_token * frames_per_token
        self.unknown, self.silence = num_words - 2, num_words - 1
        self.speech = speech
        self.ends = None if speech is None else speech.ends
        self.noise = noise
        self.speech_probability = config.speech_probability if speech is not None else 0.0

    def __call__(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Returns streams of `clips_per_stream` clips each.

        Args:
            features: float32 [N · S, F, M], log-mel.
            labels: int64 [N · S].

        Returns:
            Features, float32 [N, F, T], and for every token its class, NO_WORD or IGNORED, int64 [N, L].
        """
        config, device = self.config, features.device
        size = config.clips_per_stream
        num = len(features) // size
        labels = labels[: num * size].view(num, size)
        power = (features[: num * size].exp() - self.offset).clamp_(min=0).transpose(1, 2)  # [N · S, M, F]
        begin, middle, end = (frame.view(num, size) for frame in extents(power))
        rate = _log_uniform((num, size), self.augment.time_stretch, device)
        # Which streams are speech throughout, and which clips of the others give way to a piece of speech.
        chance = torch.rand(num, 1, device=device)
        all_speech = chance < self.speech_probability
        nothing = ~all_speech & (chance < self.speech_probability + config.noise_probability)
        pieces = torch.rand(num, size, device=device) < (config.piece_probability if self.speech is not None else 0)
        silent = (labels == self.silence) | nothing | all_speech
        words = ~(silent | pieces)
        piece_frames = uniform((num, size), *config.piece_seconds, device) * self.per_second
        length = torch.where(pieces, piece_frames, (end - begin) / rate)  # [N, S]
        close = torch.rand(num, size, device=device) < config.close_probability
        gap = torch.where(
            close, uniform((num, size), *config.close_gap, device), uniform((num, size), *config.gap, device)
        )
        first = uniform((num, 1), *config.first, device) * self.per_second
        steps = length + gap * self.per_second
        start = first + steps.cumsum(1) - steps  # [N, S]

        time = torch.arange(self.num_frames, device=device)
        # Each frame belongs to one clip: from some time before its word, but not before the last word has ended.
        lead = torch.randint(FADE, 40, (num, size), device=device)
        ended = torch.cat((start.new_full((num, 1), -math.inf), (start + length)[:, :-1]), dim=1)
        opens = torch.maximum(start - lead, torch.minimum(ended, start))
        owner = (time >= opens[:, :, None]).sum(dim=1).sub_(1)  # [N, T], -1: none
        owned = owner >= 0
        owner = owner.clamp_(min=0)
        since = time - start.gather(1, owner)  # frames since the word began
        source = (begin.gather(1, owner) + since * rate.gather(1, owner)).floor()
        last = (end + lead).clamp(max=power.size(1))
        heard = owned & (source >= 0) & (source < last.gather(1, owner)) & words.gather(1, owner)
        clip = owner + size * torch.arange(num, device=device)[:, None]
        rows = clip * power.size(1) + source.long().clamp_(0, power.size(1) - 1)
        # A word has the same mean power as speech: over the whole clip, as in a stream of clips.
        level = power_ratio(uniform((num, size), -config.level_db, config.level_db, device))
        powers = power.sum(2).mean(1).view(num, size).clamp(min=LOWEST_POWER)
        scale = level / powers
        x = power.reshape(-1, power.size(2))[rows] * (scale.gather(1, owner) * heard)[:, :, None]  # [N, T, F]

        spoken = heard & (source >= begin.gather(1, owner) - FADE) & (source <= end.gather(1, owner) + FADE)
        unclear = torch.zeros_like(heard)
        if self.speech is not None:
            talk, usable = self._speech(num, device)  # [N, T, F] and [N, T]
            inside = pieces.gather(1, owner) & ~nothing & owned & (since >= 0) & (since < length.gather(1, owner))
            inside |= all_speech
            x += talk * (level.gather(1, owner) * inside)[:, :, None]
            spoken |= inside
            unclear = inside & ~usable
        else:
            talk = x
        truth = self._truth(labels, words, start, start + (middle - begin) / rate, start + length, spoken, unclear)

        x = self._reverberate(x)
        x = self._warp(x)
        x += self._noise(x, talk)
        x *= powers.mean(dim=1)[:, None, None]  # back to a level at which people record
        return x.add_(self.offset).log_().transpose(1, 2), truth

    def _truth(
        self, labels: Tensor, words: Tensor, start: Tensor, middle: Tensor, end: Tensor, spoken: Tensor, unclear: Tensor
    ) -> Tensor:
        """Returns the label of every token, int64 [N, L].

        Args:
            labels: int64 [N, S], the class of each clip.
            words: bool [N, S], whether it is heard.
            start: [N, S], the frame at which its word begins.
            middle: [N, S], its middle.
            end: [N, S], its end.
            spoken: bool [N, T], whether a frame has a word or speech.
            unclear: bool [N, T], whether it is not known what is said.
        """
        config = self.config
        step = self.frames_per_token
        token = torch.arange(0, self.num_frames, step, device=labels.device)
        distance = (token - middle[:, :, None]).abs()  # [N, S, L]
        whole = (start >= -EDGE) & (end <= self.num_frames + EDGE)
        at_middle = (distance <= config.middle_seconds * self.per_second) & (words & whole)[:, :, None]
        near = (distance <= config.near_seconds * self.per_second) & (words & (labels < self.unknown))[:, :, None]
        cut = (token >= start[:, :, None] - 10) & (token <= end[:, :, None] + 10) & (words & ~whole)[:, :, None]
        nearby = torch.nn.functional.max_pool1d(spoken.float()[:, None], 21, 1, 10)[:, 0, ::step] > 0
        truth = torch.where(nearby, NO_WORD, self.silence)
        truth = torch.where(near.any(1) | cut.any(1) | unclear[:, ::step], IGNORED, truth)
        which = at_middle.float().argmax(1)  # [N, L]
        return torch.where(at_middle.any(1), labels.gather(1, which), truth)

    def _speech(self, num: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Draws running speech: mel power, float32 [N, T, F], relative to its mean, and where it is usable [N, T]."""
        speech, ends = self.speech, self.ends
        assert speech is not None
        assert ends is not None
        first = (torch.rand(num, device=device, dtype=torch.float64) * ends[-1]).long()
        stop = ends[torch.searchsorted(ends, first, right=True).clamp_(max=len(ends) - 1)][:, None]
        rate = _log_uniform((num, 1), self.augment.time_stretch, device)
        rows = first[:, None] + (torch.arange(self.num_frames, device=device) * rate).long()
        there = rows < stop
        rows = torch.minimum(rows, stop - 1)
        power = speech.features[rows].float().exp_()
        return power.mul_(there[:, :, None]), speech.usable[rows] | ~there

    def _reverberate(self, x: Tensor) -> Tensor:
        """Adds reverberation to some of the streams: each mel power decays exponentially, as in a room.

        Source: the decay by 60 dB in the reverberation time (W. C. Sabine); its level against the direct sound, up to
        as loud, is our choice.
        """
        num, device = len(x), x.device
        low, high = self.config.reverberation_seconds
        decay = torch.exp(-6 * math.log(10) / self.per_second / uniform((num, 1, 1), low, high, device))
        wet = power_ratio(uniform((num, 1, 1), -12.0, 2.0, device))
        wet = wet * (torch.rand(num, 1, 1, device=device) < self.config.reverberation_probability)
        tail, step = x, 1
        while step < 64:  # after each round the tail has twice as many frames
            tail = tail + decay**step * torch.nn.functional.pad(tail, (0, 0, step, 0))[:, : x.size(1)]
            step *= 2
        return x + wet * (1 - decay) * tail

    def _warp(self, x: Tensor) -> Tensor:
        """Stretches the mel axis of every stream, as by another vocal tract: [N, T, F]."""
        bins = torch.arange(x.size(2), device=x.device)
        place = (bins * _log_uniform((len(x), 1), self.augment.frequency_warp, x.device)).clamp(max=x.size(2) - 1)
        return x @ (1 - (place[:, None] - bins[:, None]).abs()).clamp_(min=0)  # hat functions: linear interpolation

    def _noise(self, x: Tensor, talk: Tensor) -> Tensor:
        """Draws noise at a random signal-to-noise ratio: recorded, of a random spectrum, or other people talking."""
        num, frames, mels = x.shape
        device = x.device
        kind = torch.rand(num, 1, 1, device=device)
        if self.noise is not None:
            length = self.noise.size(2) - 1
            count = -(-frames // length)
            first = torch.randint(len(self.noise), (num, 1), device=device)
            pieces = self.noise[(first + torch.arange(count, device=device)) % len(self.noise)]  # [N, count, F, M]
            recorded = pieces[..., :length].float().exp().transpose(2, 3).reshape(num, -1, mels)[:, :frames]
        # A random spectrum of nine knots, a level that wavers, and the fluctuations of a noise's power.
        tilt = torch.linspace(0, 1, 9, device=device) * uniform((num, 1, 1), -4.0, 2.0, device)
        knots = 1.2 * torch.randn(num, 1, 9, device=device) + tilt
        spectrum = torch.nn.functional.interpolate(knots, mels, mode="linear", align_corners=True)
        waves = torch.randn(num, 1, frames // 40 + 2, device=device) * uniform((num, 1, 1), 0.0, 0.8, device)
        swell = torch.nn.functional.interpolate(waves, frames, mode="linear").transpose(1, 2)
        grain = (torch.rand_like(x) * torch.rand_like(x)).clamp_(min=1e-12).log_().neg_()  # chi-squared
        coloured = (spectrum + swell).exp() * grain
        babble = talk.roll(1, 0) + talk.roll(2, 0) + talk.roll(3, 0)
        noise = torch.where(kind < 0.25, coloured, babble)
        if self.noise is not None:
            noise = torch.where(kind < 0.5, noise, recorded)
        snr = power_ratio(uniform((num, 1, 1), *self.augment.noise_snr_db, device))
        on = torch.rand(num, 1, 1, device=device) < self.augment.noise_probability
        return noise * (on / (noise.sum(2).mean(1)[:, None, None].clamp(min=self.offset) * snr))


def what_is_left(config: AugmentConfig) -> AugmentConfig:
    """Returns what is still to be changed in composed streams."""
    return dataclasses.replace(config, time_shift=0, time_stretch=0.0, frequency_warp=0.0, noise_probability=0.0)


def extents(power: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Estimates where the word of each clip begins, has its middle, and ends.

    The energy above the background, which is the level of the fifth of the frames that are lowest, has passed by 3, 50
    and 97 %.

    Args:
        power: mel power, float32 [clips, M, F].

    Returns:
        Three frames for every clip, int64 [clips]; the last is behind the word.
    """
    energy = power.sum(2)
    num_frames = energy.size(1)
    background = energy.sort(1).values[:, num_frames // 5, None]
    passed = (energy - 1.5 * background).clamp_(min=0).cumsum(1)
    begin, middle, end = ((passed < share * passed[:, -1:]).sum(1) for share in (0.03, 0.5, 0.97))
    return (
        (begin - 2).clamp_(min=0, max=num_frames - 2),
        middle.clamp_(max=num_frames - 1),
        (end + 3).clamp_(max=num_frames),
    )


def _log_uniform(shape: tuple[int, ...], limit: float, device: torch.device) -> Tensor:
    return uniform(shape, -limit, limit, device).exp_()
