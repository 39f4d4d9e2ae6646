"""The routes, and what OpenAPI says of them."""

import asyncio
import functools
import time
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from mien.outputs import Output
from mien.service.apidocs import page
from mien.service.bodies import pictures_in
from mien.service.dispatch import Dispatcher
from mien.service.gate import GUARDED, RequestGate
from mien.service.keys import Keys
from mien.service.limits import Limits, Refused
from mien.service.metrics import Metrics
from mien.service.schema import Health, Labels, Problem, Upload, answers, example
from mien.service.worker import ReadJob

PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
"""A browser that shows the page requests nothing from anybody else."""

REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "bad_request: not HTTP as it should be."},
    408: {"model": Problem, "description": "too_slow: the body took too long to arrive."},
    413: {"model": Problem, "description": "too_large: the body has too many bytes."},
    415: {"model": Problem, "description": "unsupported_type: neither multipart/form-data nor application/json."},
    422: {
        "description": "unreadable: no picture could be read; too_long: not within the time for a request's pictures; "
        "too_many_pixels; bad_body, no_pictures, too_many_pictures.",
    },
    429: {"model": Problem, "description": "queue_full, memory_full: try again after Retry-After seconds."},
    500: {"model": Problem, "description": "internal: the service made a mistake."},
    503: {"model": Problem, "description": "timeout, worker_died: try again after Retry-After seconds."},
}

_UPLOAD = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "pictures": {"type": "array", "items": {"type": "string", "format": "binary"}},
                    },
                    "required": ["pictures"],
                }
            },
            "application/json": {"schema": {"$ref": "#/components/schemas/Upload"}},
        },
    }
}


def make_app(
    dispatcher: Dispatcher, *, limits: Limits, keys: Keys, labels: Labels, outputs: Sequence[Output], version: str
) -> RequestGate:
    """The application behind its gate."""
    metrics = Metrics()
    reading, unreadable = answers(outputs)
    refusals = REFUSALS | {422: REFUSALS[422] | {"model": unreadable}}
    shown: dict[int | str, dict[str, Any]] = {200: {"content": {"application/json": {"example": example(outputs)}}}}
    app = FastAPI(title="mien", version=version, docs_url=None, redoc_url=None)
    app.description = "Reads facial expressions from photographs. Pictures are kept in memory only, until answered."

    async def answer(request: Request, aligned: bool) -> Response:
        deadline = time.monotonic() + limits.seconds
        kind = request.headers.get("content-type", "")
        pictures = await asyncio.to_thread(pictures_in, request.state.body, kind, limits.pictures)
        answered = await dispatcher.submit(ReadJob(pictures, aligned, deadline))
        metrics.count(answered)
        return Response(answered.body, answered.status, media_type="application/json")

    @app.post("/v1/read", response_model=reading, responses=shown | refusals, openapi_extra=_UPLOAD, tags=["pictures"])
    async def read(request: Request) -> Response:
        """Find the faces in photographs and read their expressions. Every part with a file name is a picture."""
        return await answer(request, aligned=False)

    @app.post("/v1/classify", response_model=reading, responses=refusals, openapi_extra=_UPLOAD, tags=["pictures"])
    async def classify(request: Request) -> Response:
        """Read the expressions of faces that were cut out already: each picture is taken as one face."""
        return await answer(request, aligned=True)

    @app.get("/v1/labels", response_model=Labels, tags=["service"])
    async def get_labels() -> Response:
        """The expressions that the model distinguishes, and all else that it answers."""
        return JSONResponse(labels.model_dump())

    @app.get("/healthz", response_model=Health, responses={503: {"model": Health}}, tags=["service"])
    async def healthz() -> Response:
        """Whether every worker is there."""
        ready = dispatcher.ready
        health = {"status": "ok" if ready else "starting", "workers": dispatcher.alive}
        return JSONResponse(health, 200 if ready else 503)

    @app.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
        tags=["service"],
    )
    async def get_metrics() -> Response:
        """Counts and times, for Prometheus."""
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @functools.cache
    def docs_page() -> str:
        return page(app.openapi())

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(docs_page(), headers={"content-security-policy": PAGE_POLICY})

    @app.get("/", include_in_schema=False)
    async def home() -> Response:
        return RedirectResponse("docs")

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> Response:
        return Response(error.body(), error.status, dict(error.headers), "application/json")

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> Response:
        code = {404: "not_found", 405: "wrong_method"}.get(error.status_code, "bad_request")
        return Response(
            Refused(error.status_code, code, str(error.detail).lower()).body(),
            error.status_code,
            error.headers,
            "application/json",
        )

    @app.exception_handler(Exception)
    async def broken(_: Request, error: Exception) -> Response:
        return Response(Refused(500, "internal", "the service made a mistake").body(), 500, None, "application/json")

    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            _complete(plain(), keyed=bool(keys))
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
    gate = RequestGate(app, dispatcher=dispatcher, limits=limits, keys=keys, metrics=metrics)
    metrics.gauge("queue_depth", "Requests that no worker has begun with.", lambda: dispatcher.waiting)
    metrics.gauge("requests_working", "Requests that a worker has begun with.", lambda: dispatcher.working)
    metrics.gauge("held_bytes", "Bytes of the requests that are being received or worked on.", lambda: gate.held)
    metrics.gauge("workers", "Worker processes that are alive.", lambda: dispatcher.alive)
    metrics.gauge("worker_restarts", "Workers that died and were replaced.", lambda: dispatcher.restarts)
    return gate


def _complete(document: dict[str, Any], *, keyed: bool) -> None:
    """Add what FastAPI cannot see: the body's schema, and the keys that the gate asks for."""
    parts = document["components"]
    schema = Upload.model_json_schema(ref_template="#/components/schemas/{model}")
    parts["schemas"] |= schema.pop("$defs") | {"Upload": schema}
    if not keyed:
        return
    parts["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
    refusal = {"application/json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    for path, methods in document["paths"].items():
        if path in GUARDED:
            for operation in methods.values():
                operation["security"] = [{"bearer": []}, {"header": []}]
                operation["responses"]["401"] = {"description": "no_key: none, or a wrong one.", "content": refusal}
