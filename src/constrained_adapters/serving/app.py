"""The HTTP front: OpenAI's API before any engine."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from constrained_adapters.errors import ConstrainedAdaptersError
from constrained_adapters.serving.adapter_paths import adapter_folder, adapter_name
from constrained_adapters.serving.choice import Choice, nfc
from constrained_adapters.serving.descriptions import ERRORS, REPLIES
from constrained_adapters.serving.engine import Engine
from constrained_adapters.serving.error_bodies import (
    body_of,
    error_response,
    failed_load,
    plain_error,
    validation_response,
)
from constrained_adapters.serving.failures import RequestError
from constrained_adapters.serving.gate import Gate, facts_of_request, log
from constrained_adapters.serving.metrics import Metrics
from constrained_adapters.serving.page import page_response
from constrained_adapters.serving.registry import AUTO, BASE, unknown_model
from constrained_adapters.serving.requests import (
    ChatRequest,
    CompletionRequest,
    GenerationBody,
    LoadAdapterRequest,
    UnloadAdapterRequest,
)
from constrained_adapters.serving.settings import ServeSettings

T = TypeVar("T")
ADAPTERS_HEADER = "X-CRMA-Adapters"
CLIENT_GONE = 499


def create_app(engine: Engine, settings: ServeSettings, *, base_name: str) -> FastAPI:
    """The application of one server.

    Args:
        engine: Started and stopped along with the application.
        settings: Access and limits.
        base_name: The base's own name, shown in ``/v1/models``.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            await engine.start()
        except ConstrainedAdaptersError as error:
            app.state.failure = error
            raise
        try:
            yield
        finally:
            await engine.stop()

    from importlib.metadata import version

    app = FastAPI(
        title="constrained-adapters",
        description="One base model, many domains; OpenAI's API.",
        version=version("constrained-adapters"),
        lifespan=lifespan,
        docs_url=None,  # they load scripts from elsewhere
        redoc_url=None,
        responses=ERRORS,
    )
    metrics = Metrics(engine.gauges)
    front = _Front(engine, settings, base_name, metrics)
    front.add_routes(app)
    _add_error_handlers(app)
    paths = [route.path for route in app.routes if hasattr(route, "path")]
    app.add_middleware(
        Gate,
        api_keys=settings.api_keys,
        body_bytes=settings.body_bytes,
        metrics=metrics,
        paths=paths,
    )
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
            expose_headers=[ADAPTERS_HEADER, "X-Request-Id"],
        )
    return app


class _Front:
    """The routes."""

    def __init__(self, engine: Engine, settings: ServeSettings, base_name: str, metrics: Metrics) -> None:
        self.engine, self.settings, self.base_name, self.metrics = engine, settings, base_name, metrics
        self.begun = int(time.time())

    def add_routes(self, app: FastAPI) -> None:
        app.get("/", include_in_schema=False)(page_response)
        app.get("/health", summary="Whether the server lives")(self.health)
        app.get("/ready", summary="Whether it would answer")(self.ready)
        app.get("/metrics", response_class=PlainTextResponse, summary="Figures for Prometheus")(self.figures)
        app.get("/v1/models", summary="What can be asked")(self.models)
        app.get("/v1/models/{name}", summary="One model")(self.model)
        app.post("/v1/chat/completions", responses=REPLIES, summary="Answer a conversation")(self.chat)
        app.post("/v1/completions", responses=REPLIES, summary="Go on from a text")(self.complete)
        if self.settings.adapter_root is not None:
            app.post("/v1/load_lora_adapter", response_class=PlainTextResponse, summary="Add a domain")(
                self.load
            )
            app.post("/v1/unload_lora_adapter", response_class=PlainTextResponse, summary="Remove a domain")(
                self.unload
            )

    async def health(self) -> dict[str, str]:
        return {"status": "ok"}

    async def ready(self) -> JSONResponse:
        ready = await self.engine.is_ready()
        return JSONResponse({"status": "ready" if ready else "not ready"}, 200 if ready else 503)

    async def figures(self) -> Response:
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def models(self) -> dict[str, Any]:
        return {"object": "list", "data": [self._described(name) for name in self._names()]}

    async def model(self, name: str) -> dict[str, Any]:
        if nfc(name) not in self._names():
            raise unknown_model(name, self._names())
        return self._described(nfc(name))

    async def chat(self, body: ChatRequest, request: Request) -> Response:
        return await self._answer(body, request)

    async def complete(self, body: CompletionRequest, request: Request) -> Response:
        return await self._answer(body, request)

    async def load(self, body: LoadAdapterRequest) -> PlainTextResponse:
        assert self.settings.adapter_root is not None
        name = adapter_name(body.lora_name)
        folder = adapter_folder(body.lora_path, self.settings.adapter_root)
        try:
            await self.engine.load(name, folder, replace=body.load_inplace)
        except ConstrainedAdaptersError as error:
            raise failed_load(error) from None
        log.info("adapter loaded", extra={"facts": {"domain": name, "replaced": body.load_inplace}})
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    async def unload(self, body: UnloadAdapterRequest) -> PlainTextResponse:
        await self.engine.unload(nfc(body.lora_name))
        log.info("adapter removed", extra={"facts": {"domain": body.lora_name}})
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")

    async def _answer(self, body: GenerationBody, request: Request) -> Response:
        if body.stream_options is not None and not body.stream:
            raise RequestError("stream_options go with stream: true", param="stream_options")
        facts = facts_of_request.get({})
        facts["model"] = body.model
        if self.settings.log_prompts:
            facts["body"] = body.model_dump(exclude_unset=True)
        self._check_names(body)
        choice = await _unless_gone(request, self.engine.choose(body))
        if choice is None:
            return Response(status_code=CLIENT_GONE)
        facts["adapters"] = dict(choice.weights)
        for name in choice.weights or [BASE]:
            self.metrics.answered.labels(name).inc()
        headers = {ADAPTERS_HEADER: choice.header()}
        if body.stream:
            return await self._stream(body, choice, headers, facts, request)
        reply = await _unless_gone(request, self.engine.answer(body, choice))
        if reply is None:
            return Response(status_code=CLIENT_GONE)
        self._count(reply.get("usage"), facts)
        if self.settings.log_prompts:
            facts["reply"] = reply["choices"]
        return JSONResponse(reply, headers=headers)

    async def _stream(
        self,
        body: GenerationBody,
        choice: Choice,
        headers: dict[str, str],
        facts: dict[str, Any],
        request: Request,
    ) -> Response:
        begun = time.monotonic()
        chunks = self.engine.stream(body, choice)

        async def first_chunk() -> dict[str, Any]:
            return await anext(chunks)

        # What goes wrong before the first chunk still gets its status.
        first = await _unless_gone(request, first_chunk())
        if first is None:
            return Response(status_code=CLIENT_GONE)
        facts["first_token_seconds"] = round(time.monotonic() - begun, 4)
        self.metrics.first_token_seconds.observe(time.monotonic() - begun)

        async def events() -> AsyncIterator[str]:
            async with aclosing(chunks):  # type: ignore[type-var]
                try:
                    yield _event(first)
                    async for chunk in chunks:
                        self._count(chunk.get("usage"), facts)
                        if chunk["choices"] or body.wants_usage:
                            yield _event(chunk)
                except ConstrainedAdaptersError as error:
                    facts["error"] = error.what
                    yield _event(body_of(error)[1])
            yield "data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream", headers=headers)

    def _check_names(self, body: GenerationBody) -> None:
        for name in [body.model, *(body.adapters or {})]:
            if nfc(name) not in self._names():
                raise unknown_model(name, self._names())

    def _count(self, usage: dict[str, int] | None, facts: dict[str, Any]) -> None:
        if usage:
            self.metrics.prompt_tokens.inc(usage["prompt_tokens"])
            self.metrics.new_tokens.inc(usage["completion_tokens"])
            facts.update({key: usage[key] for key in ("prompt_tokens", "completion_tokens")})

    def _names(self) -> list[str]:
        return [BASE, *([AUTO] if self.engine.routes() else []), *self.engine.models()]

    def _described(self, name: str) -> dict[str, Any]:
        root = self.base_name if name == BASE else name
        parent = None if name == BASE else self.base_name
        return {
            "id": name,
            "object": "model",
            "created": self.begun,
            "owned_by": "constrained-adapters",
            "root": root,
            "parent": parent,
        }


def _add_error_handlers(app: FastAPI) -> None:
    async def known(_: Request, error: Exception) -> Response:
        facts_of_request.get({})["error"] = getattr(error, "what", type(error).__name__)
        return error_response(error)

    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return validation_response(error)

    async def plain(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = f"{error.detail}\n  Got:      {request.method} {request.url.path[:200]}"
        return plain_error(error.status_code, message, error.headers)

    async def unknown(_: Request, error: Exception) -> Response:
        log.error("unexpected error", exc_info=error)
        return error_response(error)

    app.add_exception_handler(ConstrainedAdaptersError, known)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, plain)
    app.add_exception_handler(Exception, unknown)


def _event(chunk: dict[str, Any]) -> str:
    return f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of ``work``; None, and the work is cancelled, where the client goes before."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, leaving):
            if not task.done():
                task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)
