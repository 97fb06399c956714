"""The routes of the page: static files, the WebSocket, recordings, and the review of what was heard.

Their errors are JSON with a sentence, {"error": …}.
"""

import asyncio
import dataclasses
import datetime
import importlib.resources
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from pathlib import Path

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute

from kws.model import page
from kws.model.detector import reported
from kws.preprocess.audio import TooLong, read_bytes
from kws.serve.models import Served
from kws.serve.page.collection import OTHER, Collection
from kws.serve.page.heard import Heard
from kws.serve.page.socket import Listener, Watch, nobody
from kws.serve.protocol import Refused

MOST_BYTES = 1 << 20
"""Largest size of an uploaded recording; a second of sound has 32 kB."""

MOST_LISTED = 500
"""Largest number of sounds that the page lists at once, the newest first."""

MOST_FILE_BYTES = 32 << 20
"""Largest size of a file that the page sends to be decoded."""

MOST_FILE_SECONDS = 600.0
"""Longest recording that is decoded for the page."""

KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}

SECURITY = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "media-src 'self' blob:; connect-src 'self' ws: wss:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "permissions-policy": "microphone=(self)",
    "cache-control": "no-cache",
}


def router(
    current: Callable[[], Served | None],
    collect: Path | None = None,
    most_streams: int = 64,
    data_root: Path | None = None,
    keep_heard: bool = False,
    watch: Watch = nobody,
) -> APIRouter:
    """Returns the routes of the page: /, /review, /page/…, /listen, /decode, /card, /collection/…, /heard/….

    `current` returns the model that is served, if there is one yet. Without `collect`, recordings are refused; with
    `keep_heard`, what streams hear is kept there for review. `data_root` is that of the champion, if one is served.

    Raises:
        OSError: the folder cannot be created.
    """
    collection = Collection(collect) if collect is not None else None
    heard = Heard(collect) if collect is not None and keep_heard else None
    files = importlib.resources.files("kws.serve.page") / "static"
    static = {entry.name: entry.read_bytes() for entry in files.iterdir() if Path(entry.name).suffix in KINDS}
    static["curve.js"] = importlib.resources.files("kws").joinpath("curve.js").read_bytes()  # the report has it, too

    def send(name: str) -> Response:
        return Response(static[name], media_type=KINDS[Path(name).suffix], headers=SECURITY)

    async def index(request: Request) -> Response:
        return send("index.html")

    async def review_page(request: Request) -> Response:
        return send("review.html")

    async def file(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in static:
            raise FileNotFoundError(f"the page has no file {name[:80]!r}")
        return send(name)

    async def card(request: Request) -> Response:
        model = _require_model(current())
        return JSONResponse(page.card(model.recognizer, model.version, model.card))

    async def decode(request: Request) -> Response:
        """Decodes a file that the browser cannot: samples, float32 [any]."""
        content = await _body(request, "application/octet-stream", MOST_FILE_BYTES)
        rate = _require_model(current()).recognizer.features.sample_rate
        try:
            samples = await asyncio.to_thread(read_bytes, content, rate, MOST_FILE_SECONDS)
        except TooLong as error:
            sentence = f"the recording must last at most {MOST_FILE_SECONDS:g} s, got more"
            raise Refused(sentence, HTTPStatus.REQUEST_ENTITY_TOO_LARGE) from error
        return Response(samples.astype("<f4").tobytes(), media_type="application/octet-stream")

    def kept() -> Collection:
        if collection is None:
            raise FileNotFoundError("recordings are kept only by a server that was started with --collect DIR")
        return collection

    async def listing(request: Request) -> Response:
        model = current()
        command = kept().command(data_root, model.recognizer.about if model else {})
        return JSONResponse(kept().summary() | {"command": command, "follows": data_root is not None})

    async def add(request: Request) -> Response:
        folder, content = kept(), await _body(request, "audio/wav", MOST_BYTES)
        features = _require_model(current()).recognizer.features
        clip = folder.add(request.path_params["word"], request.query_params.get("speaker", ""), content, features)
        return JSONResponse({"clip": clip}, 201)

    async def play(request: Request) -> Response:
        return _wav(kept().path(request.path_params["word"], request.path_params["name"]))

    async def delete(request: Request) -> Response:
        kept().delete(request.path_params["word"], request.path_params["name"])
        return Response(status_code=204)

    recording = "/collection/{word:path}/{name}"  # a word may have a slash in it
    return APIRouter(
        routes=[
            _route("/", index),
            _route("/review", review_page),
            _route("/page/{name}", file),
            _route("/decode", decode, "POST"),
            _route("/card", card),
            _route("/collection", listing),
            _route("/collection/{word:path}", add, "POST"),
            _route(recording, play),
            _route(recording, delete, "DELETE"),
            *_review(current, heard, collection),
            WebSocketRoute("/listen", Listener(current, most_streams, heard, watch).__call__),
        ]
    )


async def _body(request: Request, kind: str, most: int) -> bytes:
    """Reads the body of a request; raises Refused if it is of another type or has more bytes than `most`."""
    _require_type(request, "the recording", kind)
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > most:
            sentence = f"the recording must have at most {most} bytes, got more"
            raise Refused(sentence, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
    return bytes(content)


def _review(current: Callable[[], Served | None], heard: Heard | None, collection: Collection | None) -> list[Route]:
    """Returns the routes /heard and /heard/NAME, to hear what was kept, and to confirm it as a word or delete it."""

    def here() -> tuple[Heard, Collection]:
        if heard is None or collection is None:
            raise FileNotFoundError(
                "what is heard is kept only by a server that was started with --collect DIR --keep-heard"
            )
        return heard, collection

    async def listing(request: Request) -> Response:
        kept, _ = here()
        model, found = current(), kept.sounds()
        words = reported(model.recognizer.words) if model else []
        rows = [dataclasses.asdict(sound) for sound in found[:MOST_LISTED]]
        return JSONResponse({"sounds": rows, "total": len(found), "words": [*words, OTHER]})

    async def play(request: Request) -> Response:
        return _wav(here()[0].sound(request.path_params["name"]))

    async def review(request: Request) -> Response:
        """Confirms a sound as a word, or marks it: {"word": …} or {"kind": …}."""
        kept, recordings = here()
        _require_type(request, "the request", "application/json")
        said, name = await request.json(), request.path_params["name"]
        if not isinstance(said, dict) or not isinstance(said.get("word", said.get("kind")), str):
            raise ValueError(f"the request must have word or kind, got {str(said)[:80]}")
        if "word" not in said:
            kept.mark(name, said["kind"])
            return Response(status_code=204)
        features = _require_model(current()).recognizer.features
        return JSONResponse({"clip": kept.confirm(name, said["word"], recordings, features)}, 201)

    async def delete(request: Request) -> Response:
        here()[0].delete(request.path_params["name"])
        return Response(status_code=204)

    async def delete_before(request: Request) -> Response:
        day = datetime.date.fromisoformat(request.query_params.get("before", ""))
        return JSONResponse({"deleted": here()[0].delete_before(day)})

    one = "/heard/{name}"
    return [
        _route("/heard", listing),
        _route("/heard", delete_before, "DELETE"),
        _route(one, play),
        _route(one, review, "POST"),
        _route(one, delete, "DELETE"),
    ]


def _route(path: str, handler: Callable[[Request], Awaitable[Response]], method: str = "GET") -> Route:
    """Returns a route that answers the errors of a handler."""

    async def handle(request: Request) -> Response:
        try:
            return await handler(request)
        except Refused as error:
            status, sentence = error.status, str(error)
        except FileNotFoundError as error:
            status, sentence = HTTPStatus.NOT_FOUND, str(error)
        except ValueError as error:
            status, sentence = HTTPStatus.BAD_REQUEST, str(error)
        except OSError as error:
            status, sentence = HTTPStatus.INSUFFICIENT_STORAGE, f"the recording could not be kept: {error.strerror}"
        return JSONResponse({"error": sentence}, status)

    return Route(path, handle, methods=[method], include_in_schema=False)


def _require_model(model: Served | None) -> Served:
    """Returns the model; raises Refused if there is none yet."""
    if model is None:
        raise Refused("the server must have a model, got none yet", HTTPStatus.SERVICE_UNAVAILABLE)
    return model


def _require_type(request: Request, what: str, kind: str) -> None:
    """Raises Refused unless the body has a content type, other than those of forms.

    With it the browser sends a CORS preflight for pages of other origins, which is refused.
    """
    if request.headers.get("content-type") != kind:
        raise Refused(f"{what} must have the content-type {kind}", HTTPStatus.UNSUPPORTED_MEDIA_TYPE)


def _wav(path: Path) -> Response:
    """Returns a WAV file."""
    return Response(path.read_bytes(), media_type="audio/wav", headers={"cache-control": "no-store"})
