"""What every request passes first: its number, its key, the size of its body; and the line in the log."""

from __future__ import annotations

import hmac
import json
import logging
import sys
import time
import uuid
from collections.abc import Sequence
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from constrained_adapters.serving.error_bodies import plain_error
from constrained_adapters.serving.metrics import Metrics

OPEN_PATHS = frozenset({"/", "/health", "/ready"})
"""Without a key: they say nothing of models or questions."""

facts_of_request: ContextVar[dict[str, Any]] = ContextVar("facts_of_request")
"""What the log says of the request at hand; the routes add to it."""

log = logging.getLogger("constrained_adapters.serving")


class Gate:
    """An ASGI middleware.

    Args:
        app: What comes after it.
        api_keys: One of them is asked for; empty: none is.
        body_bytes: Most bytes of a body.
        metrics: Counts requests.
        paths: Paths that are counted by name; the rest is counted as one.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        api_keys: Sequence[str],
        body_bytes: int,
        metrics: Metrics,
        paths: Sequence[str],
    ) -> None:
        self._app, self._body_bytes, self._metrics = app, body_bytes, metrics
        self._keys = [key.encode() for key in api_keys]
        self._paths = frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status = time.monotonic(), 499  # the client went before an answer began
        request_id = uuid.uuid4().hex
        facts: dict[str, Any] = {"request": request_id, "method": scope["method"], "path": scope["path"]}
        facts_of_request.set(facts)

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self._pass_on(scope, receive, sending)
        except BaseException:
            status = status if status != 499 else 500
            raise
        finally:
            seconds = time.monotonic() - begun
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.requests.labels(path, str(status)).inc()
            self._metrics.seconds.labels(path).observe(seconds)
            log.info("request", extra={"facts": {**facts, "status": status, "seconds": round(seconds, 4)}})

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        if self._keys and scope["path"] not in OPEN_PATHS and not self._is_known(headers):
            given = "a key that is not known" if b"authorization" in headers else "no key"
            message = f"an API key is needed\n  Got:      {given}\n  Try:      Authorization: Bearer KEY"
            response = plain_error(401, message, {"WWW-Authenticate": "Bearer"})
            await response(scope, receive, send)
            return
        too_large = HTTPException(
            413,
            f"the body is too large\n  Expected: at most {self._body_bytes} bytes",
            {"Connection": "close"},
        )
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._body_bytes:
            await plain_error(413, too_large.detail, too_large.headers)(scope, receive, send)
            return
        num_bytes = 0

        async def receiving() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._body_bytes:
                raise too_large
            return message

        await self._app(scope, receiving, send)

    def _is_known(self, headers: dict[bytes, bytes]) -> bool:
        kind, _, key = headers.get(b"authorization", b"").partition(b" ")
        # All are compared, and each in constant time: how long it takes tells nothing.
        matches = [hmac.compare_digest(key.strip(), known) for known in self._keys]
        return kind.lower() == b"bearer" and any(matches)


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The record, its facts, and where there is one the traceback."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def log_to_stderr() -> None:
    """Write the server's log as JSON lines to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name in ("constrained_adapters.serving", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO if name != "uvicorn.error" else logging.WARNING)
