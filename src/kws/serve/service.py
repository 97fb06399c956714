"""The part of the server that does not depend on the protocol: model, batches and metrics."""

import asyncio
import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from importlib.metadata import version
from pathlib import Path
from typing import Any

import prometheus_client

from kws.config import ServeConfig
from kws.cores import num_cores
from kws.model.detector import Detector
from kws.serve import protocol
from kws.serve.batching import Batcher
from kws.serve.drift import Drift
from kws.serve.models import Models, Served
from kws.serve.page.heard import Heard
from kws.serve.page.socket import Watcher
from kws.serve.protocol import Call, Output, Refused
from kws.serve.shadow import Shadow


@dataclass
class Observed:
    """The result of a request, for the metrics."""

    status: str = "500"
    version: str = ""
    """The version that answered; empty if none did."""


class Service:
    """Handles requests of any protocol: holds the model, forms batches and counts metrics."""

    def __init__(self, models: Models, config: ServeConfig, shadow: Models | None = None) -> None:
        """Takes the holders of the served model, and of the version that hears the same and answers nobody."""
        self.models = models
        self.config = config
        self.num_threads = config.num_threads or num_cores()
        self.batcher = Batcher(num_threads=self.num_threads, max_batch=config.max_batch, max_waiting=config.max_waiting)
        self.draining = False
        self.registry = prometheus_client.CollectorRegistry()
        self._measure()
        self.drift = Drift(model_name=config.model_name, registry=self.registry, versions=self._versions)
        self.shadow = shadow and Shadow(
            shadow,
            model_name=config.model_name,
            registry=self.registry,
            drift=self.drift,
            is_free=lambda: self.batcher.is_free,
            heard=Heard(Path(config.collect)) if config.keep_heard else None,
        )

    def _versions(self) -> list[Served]:
        holders = [self.models, *([self.shadow.models] if self.shadow else [])]
        return [holder.current for holder in holders if holder.current is not None]

    def watch(self, served: Served, detector: Detector, speaker: str) -> Sequence[Watcher]:
        """Returns who watches a stream, see `kws.serve.page.socket.Watch`."""
        return [self.drift.stream(served), *([self.shadow.stream(served, detector, speaker)] if self.shadow else [])]

    def close(self) -> None:
        """Stops following versions, and waits for the batches in progress."""
        self.models.close()
        if self.shadow:
            self.shadow.close()
        self.batcher.close()

    def _measure(self) -> None:
        registry = self.registry
        prometheus_client.ProcessCollector(registry=registry)
        self._requests = prometheus_client.Counter(
            "kws_requests", "Requests for inference", ["model", "version", "protocol", "status"], registry=registry
        )
        self._seconds = prometheus_client.Histogram(
            "kws_request_seconds",
            "Time from the complete request to its answer",
            ["model", "version", "protocol"],
            registry=registry,
            buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5),
        )
        self.batcher.batch_sizes = prometheus_client.Histogram(
            "kws_batch_clips", "Clips per batch", registry=registry, buckets=(1, 2, 4, 8, 16, 32, 64)
        )
        self._words = prometheus_client.Counter(
            "kws_words", "Recognized words", ["model", "version", "word"], registry=registry
        )
        waiting = prometheus_client.Gauge("kws_waiting_clips", "Clips in the queue", registry=registry)
        waiting.set_function(lambda: self.batcher.num_waiting)
        swaps = prometheus_client.Gauge("kws_model_swaps", "Changes of the model", registry=registry)
        swaps.set_function(lambda: self.models.num_swaps)
        refused = prometheus_client.Gauge("kws_models_refused", "Champions that could not be loaded", registry=registry)
        refused.set_function(lambda: self.models.num_refused)
        self._info = prometheus_client.Gauge(
            "kws_model_info", "1 for the version that is served", ["model", "version"], registry=registry
        )
        self._shadow_info = prometheus_client.Gauge(
            "kws_shadow_info", "1 for the version in the shadow", ["model", "version"], registry=registry
        )

    def metrics(self) -> bytes:
        """Returns all metrics in Prometheus' text format."""
        for info, models in ((self._info, self.models), (self._shadow_info, self.shadow and self.shadow.models)):
            info.clear()
            if models and (served := models.current) is not None:
                info.labels(model=self.config.model_name, version=served.version).set(1)
        return prometheus_client.generate_latest(self.registry)

    @contextlib.contextmanager
    def observe(self, protocol_: str) -> Iterator[Observed]:
        """Counts and times a request; the block sets the status of what it yields."""
        observed = Observed()
        started = time.perf_counter()
        try:
            yield observed
        finally:
            labels = {"model": self.config.model_name, "version": observed.version, "protocol": protocol_}
            self._requests.labels(**labels, status=observed.status).inc()
            self._seconds.labels(**labels).observe(time.perf_counter() - started)

    @property
    def is_ready(self) -> bool:
        """Whether a model is loaded and the server is not about to stop."""
        return self.models.current is not None and not self.draining

    def metadata(self) -> dict[str, Any]:
        """Describes the server."""
        return {"name": "kws", "version": version("kws"), "extensions": list(protocol.EXTENSIONS)}

    def require_name(self, name: str) -> None:
        """Raises Refused unless `name` is that of the served model."""
        if name != self.config.model_name:
            raise Refused(f"model must be {self.config.model_name}, got {name!r}", HTTPStatus.NOT_FOUND)

    def served(self, name: str, wanted: str = "") -> Served:
        """Returns the model that is served, if a request names it and its version; without a version, any.

        Raises:
            Refused: another model or version is served, or none yet.
        """
        self.require_name(name)
        served = self.models.current
        if served is None:
            raise Refused(
                f"the server must have a model, got none: {self.models.why_none}", HTTPStatus.SERVICE_UNAVAILABLE
            )
        if wanted not in ("", served.version):
            raise Refused(
                f"version must be {served.version}, the one that is served, got {wanted!r}", HTTPStatus.NOT_FOUND
            )
        return served

    async def infer(self, call: Call, served: Served) -> list[Output]:
        """Returns the outputs of a request, computed by a version of the model.

        Raises:
            Refused: the input is not valid, or too many clips are waiting.
        """
        slow = call.inputs and (call.inputs[0].datatype == "BYTES" or call.inputs[0].raw is None)
        if slow:  # decoding audio files and lists of numbers takes milliseconds
            waveforms = await asyncio.to_thread(protocol.waveforms_of, call, served, self.config)
        else:
            waveforms = protocol.waveforms_of(call, served, self.config)
        probabilities = await self.batcher.predict(served, waveforms)
        for best in probabilities.argmax(axis=1).tolist():
            self._words.labels(
                model=self.config.model_name, version=served.version, word=served.recognizer.words[best]
            ).inc()
        self.drift.clips(served.version, waveforms, probabilities)
        if self.shadow:
            self.shadow.clips(served, waveforms, probabilities)
        return protocol.outputs_of(call, served, probabilities)
