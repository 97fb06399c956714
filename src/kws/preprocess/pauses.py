"""Cuts recordings in which a word is repeated at their pauses, and says how long recordings are."""

import contextlib
import io
import logging
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from kws.data.clip import Clip
from kws.data.index import Index
from kws.data.listing import Listing
from kws.data.shards import recording
from kws.preprocess.audio import Waveform, loudness, read_waveform

log = logging.getLogger(__name__)

LONGEST_GAP = 0.25
"""A pause within a word, in seconds; a longer one is between two words."""

SHORTEST = 0.1
"""What is shorter, in seconds, is no word but a click."""

MARGIN = 0.1
"""What is kept before and behind a word, in seconds."""

SAMPLE = 100
"""How many recordings are opened to estimate the length of all."""


def cut(listing: Listing, sample_rate: int) -> Listing:
    """Returns the listing with every recording replaced by the stretches between its pauses, each of which is a clip.

    A recording that cannot be read is kept, so that it is reported like others.
    """

    def cut_out() -> Iterator[Clip]:
        for clip in listing.clips:
            try:
                waveform = read_waveform(recording(listing.folder, clip), sample_rate)
                stretches = between_pauses(waveform, sample_rate)
            except (ValueError, OSError):
                stretches = []
            yield from [replace(clip, stretch=stretch) for stretch in stretches] or [clip]

    clips = Index.of(cut_out()).sorted()
    log.info("%d recordings cut at their pauses into %d clips", len(listing.clips), len(clips))
    return replace(listing, clips=clips)


def between_pauses(waveform: Waveform, sample_rate: int) -> list[tuple[float, float]]:
    """Returns begin and end, in seconds, of the words in float32 [samples] that are separated by pauses."""
    hop = sample_rate // 100
    sounding = np.flatnonzero(loudness(waveform, hop) > 0)
    if sounding.size == 0:
        return []
    breaks = np.flatnonzero(np.diff(sounding) > LONGEST_GAP * 100)
    firsts = sounding[np.concatenate(([0], breaks + 1))]
    lasts = sounding[np.concatenate((breaks, [sounding.size - 1]))] + 1
    length = waveform.size / sample_rate
    return [
        (round(max(0.0, first / 100 - MARGIN), 3), round(min(length, last / 100 + MARGIN), 3))
        for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True)
        if last - first >= SHORTEST * 100
    ]


def describe_length(listing: Listing) -> str:
    """Returns how long all clips are, as in ", 1.2 hours": an estimate from some of them; empty if it is not known."""
    import soundfile

    clips = listing.clips
    some = clips[:: -(-len(clips) // SAMPLE)] if clips else []
    seconds = []
    for clip in some:
        if clip.stretch is not None:
            seconds.append(clip.stretch[1] - clip.stretch[0])
            continue
        unknown = contextlib.suppress(ValueError, OSError, TypeError, soundfile.LibsndfileError)
        with unknown:
            source = recording(listing.folder, clip)
            opened = io.BytesIO(source) if isinstance(source, bytes) else str(source)
            seconds.append(float(soundfile.info(opened).duration))
    if not seconds:
        return ""
    minutes = len(clips) * float(np.mean(seconds)) / 60
    length = f"{minutes / 60:.1f} hours" if minutes >= 60 else f"{minutes:.1f} minutes"
    return f", {'about ' if len(some) < len(clips) else ''}{length}"
