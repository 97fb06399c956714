"""The server: REST, gRPC, metrics and the page, for the model that `models.py` holds.

GET  /v2/health/live, /v2/health/ready      probes for Kubernetes
GET  /v2, /v2/models/kws                    metadata of the server and the model
POST /v2/models/kws/infer                   the Open Inference Protocol: see protocol.py
GET  /metrics                               Prometheus
GET  /docs                                  interactive documentation of these addresses
GET  /                                      the page; its WebSocket is /listen, its recordings are /collection
"""

import asyncio
import contextlib
import logging
import signal
import zlib
from collections.abc import AsyncIterator, Iterator, Mapping
from http import HTTPStatus
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import prometheus_client
import uvicorn
import uvloop
from fastapi import FastAPI, Request, Response
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kws.config import ServeConfig
from kws.model import versions
from kws.serve import grpc, models, protocol
from kws.serve.models import Models
from kws.serve.page.router import router
from kws.serve.protocol import Refused
from kws.serve.service import Service
from kws.settings import require

log = logging.getLogger(__name__)

Responses = dict[int | str, dict[str, Any]]
Name = Annotated[str, InPath(description="The model", examples=["kws"])]

MOST_JSON_ON_LOOP = 1 << 18
"""Largest JSON request in bytes that is parsed in the event loop; a larger one is parsed in a thread, so that others
need not wait for it."""
LINGER_S = 5.0
"""Longest time in seconds that the rest of a refused request's body is read and dropped."""


class Draining:
    """Middleware that makes clients reconnect to another server: closes connections while this one is stopping."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app = app
        self.service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one connection."""

        async def close_after(message: Message) -> None:
            if message["type"] == "http.response.start" and self.service.draining:
                message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
            await send(message)

        await self.app(scope, receive, close_after if scope["type"] == "http" else send)


class LingeringClose:
    """Middleware that lets clients see why they are refused before they have sent their whole body.

    A connection that is closed with bytes unread is reset, and the answer is lost with it. So the answer is sent, then
    what still comes of the body is read and dropped, for at most `LINGER_S`; then the connection may close (the
    `lingering_close` of nginx).
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one connection."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = {name.lower() for name, _ in scope["headers"]}
        unread = bool(headers & {b"content-length", b"transfer-encoding"}) and b"expect" not in headers

        async def read() -> Message:
            nonlocal unread
            message = await receive()
            unread = unread and message.get("more_body", False)
            return message

        async def answer(message: Message) -> None:
            if not unread or message["type"] != "http.response.body" or message.get("more_body", False):
                return await send(message)
            await send({**message, "more_body": True})
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LINGER_S):
                    while unread:
                        await read()
            await send({"type": "http.response.body"})

        await self.app(scope, read, answer)


async def _body(request: Request, config: ServeConfig) -> bytes:
    """Reads the body of a request, compressed with gzip or deflate or not; refuses one that exceeds the limit."""
    most = config.max_request_mib << 20
    too_large = Refused(
        f"the request must have at most {most} bytes (the server's --max-request-mib), got more",
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    )
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding not in ("identity", "gzip", "deflate"):
        raise Refused(
            f"content-encoding must be gzip, deflate or identity, got {encoding!r}", HTTPStatus.UNSUPPORTED_MEDIA_TYPE
        )
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > most:
        raise too_large
    inflate = None if encoding == "identity" else zlib.decompressobj(wbits=47)  # of gzip or zlib, whichever it is
    parts, size = [], 0
    async for part in request.stream():
        if inflate is not None:
            try:
                part = inflate.decompress(part, most + 1)
            except zlib.error as error:
                raise Refused(f"the request must be compressed with {encoding}, got {error}") from error
        parts.append(part)
        size += len(part)
        if size > most:
            raise too_large
    if inflate is not None and not inflate.eof:
        raise Refused(f"the request must be compressed with {encoding}, got a part of it")
    return b"".join(parts)


def create_app(service: Service) -> FastAPI:
    """Returns the HTTP application of a service."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(
        title="kws",
        version=version("kws"),
        summary="Spoken command words by the Open Inference Protocol, version 2",
        lifespan=lifespan,
        redoc_url=None,
    )
    app.add_middleware(Draining, service=service)
    app.add_middleware(LingeringClose)
    config = service.config

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        headers = {"retry-after": "1"} if error.status in (429, 503) else {}
        return JSONResponse({"error": str(error)}, error.status, headers)

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> Response:
        return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        sentence = f"{'.'.join(str(part) for part in first['loc'])} is not valid: {first['msg']}"
        return JSONResponse({"error": sentence}, 400)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return JSONResponse({"error": "the server failed; see its log"}, 500)

    errors: Responses = {
        400: _json("Invalid request", _ERROR),
        404: _json("No such model or version", _ERROR),
        503: _json("No model yet", _ERROR),
    }

    @app.get("/v2", tags=["server"], summary="Name, version and extensions of the server")
    async def server_metadata() -> dict[str, Any]:
        return service.metadata()

    @app.get("/v2/health/live", tags=["server"], summary="Whether the process is alive")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @app.get(
        "/v2/health/ready",
        tags=["server"],
        summary="Whether the server is ready for inference",
        responses={503: _json("Not ready", {"type": "object"})},
    )
    async def ready() -> Response:
        reason = "the server is stopping" if service.draining else service.models.why_none
        body = {"ready": service.is_ready} | ({} if service.is_ready else {"reason": reason})
        return JSONResponse(body, 200 if service.is_ready else 503)

    @app.get("/v2/models", tags=["model"], summary="Names of the models")
    async def list_models() -> dict[str, Any]:
        return {"models": [config.model_name]}

    @app.get("/v2/models/{name}", tags=["model"], summary="Inputs, outputs and words of the model", responses=errors)
    async def metadata(name: Name) -> dict[str, Any]:
        return protocol.model_metadata(name, service.served(name))

    @app.get(
        "/v2/models/{name}/versions/{wanted}",
        tags=["model"],
        summary="Inputs, outputs and words of a version",
        responses=errors,
    )
    async def version_metadata(name: Name, wanted: str) -> dict[str, Any]:
        return protocol.model_metadata(name, service.served(name, wanted))

    @app.get(
        "/v2/models/{name}/ready", tags=["model"], summary="Whether the model is ready for inference", responses=errors
    )
    async def model_ready(name: Name) -> dict[str, Any]:
        service.served(name)
        return {"name": name, "ready": True}

    @app.get(
        "/v2/models/{name}/versions/{wanted}/ready",
        tags=["model"],
        summary="Whether the version is ready for inference",
        responses=errors,
    )
    async def version_ready(name: Name, wanted: str) -> dict[str, Any]:
        service.served(name, wanted)
        return {"name": name, "ready": True}

    async def answer(request: Request, name: str, wanted: str) -> Response:
        with service.observe("rest") as observed:
            try:
                # Read even if the request is refused, as its client is still sending.
                body = await _body(request, config)
                served = service.served(name, wanted)
                observed.version = served.version
                length = request.headers.get(protocol.HEADER_LENGTH)
                if len(body) > MOST_JSON_ON_LOOP and length is None:
                    call = await asyncio.to_thread(protocol.read_rest, body, length)
                else:
                    call = protocol.read_rest(body, length)
                outputs = await service.infer(call, served)
                content, headers = protocol.write_rest(call, name, served, outputs)
            except Refused as refused:
                observed.status = str(int(refused.status))
                raise
            observed.status = "200"
            return Response(content, headers=headers)

    inference: dict[str, Any] = {
        "tags": ["inference"],
        "openapi_extra": _INFER,
        "responses": errors
        | {
            200: _json("Probabilities and words", _ANSWER),
            413: _json("Too large", _ERROR),
            415: _json("Unknown compression", _ERROR),
            429: _json("Too many clips are waiting", _ERROR),
        },
    }

    @app.post("/v2/models/{name}/infer", summary="Recognize clips", **inference)
    async def infer(request: Request, name: Name) -> Response:
        return await answer(request, name, "")

    @app.post("/v2/models/{name}/versions/{wanted}/infer", summary="Recognize clips with a version", **inference)
    async def version_infer(request: Request, name: Name, wanted: str) -> Response:
        return await answer(request, name, wanted)

    @app.get("/metrics", tags=["server"], summary="Metrics for Prometheus", response_class=PlainTextResponse)
    async def metrics() -> Response:
        return Response(service.metrics(), media_type=prometheus_client.CONTENT_TYPE_LATEST)

    collect = Path(config.collect) if config.collect else None
    app.include_router(
        router(
            lambda: service.models.current,
            collect,
            config.max_streams,
            service.models.data_root,
            keep_heard=config.keep_heard,
            watch=service.watch,
        )
    )
    return app


def _object(required: str, **properties: Any) -> dict[str, Any]:
    """Returns the schema of a JSON object with some properties, of which the named ones are required."""
    return {"type": "object", "properties": properties, "required": required.split()}


def _list(items: Mapping[str, Any], **limits: Any) -> dict[str, Any]:
    return {"type": "array", "items": items, **limits}


def _json(description: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    """Describes an answer."""
    return {"description": description, "content": {"application/json": {"schema": schema}}}


_TEXT = {"type": "string"}
_TYPE = {"enum": ["FP32", "BYTES"]}
_PARAMETERS = {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}}
_ERROR = _object("error", error=_TEXT)
_TENSOR = _object(
    "name datatype shape data",
    name={"enum": [protocol.INPUT]},
    datatype=_TYPE,
    shape=_list({"type": "integer", "minimum": 0}),
    parameters=_PARAMETERS,
    data={
        "description": "FP32: samples in -1 to 1, [clips, samples]. BYTES: audio files in base64.",
        **_list({"type": ["number", "string", "array"]}),
    },
)
_WISH = _object("name", name={"enum": [protocol.PROBABILITIES, protocol.WORDS]}, parameters=_PARAMETERS)
_REQUEST = _object(
    "inputs", id=_TEXT, parameters=_PARAMETERS, inputs=_list(_TENSOR, minItems=1, maxItems=1), outputs=_list(_WISH)
)
_EXAMPLE = {
    "inputs": [{"name": "waveforms", "datatype": "BYTES", "shape": [1], "data": ["UklGR…"]}],
    "outputs": [{"name": "probabilities", "parameters": {"classification": 3}}],
}
_INFER = {"requestBody": {"required": True, "content": {"application/json": {"schema": _REQUEST, "example": _EXAMPLE}}}}
_OUTPUT = _object(
    "name datatype shape", name=_TEXT, datatype=_TYPE, shape=_list({"type": "integer"}), data={"type": "array"}
)
_ANSWER = _object(
    "model_name model_version id outputs", model_name=_TEXT, model_version=_TEXT, id=_TEXT, outputs=_list(_OUTPUT)
)


def open_models(model: Path | None, data_root: Path | None, config: ServeConfig) -> Models:
    """Loads a model file, or the champion of a data root.

    If the data root has no champion yet, or a damaged one, the server starts all the same, but is not ready.

    Raises:
        ValueError: both or neither are given, or the file is not a model, or knows no such word as the gate's.
        FileNotFoundError: there is no such file or folder.
    """
    if (model is None) == (data_root is None):
        raise ValueError("one of model and data_root must be given, got " + ("both" if model else "neither"))
    if model is not None:
        require(not config.candidate, "candidate", "be given with --data-root", True)
        if model.suffix != ".onnx":
            raise ValueError(f"model must be an .onnx file (kws export converts a .pth), got {str(model)!r}")
        return Models(current=models.load_file(model).behind(config.after, config.after_seconds))
    assert data_root is not None
    if not data_root.is_dir():
        raise FileNotFoundError(f"data_root must be a folder, got {str(data_root)!r}, which does not exist")
    found = _follow(data_root, config)
    if found.current is None and not found.refusal:
        log.info("waiting for a champion in %s", data_root / versions.MODELS / versions.CHAMPION)
    return found


def open_shadow(data_root: Path | None, config: ServeConfig) -> Models | None:
    """Loads the version in the shadow; returns None if there is to be none.

    If there is none yet, or a damaged one, the server starts all the same.

    Raises:
        ValueError: there is no data root.
    """
    if not config.shadow:
        return None
    if data_root is None:
        raise ValueError(f"shadow must be a version beside the champion of --data-root, got {config.shadow!r} alone")
    found = _follow(data_root, config, config.shadow)
    if found.current is None and not found.refusal:
        log.info("in the shadow: no version yet")
    return found


def _follow(data_root: Path, config: ServeConfig, shadow: str = "") -> Models:
    name = versions.INT8 if config.int8 else versions.ONNX
    found = Models(
        data_root=data_root,
        name=name,
        after=config.after,
        after_seconds=config.after_seconds,
        candidate=config.candidate,
        shadow=shadow,
    )
    found.look()
    return found


class _Server(uvicorn.Server):
    """uvicorn without its own signal handlers, as `serve` drains before it stops."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Installs no signal handlers."""
        yield


async def serve(models: Models, config: ServeConfig, shadow: Models | None = None) -> None:
    """Serves until SIGTERM or SIGINT, and for `drain_seconds` after that; then finishes the requests in progress.

    A second signal ends the server at once. `shadow` holds the version in the shadow; None: there never is one.

    Raises:
        OSError: a port is in use.
    """
    service = Service(models, config, shadow)
    app = create_app(service)
    stop, hurry = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, lambda: (hurry if stop.is_set() else stop).set())
    server = _Server(
        uvicorn.Config(
            app,
            host=config.host,
            port=config.port,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=30,
            timeout_keep_alive=75,
            ws_ping_timeout=None,  # a client answers a ping behind all sound that it has sent, be it minutes
        )
    )
    try:
        socket = server.config.bind_socket()
    except SystemExit:
        raise OSError(
            f"port must be free, got {config.host}:{config.port}, which is in use; choose another with --port"
        ) from None
    remote = None
    if config.grpc_port >= 0:
        remote, grpc_port = await grpc.start(service, f"{config.host}:{config.grpc_port}")
        log.info("gRPC at %s:%d", config.host, grpc_port)
    for each in (models, shadow):
        if each and each.data_root:
            each.follow(config.poll_seconds)
    running = asyncio.create_task(server.serve(sockets=[socket]))
    while not server.started and not running.done():
        await asyncio.sleep(0.01)
    log.info(
        "REST, metrics and the page at http://%s:%d (Ctrl-C to stop), %d batches at a time",
        config.host,
        socket.getsockname()[1],
        service.num_threads,
    )
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if not running.done():
        service.draining = True
        log.info(
            "stopping: no longer ready, but answering for %g s more (Ctrl-C again to stop at once)",
            config.drain_seconds,
        )
        hurried = asyncio.create_task(hurry.wait())
        await asyncio.wait({hurried}, timeout=config.drain_seconds)
        server.should_exit = True
        ending: asyncio.Future[Any] = asyncio.gather(running, *([remote.stop(30)] if remote else []))
        either: set[asyncio.Future[Any]] = {hurried, ending}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if hurry.is_set():
            server.force_exit = True
            if remote:
                await remote.stop(None)
        await ending
    else:
        await running


def run(model: Path | None, data_root: Path | None, config: ServeConfig) -> None:
    """Loads the model and serves; see `serve`."""
    found, shadow = open_models(model, data_root, config), open_shadow(data_root, config)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(found, config, shadow))
