"""The WebSocket of the page, which takes samples and returns probabilities and detections.

The client first sends {"rate": 16000} and receives hello, with version, words and thresholds. It then sends samples,
16-bit little-endian mono, in binary messages of any length, and receives {"type": "heard"} ten times per second of
sound, and {"type": "detection"}. At any time it may send {"thresholds": {word: probability}}, or {"finish": true}, upon
which it receives {"type": "finished"} and the stream starts over. When another model becomes champion, hello is sent
again.

If there is a gate, hello says after which word and for how many seconds the others are reported, and "heard" for how
many they yet are. With {"armed": [words]} only these words are reported, whether the gate is open or not, until
{"armed": null}: a timer that rings arms "stop".

If the server keeps what it hears, hello has "keeps": true, a detection the name under which its sound is kept, and
{"missed": word} keeps the last seconds, which is answered with {"type": "kept", "name"}; see heard.py.

A connection counts as a stream from its first samples to `finish`, or until none have come for a while: a page that is
only open takes no one's place, and stays open as long as it likes.

Messages are processed one after the other, so that TCP's back-pressure slows down a client that sends faster than the
model computes.
"""

import asyncio
import base64
import json
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from starlette.websockets import WebSocket, WebSocketDisconnect

from kws.model.detector import Detector, Floats, Thresholds, Window, reported
from kws.model.page import hello
from kws.serve.models import Served
from kws.serve.page.heard import Heard, Keeper, Pcm

MOST_BYTES = 1 << 18
"""Largest size of a message: 8 s of sound."""

PATIENCE_SECONDS = 60.0
"""Seconds to wait for the first message, and without samples after which a connection no longer counts as a stream."""

LOOK_SECONDS = 1.0
"""How often a connection on which nothing comes looks for another champion."""

UNSUPPORTED, TRY_AGAIN = 1003, 1013
"""Close codes: for an invalid message; for too many streams, or no model yet."""


class Watcher(Protocol):
    """Is told what a stream brings, beside what is answered; it must neither block nor raise."""

    def hear(self, pcm: Pcm, windows: Sequence[Window]) -> None:
        """Takes samples, int16 [any], and the windows that they completed."""

    def finish(self, windows: Sequence[Window]) -> None:
        """Takes the last windows of a stream that has come to its end."""


Watch = Callable[[Served, Detector, str], Sequence[Watcher]]
"""Returns who watches a stream, given its model, its detector and the number of its speaker."""


def nobody(model: Served, detector: Detector, speaker: str) -> Sequence[Watcher]:
    """Watches no stream."""
    return ()


class _Full(Exception):
    """Raised if there are as many streams as are allowed, or no model."""


class Listener:
    """Handles WebSocket connections, up to a maximum number of streams at the same time."""

    def __init__(
        self, current: Callable[[], Served | None], most_streams: int, heard: Heard | None = None, watch: Watch = nobody
    ) -> None:
        self.current = current
        self.most_streams = most_streams
        self.heard = heard
        self.watch = watch
        self.streams: dict[WebSocket, float] = {}
        """When samples last came, by connection."""

    async def __call__(self, socket: WebSocket) -> None:
        """Handles a connection."""
        await socket.accept()
        try:
            await self._talk(socket)
        except WebSocketDisconnect:
            pass
        except ValueError as error:
            await _refuse(socket, UNSUPPORTED, str(error))
        except _Full as full:
            await _refuse(socket, TRY_AGAIN, f"{full}; try later")
        except TimeoutError:
            await _refuse(socket, TRY_AGAIN, f"rate must be the first message, got none for {PATIENCE_SECONDS:g} s")
        finally:
            self.streams.pop(socket, None)

    def _count(self, socket: WebSocket) -> None:
        """Counts a connection as a stream, unless there are enough that are in use."""
        since = time.monotonic() - PATIENCE_SECONDS
        in_use = [one for one, last in self.streams.items() if last > since]
        if socket not in in_use and len(in_use) >= self.most_streams:
            raise _Full(f"the server must have fewer than {self.most_streams} streams")
        self.streams[socket] = time.monotonic()

    async def _talk(self, socket: WebSocket) -> None:
        model = self.current()
        if model is None:
            raise _Full("the server must have a model, got none yet")
        rate = model.recognizer.features.sample_rate
        hello = await asyncio.wait_for(_receive(socket), PATIENCE_SECONDS)
        if not isinstance(hello, dict) or hello.get("rate") != rate:
            got = hello.get("rate") if isinstance(hello, dict) else type(hello).__name__
            raise ValueError(f"rate in the first message must be {rate}, as in {{'rate': {rate}}}, got {got!r}")
        offset, odd, speaker = 0.0, b"", os.urandom(4).hex()
        detector, keeper, watchers = self._begin(model, speaker)
        armed: list[str] | None = None
        await socket.send_json(_hello(model, armed, keeps=keeper is not None))
        message: bytes | dict[str, Any] | None
        while True:
            try:
                message = await asyncio.wait_for(_receive(socket), LOOK_SECONDS)
            except TimeoutError:
                message = None
            now = self.current()
            if now is not None and now is not model:  # another champion, whose times continue those of the one before
                offset += detector.samples / rate
                model = now
                detector, keeper, watchers = self._begin(model, speaker)
                if armed is not None:  # those that the new model knows
                    armed = [word for word in armed if word in reported(model.recognizer.words)]
                detector.hold(armed)
                await socket.send_json(_hello(model, armed, keeps=keeper is not None))
            if message is None:
                continue
            if isinstance(message, bytes):
                self._count(socket)
                data = odd + message
                odd = data[len(data) // 2 * 2 :]
                pcm = np.frombuffer(data[: len(data) // 2 * 2], "<i2")
                found = await asyncio.to_thread(_feed, detector, pcm, keeper)
                for heard, frames, kept in found:
                    await _send(socket, heard, offset, frames, kept)
                for watcher in watchers:
                    watcher.hear(pcm, [heard for heard, _, _ in found])
            elif "thresholds" in message:
                given = Thresholds.from_json({"thresholds": message["thresholds"]}, model.recognizer.words)
                detector.set_thresholds(given.thresholds)
            elif "armed" in message:
                armed = _armed(message["armed"])
                detector.hold(armed)
            elif "missed" in message:
                if keeper is None or not isinstance(message["missed"], str):
                    raise ValueError("missed must be a word, of a server that was started with --keep-heard")
                name = await asyncio.to_thread(keeper.missed, message["missed"][:60])
                await socket.send_json({"type": "kept", "name": name})
            elif message.get("finish"):
                last = await asyncio.to_thread(detector.finish)
                for heard in last:
                    await _send(socket, heard, offset, None, keeper.step(heard) if keeper else "")
                for watcher in watchers:
                    watcher.finish(last)
                self.streams.pop(socket, None)
                await socket.send_json({"type": "finished"})
                thresholds, offset, odd = detector.thresholds, 0.0, b""
                detector, keeper, watchers = self._begin(model, speaker)
                detector.set_thresholds(thresholds)
                detector.hold(armed)
            else:
                got = ", ".join(message) or "nothing"
                raise ValueError(f"a message must have thresholds, armed, missed or finish, got {got}")

    def _begin(self, model: Served, speaker: str) -> tuple[Detector, Keeper | None, Sequence[Watcher]]:
        """Begins a stream; returns what hears it, what keeps its sounds, and who watches it."""
        detector, rate = Detector(model.recognizer, model.thresholds), model.recognizer.features.sample_rate
        keeper = Keeper(self.heard, detector, model.version, rate, speaker) if self.heard else None
        return detector, keeper, self.watch(model, detector, speaker)


def _hello(model: Served, armed: list[str] | None, *, keeps: bool) -> dict[str, Any]:
    about = hello(model.recognizer, model.thresholds, model.version)
    return {"type": "hello", **about, "armed": armed, "keeps": keeps}


def _armed(words: Any) -> list[str] | None:
    if words is None or (isinstance(words, list) and all(isinstance(word, str) for word in words)):
        return words
    raise ValueError(f"armed must be a list of words, or null for all, got {str(words)[:40]!r}")


def _feed(detector: Detector, pcm: Any, keeper: Keeper | None) -> list[tuple[Window, bytes, str]]:
    """Feeds samples one hop at a time; returns each window, its new frames, and the name of its sound if it is kept."""
    found: list[tuple[Window, bytes, str]] = []
    hop = detector.hop_samples
    for first in range(0, pcm.size, hop):
        piece = pcm[first : first + hop]
        if keeper is not None:
            keeper.add(piece)
        if windows := detector.feed(piece / np.float32(32768)):
            for heard, part in zip(windows, np.array_split(detector.newest_frames, len(windows)), strict=True):
                found.append((heard, _picture(part, detector), keeper.step(heard) if keeper else ""))
    return found


def _picture(frames: Floats, detector: Detector) -> bytes:
    """Returns frames as bytes, [frames, num_mels]; 0 is a mel power of 1e-6, 255 one of 1,000."""
    frames = frames / np.float32(np.log(10)) if detector.is_log else np.log10(frames + np.float32(1e-6))
    return ((frames + 6) * (255 / 9)).clip(0, 255).astype(np.uint8).tobytes()


async def _send(socket: WebSocket, heard: Window, offset: float, frames: bytes | None, kept: str) -> None:
    message: dict[str, Any] = {
        "type": "heard",
        "time": round(heard.time + offset, 3),
        "probabilities": [round(float(value), 4) for value in heard.probabilities],
    }
    if heard.open_seconds > 0:
        message["open_seconds"] = round(heard.open_seconds, 3)
    if frames is not None:
        message["frames"] = base64.b64encode(frames).decode()
    await socket.send_json(message)
    if heard.detection is not None:
        one = heard.detection
        await socket.send_json(
            {
                "type": "detection",
                "time": round(one.time + offset, 3),
                "word": one.word,
                "probability": round(one.probability, 4),
                "begin": round(one.begin + offset, 3),
                "end": round(one.end + offset, 3),
            }
            | ({"kept": kept} if kept else {})
        )


async def _receive(socket: WebSocket) -> bytes | dict[str, Any]:
    """Returns the next message.

    Raises:
        ValueError: the message is too long, or neither binary nor a JSON object.
        WebSocketDisconnect: the client closed the connection.
    """
    message = await socket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1000))
    content = message.get("bytes")
    if content is None:
        content = message.get("text") or ""
    if len(content) > MOST_BYTES:
        raise ValueError(f"a message must have at most {MOST_BYTES} bytes, got {len(content)}")
    if isinstance(content, bytes):
        return content
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        raise ValueError(f"a message must be JSON or samples, got {content[:40]!r}") from None
    if not isinstance(found, dict):
        raise ValueError(f"a message must be a JSON object, got {content[:40]!r}")
    return found


async def _refuse(socket: WebSocket, code: int, reason: str) -> None:
    """Sends an error and closes the connection, which the client may have closed already."""
    try:
        await socket.send_json({"type": "error", "error": reason})
        await socket.close(code)
    except (WebSocketDisconnect, RuntimeError):
        pass
