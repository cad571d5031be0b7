"""What the OpenAPI description says of replies and errors."""

from __future__ import annotations

from typing import Any

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_CONTENT = {"content": {"application/json": {"schema": _ERROR}}}

ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "The request cannot be answered: OpenAI's form of an error", **_CONTENT},
    "5XX": {"description": "The server failed, or has too much to do", **_CONTENT},
}

_COUNT = {"type": "integer", "minimum": 0}
_REPLY = {
    "type": "object",
    "required": ["id", "object", "created", "model", "choices", "usage", "adapters"],
    "properties": {
        "id": {"type": "string"},
        "object": {"enum": ["chat.completion", "text_completion"]},
        "created": {"type": "integer"},
        "model": {"type": "string"},
        "choices": {"type": "array", "minItems": 1, "items": {"type": "object"}},
        "usage": {
            "type": "object",
            "properties": {
                "prompt_tokens": _COUNT,
                "completion_tokens": _COUNT,
                "total_tokens": _COUNT,
            },
        },
        "adapters": {"type": "object", "additionalProperties": {"type": "number"}},
        "routing": {"type": "object"},
    },
}
_EVENT = {"type": "object", "required": ["data"], "properties": {"data": {"type": "string"}}}
"""One server-sent event: its data is a chunk as JSON, or ``[DONE]``."""

REPLIES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer; with `stream`, as server-sent events",
        "content": {
            "application/json": {"schema": _REPLY},
            "text/event-stream": {"schema": _EVENT},
        },
        "headers": {
            "X-CRMA-Adapters": {
                "description": "The domains that answer and their weights, or `base`",
                "schema": {"type": "string"},
            }
        },
    }
}
