"""Clips of the class `_unknown_` made of parts of words, as a window over running speech has them.

A model that detects words in a stream hears every word ten times a second, most of the time cut by an edge of the
window or beside parts of others. Clips of whole words do not teach it that those are none.
"""

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
        three to seven without a pause.

        Args:
            features: float32 [clips, num_mels, num_frames], log-mel.
            labels: int64 [clips].
        """
        num_clips, _, num_frames = features.shape
        device = features.device
        count = round(self.share * num_clips)
        num_pairs = count // 2
        chosen = torch.rand(num_clips, device=device).argsort()[:count]
        middles = _middles(features)
        cut = torch.randint(num_frames * 35 // 100, num_frames * 65 // 100, (1,), device=device)
        end_first = (torch.arange(2, device=device) == 0).expand(num_pairs, 2)
        pairs = self._join(features, middles, torch.cat((cut, num_frames - cut)), end_first)
        # Never a beginning before an end: together they might be a word.
        least, most = num_frames // 6, num_frames // 3
        widths = torch.randint(least, most + 1, (-(-num_frames // least),), device=device)
        either = torch.rand(count - num_pairs, 1, device=device) < 0.5
        running = self._join(features, middles, widths, either.expand(-1, len(widths)))
        made = torch.cat((pairs, running))
        return features.index_copy(0, chosen, made), labels.index_fill(0, chosen, self.unknown)

    def _join(self, features: Tensor, middles: Tensor, widths: Tensor, ends: Tensor) -> Tensor:
        """Joins parts of random clips, from the middle of the word on or up to it: [count, num_mels, num_frames].

        Where the parts meet is random, but every shape is always the same: each frame of the result looks up which part
        it belongs to.

        Args:
            features: [clips, num_mels, num_frames].
            middles: int64 [clips], the frame in the middle of each word.
            widths: int64 [parts], frames of each part; the sum is at least a clip, and what is over is left out.
            ends: bool [count, parts], whether to take the end of a word or the beginning.
        """
        num_frames = features.size(2)
        time = torch.arange(num_frames, device=features.device)
        stops = widths.cumsum(0).clamp(max=num_frames)
        starts = torch.cat((stops.new_zeros(1), stops[:-1]))
        part = (time[:, None] >= stops).sum(dim=1)  # [num_frames]
        clips = torch.randint(len(features), ends.shape, device=features.device)[:, part]  # [count, num_frames]
        first = torch.where(ends[:, part], middles[clips], middles[clips] - (stops - starts)[part])
        frames = first + time - starts[part]
        outside = (frames < 0) | (frames >= num_frames)
        joined = features[clips, :, frames.clamp(0, num_frames - 1)]  # [count, num_frames, num_mels]
        return joined.transpose(1, 2).masked_fill(outside[:, None], self.silence)


def _middles(features: Tensor) -> Tensor:
    """Returns the frame of each clip by which half of its energy above the background has passed, int64 [clips]."""
    power = features.exp().sum(dim=1)
    num_frames = power.size(1)
    background = power.sort(dim=1).values[:, num_frames // 5, None]
    passed = (power - background).clamp_(min=0).cumsum(dim=1)
    return (passed < passed[:, -1:] / 2).sum(dim=1).clamp_(max=num_frames - 1)
