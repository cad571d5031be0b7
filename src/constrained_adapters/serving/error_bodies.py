"""Errors as HTTP statuses and bodies in OpenAI's form, with what to try in the message."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from constrained_adapters.errors import ConstrainedAdaptersError, ModelError, UsageError
from constrained_adapters.serving import requests
from constrained_adapters.serving.failures import (
    MemoryShortError,
    OverdueError,
    QueueFullError,
    RequestError,
    StoppingError,
    UnknownModelError,
    UpstreamError,
)

RETRY_SECONDS = 1
"""What a client that was refused should wait: about as long as some answers take."""

_FIELDS = sorted(
    {
        name
        for each in (requests.ChatRequest, requests.CompletionRequest, requests.LoadAdapterRequest)
        for name in each.model_fields
    }
)

_FORM = re.compile(r"(str$|constrained-|list\[|nullable)")
"""Parts of a fault's place that name one of a field's forms."""

# The first that fits counts.
_STATUS: list[tuple[type[Exception], int, str, str | None]] = [
    (UnknownModelError, 404, "invalid_request_error", "model_not_found"),
    (QueueFullError, 429, "rate_limit_error", "queue_full"),
    (OverdueError, 504, "timeout_error", "timeout"),
    (StoppingError, 503, "server_error", "stopping"),
    (MemoryShortError, 503, "server_error", "out_of_memory"),
    (UpstreamError, 502, "server_error", "upstream"),
    (UsageError, 400, "invalid_request_error", None),
    (ConstrainedAdaptersError, 500, "server_error", None),
]


def body_of(error: Exception) -> tuple[int, dict[str, Any]]:
    """The status of an error, and its body."""
    for kind, status, name, code in _STATUS:
        if isinstance(error, kind):
            own = error.code if isinstance(error, RequestError) else None
            param = error.param if isinstance(error, RequestError) else None
            return status, error_body(str(error), name, param=param, code=own or code)
    return 500, error_body("the server failed; its log says more", "server_error")


def error_body(
    message: str, kind: str, *, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """OpenAI's form of an error."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_response(error: Exception) -> JSONResponse:
    """The response that says what went wrong."""
    status, body = body_of(error)
    headers = {"Retry-After": str(RETRY_SECONDS)} if status in (429, 503) else None
    return JSONResponse(body, status, headers)


def plain_error(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An error of HTTP itself: no such page, no such method, no key, too large."""
    kind, code = {
        401: ("authentication_error", "invalid_api_key"),
        404: ("invalid_request_error", "not_found"),
        405: ("invalid_request_error", "method_not_allowed"),
        413: ("invalid_request_error", "body_too_large"),
    }.get(status, ("invalid_request_error" if status < 500 else "server_error", None))
    return JSONResponse(error_body(message, kind, code=code), status, headers)


def validation_response(error: RequestValidationError) -> JSONResponse:
    """A body that is no JSON, or not the JSON that is wanted: the field, what it holds, what to try."""
    faults = _told_faults(error.errors())
    first = faults[0]
    place = ".".join(str(part) for part in first["loc"][1:] if not _FORM.match(str(part)))
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", "it ends too early")
        message = f"the body is not JSON\n  Got:      {reason}, at character {first['loc'][-1]}"
        return JSONResponse(error_body(message, "invalid_request_error", code="invalid_json"), 400)
    lines = [f"{place or 'the body'}: {first['msg']}"]
    if first["type"] == "extra_forbidden":
        lines[0] = f"unknown field {place!r}"
        near = difflib.get_close_matches(place, _FIELDS, n=1)
        lines += [f"  Try:      {near[0]}"] if near else []
    elif "input" in first and not isinstance(first["input"], dict | list | bytes):
        lines.insert(1, f"  Got:      {_short(first['input'])}")
    return JSONResponse(error_body("\n".join(lines), "invalid_request_error", param=place or None), 400)


def _told_faults(faults: Sequence[Any]) -> list[Any]:
    """Unknown fields first; then the form that came nearest, of a field that takes several."""

    def rank(fault: Any) -> int:
        return 0 if fault["type"] == "extra_forbidden" else 2 if fault["type"].endswith("_type") else 1

    return sorted(faults, key=rank)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


def failed_load(error: Exception) -> Exception:
    """An adapter that cannot be loaded is the request's fault, not the server's."""
    if isinstance(error, ModelError):
        return RequestError(
            error.what, got=error.got, expected=error.expected, hint=error.hint, param="lora_path"
        )
    return error
