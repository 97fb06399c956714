"""Metrics that show whether a version still hears what it was tested on, beside the same of its test split."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import prometheus_client
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.utils import floatToGoString

from kws.model.detector import Floats, Window
from kws.model.distribution import CONFIDENCE_BOUNDS, LEVEL_BOUNDS, Distribution, levels
from kws.preprocess.audio import Waveform
from kws.serve.models import Served
from kws.serve.page.heard import Pcm

REQUEST, STREAM = "request", "stream"
"""Values of the label source."""

CONFIDENCE, LEVEL = "Highest probability of a clip", "Level of a clip in dBFS"


class Drift:
    """Counts what versions hear, and how sure they are."""

    def __init__(
        self,
        *,
        model_name: str,
        registry: prometheus_client.CollectorRegistry,
        versions: Callable[[], Iterable[Served]],
    ) -> None:
        """Registers the metrics; `versions` returns those whose test split is shown."""
        self._name = model_name
        self._versions = versions
        labels = ["model", "version", "source"]
        self._confidence = prometheus_client.Histogram(
            "kws_confidence",
            f"{CONFIDENCE}, or of a detection in a stream",
            labels,
            registry=registry,
            buckets=CONFIDENCE_BOUNDS,
        )
        self._level = prometheus_client.Histogram(
            "kws_input_level_dbfs",
            f"{LEVEL}, or of a second of a stream",
            labels,
            registry=registry,
            buckets=LEVEL_BOUNDS,
        )
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """Yields what the test split of each version had."""
        labels = ["model", "version"]
        confidence = HistogramMetricFamily("kws_test_confidence", f"{CONFIDENCE}, on the test split", labels=labels)
        level = HistogramMetricFamily("kws_test_input_level_dbfs", f"{LEVEL}, on the test split", labels=labels)
        words = GaugeMetricFamily("kws_test_words", "Words recognized on the test split", labels=[*labels, "word"])
        for served in self._versions():
            named = [self._name, served.version]
            for family, field in ((confidence, "confidence"), (level, "level_dbfs")):
                if (found := Distribution.from_json(served.test.get(field))) is not None:
                    family.add_metric(named, _cumulative(found), found.total)
            for word, num_clips in served.test.get("recognized", {}).items():
                words.add_metric([*named, word], num_clips)
        return confidence, level, words

    def clips(self, version: str, waveforms: Waveform, probabilities: Floats) -> None:
        """Takes clips, float32 [clips, samples], and what a version made of them, float32 [clips, words]."""
        for confidence in probabilities.max(axis=1).tolist():
            self._confidence.labels(self._name, version, REQUEST).observe(confidence)
        for level in levels(waveforms).tolist():
            self._level.labels(self._name, version, REQUEST).observe(level)

    def stream(self, served: Served) -> "Stream":
        """Begins a stream that a version hears."""
        rate = served.recognizer.features.sample_rate
        named = (self._name, served.version, STREAM)
        return Stream(rate, self._confidence.labels(*named), self._level.labels(*named))


class Stream:
    """Counts one stream: the level of each second, and the probability of each detection."""

    def __init__(self, rate: int, confidence: Any, level: Any) -> None:
        self._rate, self._confidence, self._level = rate, confidence, level
        self._rest = np.zeros(0, np.int16)

    def hear(self, pcm: Pcm, windows: Sequence[Window]) -> None:
        """Takes samples, int16 [any], and the windows that they completed."""
        pcm = np.concatenate((self._rest, pcm))
        whole = pcm.size // self._rate * self._rate
        for level in levels(pcm[:whole].reshape(-1, self._rate).astype(np.float32) / np.float32(32768)).tolist():
            self._level.observe(level)
        self._rest = pcm[whole:]
        self.finish(windows)

    def finish(self, windows: Sequence[Window]) -> None:
        """Takes the last windows of the stream."""
        for window in windows:
            if window.detection is not None:
                self._confidence.observe(window.detection.probability)


def _cumulative(found: Distribution) -> list[tuple[str, float]]:
    """Returns the counts up to each bound, as Prometheus has them."""
    bounds = [*map(floatToGoString, found.bounds), "+Inf"]
    return list(zip(bounds, np.cumsum(found.counts).tolist(), strict=True))
