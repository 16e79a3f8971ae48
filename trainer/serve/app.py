"""The routes of a server."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi.routing import APIRoute
from jinja2 import Environment
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from trainer.serve.config import Limits
from trainer.serve.guard import Guard
from trainer.serve.inputs import FIELD
from trainer.serve.problems import RequestProblem
from trainer.serve.service import Service
from trainer.serve.unread import DropUnread
from trainer.version import __version__

PAGES = files("trainer.serve") / "page"


class Prediction(BaseModel):
    """Results in the order of the inputs. latency_ms: from the head of the request to its results."""

    results: list[dict[str, Any]]
    latency_ms: float


class Failure(BaseModel):
    """Why there is no result, in one sentence."""

    error: str


class Metric(BaseModel):
    """The task's metric on the run's evaluation data: of the export, and of the run that it was made from."""

    name: str
    value: float
    run: float


class Description(BaseModel):
    """What is served. kind: text, text_pair, image or noise. labels: of classes. created: when it was exported, UTC.
    devices: one a worker.
    """

    task: str
    kind: str
    labels: list[str] | None
    format: str
    source_run: str
    created: str
    devices: list[str]
    metric: Metric | None
    limits: dict[str, int | float]


class State(BaseModel):
    """Of the server: "alive", "ready", or why it is not ready."""

    status: str


BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"type": "object"},
                "examples": {
                    "text": {"value": {"text": "where is my order"}},
                    "text_pair": {"value": {"text": "a cat sleeps", "text_pair": "an animal rests"}},
                    "several": {"value": {"inputs": [{"text": "where is my order"}, {"text": "I want my money back"}]}},
                    "image": {"value": {"image": "a file in base64"}},
                    "noise": {"value": {"n": 4, "seed": 1}},
                },
            },
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {FIELD: {"type": "array", "items": {"type": "string", "format": "binary"}}},
                }
            },
        },
    }
}
REASONS = {
    400: "The request or its body is damaged.",
    401: "The key is missing or wrong.",
    408: "The body came too slowly.",
    413: "A limit of size is exceeded; GET /model names the limits.",
    415: "The content type is not one that this model takes.",
    422: "An input cannot be used.",
    429: "The queue is full; the header Retry-After says when to try again.",
    503: "Not ready, or the inputs waited for too long.",
    504: "The model took too long.",
}
FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": Failure, "description": reason} for status, reason in REASONS.items()
}


class DirectRoute(APIRoute):
    """A function of the request: FastAPI would look for its parameters in each request, which takes a tenth of it."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's hook for what a route calls."""
        return self.endpoint


def build_app(service: Service) -> FastAPI:
    """The application of one server."""
    # The pages for its schema that FastAPI has load scripts from elsewhere.
    app = FastAPI(title="trainer serve", version=__version__, docs_url=None, redoc_url=None)
    app.add_middleware(Guard, service=service)
    app.add_middleware(DropUnread)
    _add_handlers(app)
    _add_model_routes(app, service)
    _add_state_routes(app, service)
    _add_pages(app)
    return app


def _add_model_routes(app: FastAPI, service: Service) -> None:
    async def predict(request: Request) -> JSONResponse:
        results = await service.predict(request)
        latency_ms = 1000 * (time.perf_counter() - request.state.start)
        # Not validated again: a response of many probabilities would take longer than the model.
        return JSONResponse({"results": results, "latency_ms": round(latency_ms, 3)})

    app.router.add_api_route(
        "/predict",
        predict,
        methods=["POST"],
        summary="Results of the model",
        response_model=Prediction,
        responses=FAILURES,
        openapi_extra=BODY,
        route_class_override=DirectRoute,
    )

    @app.get("/model", summary="What is served, and its limits", responses={503: FAILURES[503]})
    async def describe() -> Description:
        if service.model is None:
            raise RequestProblem(503, "the model is still being loaded", {"Retry-After": "1"})
        limits = {name: getattr(service.config, name) for name in Limits.__dataclass_fields__}
        return Description(**service.model.description(), limits=limits)


def _add_state_routes(app: FastAPI, service: Service) -> None:
    @app.get("/health", summary="Whether the process is alive")
    async def health() -> State:
        return State(status="alive")

    @app.get("/ready", summary="Whether requests should be sent here", responses={503: FAILURES[503]})
    async def ready() -> State:
        if not service.is_ready:
            raise RequestProblem(503, "the server is ending" if service.draining else "the model is being loaded")
        return State(status="ready")

    @app.get("/metrics", summary="Counters in the format of Prometheus", response_class=Response)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=service.metrics.content_type)


def _add_pages(app: FastAPI) -> None:
    template = Environment(autoescape=True).from_string((PAGES / "docs.html").read_text(encoding="utf-8"))

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse((PAGES / "index.html").read_text(encoding="utf-8"))

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(template.render(schema=app.openapi()))


def _add_handlers(app: FastAPI) -> None:
    """Every failure has the same form."""

    @app.exception_handler(RequestProblem)
    async def problem(request: Request, error: RequestProblem) -> JSONResponse:
        return JSONResponse({"error": error.reason}, error.status, error.headers)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        reasons = {404: "there is no such route; GET /docs lists them", 405: "this route has another method"}
        return JSONResponse({"error": reasons.get(error.status_code, error.detail)}, error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def bug(request: Request, error: Exception) -> JSONResponse:  # its traceback goes to the log
        return JSONResponse({"error": "the server failed; its log has the reason"}, 500)
