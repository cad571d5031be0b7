"""Another server computes: this one routes, names and mixes before it."""

from __future__ import annotations

import asyncio
import itertools
import json
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2

from constrained_adapters.export.lora import export_lora
from constrained_adapters.serving.choice import Choice
from constrained_adapters.serving.failures import (
    OverdueError,
    QueueFullError,
    RequestError,
    StoppingError,
    UpstreamError,
)
from constrained_adapters.serving.prompts import check_choices, check_new_tokens
from constrained_adapters.serving.registry import Hold, ModelRegistry
from constrained_adapters.serving.requests import ChatRequest, CompletionRequest, GenerationBody
from constrained_adapters.serving.routes import Route, asked_talk, chosen
from constrained_adapters.serving.settings import ServeSettings
from constrained_adapters.serving.upstream_adapters import UpstreamAdapters, find_upstream, message_of

Begin = Callable[[], Awaitable[str]]
"""Starts an engine if need be; returns its address."""
End = Callable[[], Awaitable[None]]


class UpstreamEngine:
    """Passes requests on to an engine that speaks OpenAI's API.

    Args:
        begin: Makes sure that the engine runs; returns its address.
        end: Called when this server stops.
        domains: The adapters' folders, with their weights, that answer for each domain.
        settings: ``slots`` and ``queue`` together bound the requests that are under way; the context is the
            engine's own.
        base_model: The base's name there; None takes its first model.
        key: Its API key.
        route: The router; None: ``auto`` is not served.
        tokenizer: Of the base, for the router.
        name: What the engine is called.
    """

    def __init__(
        self,
        begin: Begin,
        end: End,
        domains: Mapping[str, Mapping[str, float]],
        settings: ServeSettings,
        *,
        base_model: str | None = None,
        key: str | None = None,
        route: Route | None = None,
        tokenizer: Any = None,
        name: str = "upstream",
    ) -> None:
        self.name, self.settings = name, settings
        self._begin, self._end, self._base_model = begin, end, base_model
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._route, self._tokenizer = route, tokenizer
        self._route_lock = asyncio.Lock()
        self._registry = ModelRegistry()
        for domain, adapters in domains.items():
            self._registry.publish(domain, adapters)
        self._numbers = itertools.count()
        self._num_running = 0
        self._stopping = False
        self._client: httpx2.AsyncClient
        self._exports: tempfile.TemporaryDirectory[str]
        self._adapters: UpstreamAdapters

    async def start(self) -> None:
        """Reach the engine.

        Raises:
            UpstreamError: It cannot be reached.
        """
        address = await self._begin()
        limits = httpx2.Limits(max_connections=None)
        timeout = httpx2.Timeout(self.settings.timeout_seconds, connect=10.0)
        # The engine is named by its address alone: no proxy of the environment has a part in it.
        self._client = httpx2.AsyncClient(
            base_url=address, headers=self._headers, limits=limits, timeout=timeout, trust_env=False
        )
        self._exports = tempfile.TemporaryDirectory(prefix="crma-exports-", ignore_cleanup_errors=True)
        try:
            exports = Path(self._exports.name)
            self._adapters = await find_upstream(self._client, self._base_model, exports)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Let go of the engine; what ran has ended, as the front waits for it."""
        self._stopping = True
        await self._client.aclose()
        await self._end()
        self._exports.cleanup()

    async def is_ready(self) -> bool:
        """Whether the engine answers."""
        try:
            return not self._stopping and (await self._client.get("/v1/models", timeout=5)).status_code == 200
        except httpx2.HTTPError:
            return False

    def models(self) -> list[str]:
        """Names of the domains."""
        return self._registry.names()

    def routes(self) -> bool:
        """Whether there is a router."""
        return self._route is not None

    async def choose(self, request: GenerationBody) -> Choice:
        """The adapters that answer.

        Raises:
            RequestError: A name is not served, or the request contradicts itself.
        """
        route = self._route

        async def ask() -> Choice:
            assert route is not None
            async with self._route_lock:  # one model, one pass at a time
                return await asyncio.to_thread(route, asked_talk(request, self._tokenizer))

        return await chosen(request, self.models(), None if route is None else ask)

    async def answer(self, request: GenerationBody, choice: Choice) -> dict[str, Any]:
        """The whole reply of the engine, under our names.

        Raises:
            RequestError: More is asked for than this server gives.
            ConstrainedAdaptersError: The engine refuses, or cannot be reached.
        """
        self._check(request)
        async with self._under_way(choice) as hold, self._adapters.using(hold.adapters) as fields:
            try:
                async with asyncio.timeout(self.settings.timeout_seconds):
                    reply = await self._client.post(_path(request), json=self._body(request, fields))
            except TimeoutError:
                raise _overdue() from None
            except httpx2.HTTPError as error:
                raise _lost(error) from None
            if reply.status_code != 200:
                raise refused(reply)
            try:
                return {**reply.json(), "model": request.model, **choice.facts()}
            except ValueError:
                raise UpstreamError("the engine's reply is no JSON", got=reply.text[:100]) from None

    async def stream(self, request: GenerationBody, choice: Choice) -> AsyncIterator[dict[str, Any]]:
        """The chunks of the engine's reply, under our names.

        Raises:
            RequestError: More is asked for than this server gives.
            ConstrainedAdaptersError: The engine refuses, or cannot be reached.
        """
        self._check(request)
        async with self._under_way(choice) as hold, self._adapters.using(hold.adapters) as fields:
            post = self._client.stream("POST", _path(request), json=self._body(request, fields))
            try:
                async with asyncio.timeout(self.settings.timeout_seconds), post as reply:
                    if reply.status_code != 200:
                        await reply.aread()
                        raise refused(reply)
                    async for line in reply.aiter_lines():
                        if line.startswith("data: ") and line != "data: [DONE]":
                            chunk = json.loads(line.removeprefix("data: "))
                            if "error" in chunk:
                                raise UpstreamError("the engine failed", got=str(chunk["error"])[:300])
                            yield {**chunk, "model": request.model, **choice.facts()}
            except TimeoutError:
                raise _overdue() from None
            except httpx2.HTTPError as error:
                raise _lost(error) from None

    async def load(self, name: str, folder: Path, *, replace: bool) -> None:
        """Serve the adapter as it is now: a copy of it is what the engine gets.

        Raises:
            RequestError: The name is reserved or taken.
            ConstrainedAdaptersError: There is no adapter in the folder that an engine could read.
        """
        self._registry.check_new(name, replace=replace)
        copy = Path(self._exports.name) / f"adapter-{next(self._numbers)}" / name
        copy.parent.mkdir()
        await asyncio.to_thread(export_lora, {folder: 1.0}, copy)
        self._registry.publish(name, {str(copy): 1.0})

    async def unload(self, name: str) -> None:
        """Serve ``name`` no more.

        Raises:
            UnknownModelError: It is not served.
        """
        self._registry.withdraw(name)

    def gauges(self) -> dict[str, float]:
        """Requests that are under way, and domains."""
        return {"running": self._num_running, "domains": len(self.models())}

    def _check(self, request: GenerationBody) -> None:
        check_new_tokens(request, self.settings.max_new_tokens)
        check_choices(request, self.settings.max_choices)

    def _body(self, request: GenerationBody, fields: Mapping[str, Any]) -> dict[str, Any]:
        assert isinstance(request, ChatRequest | CompletionRequest)
        body = {**request.model_dump(exclude_none=True, exclude={"adapters", "model"}), **fields}
        if request.most_new_tokens() is None and self.settings.max_new_tokens is not None:
            body["max_tokens"] = self.settings.max_new_tokens
        return {**body, "stream_options": {"include_usage": True}} if request.stream else body

    @asynccontextmanager
    async def _under_way(self, choice: Choice) -> AsyncIterator[Hold]:
        capacity = self.settings.slots + self.settings.queue
        if self._stopping:
            raise StoppingError("the server is stopping and takes no more requests")
        if self._num_running >= capacity:
            raise QueueFullError(
                "the server has more requests than it may keep waiting",
                got=f"{self._num_running} under way",
                expected=f"at most {capacity}",
                hint="try again later, as Retry-After says",
            )
        hold = self._registry.hold(choice.weights)
        self._num_running += 1
        try:
            yield hold
        finally:
            self._num_running -= 1
            self._registry.release(hold)


def refused(reply: httpx2.Response) -> Exception:
    """The error for a reply of the engine that is none: its words, under the status it gave."""
    words = message_of(reply)
    if reply.status_code in (400, 404, 413, 422):
        code = "context_length_exceeded" if "context length" in words else None
        return RequestError("the engine refuses the request", got=words, code=code)
    if reply.status_code == 429:
        return QueueFullError("the engine has too much to do", got=words)
    return UpstreamError("the engine failed", got=f"{reply.status_code} {words}")


def _path(request: GenerationBody) -> str:
    return "/v1/chat/completions" if isinstance(request, ChatRequest) else "/v1/completions"


def _overdue() -> OverdueError:
    return OverdueError(
        "the engine did not finish the answer in its time", hint="start the server with a larger --timeout"
    )


def _lost(error: httpx2.HTTPError) -> UpstreamError:
    return UpstreamError(
        "the connection to the engine was lost", got=type(error).__name__, hint="see the engine's log"
    )
