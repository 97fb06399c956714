"""Clips of the class `_unknown_` made of parts of words, as a window over running speech has them.

A model that detects words in a stream hears every word ten times a second, most of the time cut by an edge of the
window or beside parts of others. Clips of whole words do not teach it that those are none.
"""

from collections.abc import Iterator

import torch
from torch import Tensor


class Fragments:
    """Replaces some clips of a batch by fragments."""

    def __init__(self, share: float, unknown: int, silence: float) -> None:
        """Initializes the replacement.

        Args:
            share: share of the clips to replace.
            unknown: the label of `_unknown_`.
            silence: the log-mel value of silence.
        """
        self.share, self.unknown, self.silence = share, unknown, silence

    def __call__(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Returns a batch in which a share of the clips, chosen at random, are fragments of others.

        Half of them have the end of one word and the beginning of another, the others ends alone or beginnings alone,
        three to six without a pause.

        Args:
            features: float32 [clips, num_mels, num_frames], log-mel.
            labels: int64 [clips].
        """
        num_clips, _, num_frames = features.shape
        device = features.device
        count = round(self.share * num_clips)
        num_pairs = count // 2
        chosen = torch.randperm(num_clips, device=device)[:count]
        middles = _middles(features)
        cut = int(torch.randint(num_frames * 35 // 100, num_frames * 65 // 100, ()))
        ends, beginnings = (torch.full((num_pairs,), value, device=device) for value in (True, False))
        pairs = [
            self._halves(features, middles, cut, ends),
            self._halves(features, middles, num_frames - cut, beginnings),
        ]
        # Never a beginning before an end: together they might be a word.
        either = torch.rand(count - num_pairs, device=device) < 0.5
        running = [self._halves(features, middles, width, either) for width in _widths(num_frames)]
        made = torch.cat((torch.cat(pairs, dim=2), torch.cat(running, dim=2)))
        return features.index_copy(0, chosen, made), labels.index_fill(0, chosen, self.unknown)

    def _halves(self, features: Tensor, middles: Tensor, width: int, ends: Tensor) -> Tensor:
        """Cuts frames out of random clips, from the middle of the word on or up to it: [count, num_mels, width].

        Args:
            features: [clips, num_mels, num_frames].
            middles: int64 [clips], the frame in the middle of each word.
            width: frames of each.
            ends: bool [count], whether to take the end of a word or the beginning.
        """
        num_frames = features.size(2)
        clips = torch.randint(len(features), (len(ends),), device=features.device)
        first = torch.where(ends, middles[clips], middles[clips] - width)
        frames = first[:, None] + torch.arange(width, device=features.device)  # [count, width]
        index = frames.clamp(0, num_frames - 1)[:, None].expand(-1, features.size(1), -1)
        outside = (frames < 0) | (frames >= num_frames)
        return features[clips].gather(2, index).masked_fill(outside[:, None], self.silence)


def _middles(features: Tensor) -> Tensor:
    """Returns the frame of each clip by which half of its energy above the background has passed, int64 [clips]."""
    power = features.exp().sum(dim=1)
    power = (power - power.quantile(0.2, dim=1, keepdim=True)).clamp_(min=0)
    passed = power.cumsum(dim=1)
    return (passed < passed[:, -1:] / 2).sum(dim=1).clamp_(max=features.size(2) - 1)


def _widths(num_frames: int) -> Iterator[int]:
    """Yields random widths of a sixth to a third of a clip, in frames, that add up to a clip."""
    left = num_frames
    while left > 0:
        width = min(left, int(torch.randint(num_frames // 6, num_frames // 3 + 1, ())))
        yield width
        left -= width
