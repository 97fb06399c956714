"""The routes of the review page: hear what was kept, confirm it as a word, or delete it."""

import dataclasses
import datetime
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from kws.model.detector import reported
from kws.serve.models import Served
from kws.serve.page.collection import OTHER, Collection
from kws.serve.page.heard import Heard

MOST_LISTED = 500
"""Largest number of sounds that the page lists at once, the newest first."""

OFF = "what is heard is kept only by a server that was started with --collect DIR --keep-heard"

Handle = Callable[[Request], Awaitable[Any]]


def routes(
    current: Callable[[], Served | None],
    heard: Heard | None,
    collection: Collection | None,
    guarded: Callable[[Handle], Callable[[Request], Awaitable[Response]]],
) -> list[Route]:
    """Returns the routes /heard and /heard/NAME.

    Args:
        current: returns the model that is served, or None if there is none yet.
        heard: the sounds; None: nothing is kept.
        collection: where what is confirmed becomes a recording.
        guarded: turns errors into answers.
    """

    def here() -> tuple[Heard, Collection]:
        if heard is None or collection is None:
            raise FileNotFoundError(OFF)
        return heard, collection

    async def listing(request: Request) -> Response:
        kept, _ = here()
        model, found = current(), kept.sounds()
        words = reported(model.recognizer.words) if model else []
        rows = [dataclasses.asdict(sound) for sound in found[:MOST_LISTED]]
        return JSONResponse({"sounds": rows, "total": len(found), "words": [*words, OTHER]})

    async def play(request: Request) -> Response:
        path = here()[0].sound(request.path_params["name"])
        return Response(path.read_bytes(), media_type="audio/wav", headers={"cache-control": "no-store"})

    async def review(request: Request) -> Response:
        """Confirms a sound as a word, or marks it: {"word": …} or {"kind": …}."""
        kept, recordings = here()
        # With this type the browser sends a CORS preflight for pages of other origins, which is refused.
        if request.headers.get("content-type") != "application/json":
            return JSONResponse({"error": "the request must have the content-type application/json"}, 415)
        said, name, model = await request.json(), request.path_params["name"], current()
        if not isinstance(said, dict) or not isinstance(said.get("word", said.get("kind")), str):
            raise ValueError(f"the request must have word or kind, got {str(said)[:80]}")
        if "word" not in said:
            kept.mark(name, said["kind"])
            return Response(status_code=204)
        if model is None:
            return JSONResponse({"error": "the server must have a model, got none yet"}, 503)
        return JSONResponse({"clip": kept.confirm(name, said["word"], recordings, model.recognizer.features)}, 201)

    async def delete(request: Request) -> Response:
        here()[0].delete(request.path_params["name"])
        return Response(status_code=204)

    async def delete_before(request: Request) -> Response:
        day = datetime.date.fromisoformat(request.query_params.get("before", ""))
        return JSONResponse({"deleted": here()[0].delete_before(day)})

    one = "/heard/{name}"
    return [
        Route("/heard", guarded(listing), methods=["GET"], include_in_schema=False),
        Route("/heard", guarded(delete_before), methods=["DELETE"], include_in_schema=False),
        Route(one, guarded(play), methods=["GET"], include_in_schema=False),
        Route(one, guarded(review), methods=["POST"], include_in_schema=False),
        Route(one, guarded(delete), methods=["DELETE"], include_in_schema=False),
    ]
