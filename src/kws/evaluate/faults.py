"""False alarms and misses to listen to: for each of them a few seconds of sound, and what the model made of it.

A report can hold the sound of some thousand of them at most. `MOST_BYTES` bounds it; then false alarms come first, and
misses evenly from all noise levels and words. Those without sound are listed all the same.
"""

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import soundfile
import soxr
import torch

from kws import plots
from kws.evaluate.outcomes import FAULT_SECONDS, Fault
from kws.evaluate.script import Said
from kws.evaluate.streams import StreamReport
from kws.files import human_bytes
from kws.model.detector import Thresholds
from kws.preprocess.audio import Waveform
from kws.preprocess.features import MelSpectrogram, mel_spectrogram
from kws.progress import progress

MOST_BYTES = 6_000_000
"""Bytes of sounds and pictures in the report of a run, which Kubeflow's page loads as a whole."""

LEAST_BYTES = 14_000
"""What sound and picture of a fault take at least; so many are rendered that these would fill the bound."""

MP3_RATE = 16_000
"""Sample rate of the sounds, as MP3 has a few rates only."""

PEAK = 0.7
"""Highest amplitude of a sound: all are equally loud, as levels mean nothing in streams."""

LETTERS = 60
"""Most letters of a sentence that are shown before and after what is heard."""


def describe_faults(
    reports: Sequence[StreamReport], thresholds: Thresholds, most_bytes: int = MOST_BYTES
) -> dict[str, Any]:
    """Describes all false alarms and misses of an evaluation in streams, for `faults.html.jinja`.

    `most_bytes` bounds the sounds and pictures, as they are embedded.

    Returns:
        The rows as JSON, how many have sound, and the bound in words.
    """
    chosen = _choose(reports, most_bytes // LEAST_BYTES)
    heard: dict[tuple[int, int], dict[str, str]] = {}
    with progress(len(chosen), "stretches", "false alarms and misses") as bar:
        for level, report in enumerate(reports):
            mel = mel_spectrogram(report.script.features)
            places = [place for which, place in chosen if which == level]
            begins = [report.faults[place].begin for place in places]
            for place, sound in zip(places, report.script.cut(report.snr_db, begins, FAULT_SECONDS), strict=True):
                heard[level, place] = _show(sound, mel)
                bar.update()
    left = most_bytes
    embedded: dict[tuple[int, int], dict[str, str]] = {}
    for key in chosen:
        left -= sum(map(len, heard[key].values()))
        if left < 0:
            break
        embedded[key] = heard[key]
    rows = [
        _row(report, fault, thresholds) | embedded.get((level, place), {"sound": "", "picture": ""})
        for level, report in enumerate(reports)
        for place, fault in enumerate(report.faults)
    ]
    return {
        "rows": rows,
        "seconds": FAULT_SECONDS,
        "num_heard": len(embedded),
        "bound": human_bytes(most_bytes),
        "num_false_alarms": sum(row["alarm"] for row in rows),
    }


def _choose(reports: Sequence[StreamReport], number: int) -> list[tuple[int, int]]:
    """Returns noise level and index of those to hear: false alarms first, then misses of levels and words in turns."""
    seen: Counter[tuple[bool, int, str]] = Counter()
    ranks = []
    for level, report in enumerate(reports):
        for place, fault in enumerate(report.faults):
            group = (fault.is_alarm, level, fault.word)
            ranks.append((not fault.is_alarm, seen[group], level, place))
            seen[group] += 1
    return [(level, place) for _, _, level, place in sorted(ranks)[:number]]


def _show(sound: Waveform, mel: MelSpectrogram) -> dict[str, str]:
    """Returns a sound and its spectrogram as data URIs."""
    buffer = io.BytesIO()
    heard = soxr.resample(sound, mel.config.sample_rate, MP3_RATE)
    heard *= np.float32(PEAK / max(float(np.abs(heard).max()), 1e-3))
    soundfile.write(
        buffer, heard, MP3_RATE, format="MP3", subtype="MPEG_LAYER_III", bitrate_mode="VARIABLE", compression_level=0.7
    )
    features = mel(torch.from_numpy(sound)[None])[0].float()
    loudness = features if mel.config.log else (features + 1e-6).log()
    return {
        "sound": plots.data_uri(buffer.getvalue(), "audio/mpeg"),
        "picture": plots.data_uri(plots.strip(loudness), "image/webp"),
    }


def _row(report: StreamReport, fault: Fault, thresholds: Thresholds) -> dict[str, Any]:
    """Returns a fault as JSON; scores in thousandths."""
    return {
        "level": f"{report.snr_db:g} dB",
        "alarm": fault.is_alarm,
        "cause": fault.cause,
        "word": fault.word,
        "probability": round(fault.probability, 4),
        "time": round(fault.time, 2),
        "begin": round(fault.begin, 2),
        "times": [round(float(time), 3) for time in (fault.times[0], fault.times[-1])] if fault.times.size else [],
        "scores": [
            {
                "word": word,
                "threshold": round(thresholds.thresholds[word], 4) if word in thresholds.thresholds else 2,
                "values": (1000 * scores).round().astype(int).tolist(),
            }
            for word, scores in fault.scores.items()
        ],
        "said": [_said(one, fault.begin) for one in report.script.said(fault.begin, fault.begin + FAULT_SECONDS)],
    }


def _said(one: Said, begin: float) -> Mapping[str, Any]:
    before = one.before if len(one.before) <= LETTERS else "…" + one.before[-LETTERS:]
    after = one.after if len(one.after) <= LETTERS else one.after[:LETTERS] + "…"
    return {
        "begin": round(one.begin - begin, 2),
        "end": round(one.end - begin, 2),
        "kind": one.kind,
        "text": [before, one.text, after],
        "source": one.source,
    }
