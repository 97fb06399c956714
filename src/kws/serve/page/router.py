"""The routes of the page: static files, the WebSocket and recordings."""

import asyncio
import importlib.resources
from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute

from kws.model import page
from kws.preprocess.audio import TooLong, read_bytes
from kws.serve.models import Served
from kws.serve.page import review
from kws.serve.page.collection import Collection
from kws.serve.page.heard import Heard
from kws.serve.page.socket import Listener, Watch, nobody

MOST_BYTES = 1 << 20
"""Largest size of an uploaded recording; a second of sound has 32 kB."""

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

NO_MODEL = "the server must have a model, got none yet"
TOO_LARGE = "the recording must have at most {} bytes, got more"

Handler = Callable[[Request], Awaitable[Response]]


def router(
    current: Callable[[], Served | None],
    collect: Path | None = None,
    most_streams: int = 64,
    data_root: Path | None = None,
    keep_heard: bool = False,
    watch: Watch = nobody,
) -> APIRouter:
    """Returns the routes of the page: /, /review, /page/…, /listen, /decode, /card, /collection/…, /heard/….

    Args:
        current: returns the model that is served, or None if there is none yet.
        collect: the folder in which to store recordings; None: recordings are refused.
        most_streams: largest number of WebSocket connections at the same time.
        data_root: the folder whose champion is served, or None.
        keep_heard: whether to keep in `collect` what streams hear, for review.
        watch: who watches each stream.

    Raises:
        OSError: the folder cannot be created.
    """
    collection = Collection(collect) if collect is not None else None
    heard = Heard(collect) if collect is not None and keep_heard else None
    folder = importlib.resources.files("kws.serve.page") / "static"
    static = {entry.name: entry.read_bytes() for entry in folder.iterdir() if Path(entry.name).suffix in KINDS}
    static["curve.js"] = importlib.resources.files("kws").joinpath("curve.js").read_bytes()  # the report has it, too

    def send(name: str) -> Response:
        return Response(static[name], media_type=KINDS[Path(name).suffix], headers=SECURITY)

    async def index(request: Request) -> Response:
        return send("index.html")

    async def review_page(request: Request) -> Response:
        return send("review.html")

    async def file(request: Request) -> Response:
        name = request.path_params["name"]
        return send(name) if name in static else _error(404, f"the page has no file {name[:80]!r}")

    async def card(request: Request) -> Response:
        model = current()
        if model is None:
            return _error(503, NO_MODEL)
        return JSONResponse(page.card(model.recognizer, model.version, model.card))

    async def decode(request: Request) -> Response:
        """Decodes a file that the browser cannot: samples, float32 [any]."""
        if request.headers.get("content-type") != "application/octet-stream":  # see `add`
            return _error(415, "the recording must have the content-type application/octet-stream")
        model, content = current(), await _body(request, MOST_FILE_BYTES)
        if model is None or content is None:
            return _error(*((503, NO_MODEL) if model is None else (413, TOO_LARGE.format(MOST_FILE_BYTES))))
        try:
            rate = model.recognizer.features.sample_rate
            samples = await asyncio.to_thread(read_bytes, content, rate, MOST_FILE_SECONDS)
        except TooLong:
            return _error(413, f"the recording must last at most {MOST_FILE_SECONDS:g} s, got more")
        except ValueError as error:
            return _error(400, str(error))
        return Response(samples.astype("<f4").tobytes(), media_type="application/octet-stream")

    def collecting(handler: Callable[[Request, Collection], Awaitable[Response]]) -> Handler:
        async def handle(request: Request) -> Response:
            if collection is None:
                raise FileNotFoundError("recordings are kept only by a server that was started with --collect DIR")
            return await handler(request, collection)

        return guarded(handle)

    def guarded(handler: Handler) -> Handler:
        async def handle(request: Request) -> Response:
            try:
                return await handler(request)
            except FileNotFoundError as error:
                return _error(404, str(error))
            except ValueError as error:
                return _error(400, str(error))
            except OSError as error:
                return _error(507, f"the recording could not be kept: {error.strerror}")

        return handle

    async def listing(request: Request, kept: Collection) -> Response:
        model = current()
        command = kept.command(data_root, model.recognizer.about if model else {})
        return JSONResponse(kept.summary() | {"command": command, "follows": data_root is not None})

    async def add(request: Request, kept: Collection) -> Response:
        # With this type the browser sends a CORS preflight for pages of other origins, which is refused.
        if request.headers.get("content-type") != "audio/wav":
            return _error(415, "the recording must have the content-type audio/wav")
        model, content = current(), await _body(request, MOST_BYTES)
        if model is None or content is None:
            return _error(*((503, NO_MODEL) if model is None else (413, TOO_LARGE.format(MOST_BYTES))))
        clip = kept.add(
            request.path_params["word"], request.query_params.get("speaker", ""), content, model.recognizer.features
        )
        return JSONResponse({"clip": clip}, 201)

    async def play(request: Request, kept: Collection) -> Response:
        path = kept.path(request.path_params["word"], request.path_params["name"])
        return Response(path.read_bytes(), media_type="audio/wav", headers={"cache-control": "no-store"})

    async def delete(request: Request, kept: Collection) -> Response:
        kept.delete(request.path_params["word"], request.path_params["name"])
        return Response(status_code=204)

    recording = "/collection/{word:path}/{name}"  # a word may have a slash in it
    return APIRouter(
        routes=[
            Route("/", index, include_in_schema=False),
            Route("/review", review_page, include_in_schema=False),
            Route("/page/{name}", file, include_in_schema=False),
            Route("/decode", decode, methods=["POST"], include_in_schema=False),
            Route("/card", card, include_in_schema=False),
            Route("/collection", collecting(listing), include_in_schema=False),
            Route("/collection/{word:path}", collecting(add), methods=["POST"], include_in_schema=False),
            Route(recording, collecting(play), methods=["GET"], include_in_schema=False),
            Route(recording, collecting(delete), methods=["DELETE"], include_in_schema=False),
            *review.routes(current, heard, collection, guarded),
            WebSocketRoute("/listen", Listener(current, most_streams, heard, watch).__call__),
        ]
    )


async def _body(request: Request, most: int) -> bytes | None:
    """Reads the body of a request; None if it has more bytes than `most`."""
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > most:
            return None
    return bytes(content)


def _error(status: int, sentence: str) -> Response:
    return JSONResponse({"error": sentence}, status)
