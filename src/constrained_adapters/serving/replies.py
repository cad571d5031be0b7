"""Answers in the shapes of OpenAI's API: whole, or as the chunks of a stream."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from constrained_adapters.serving.answer import Piece, TokenFacts
from constrained_adapters.serving.requests import ChatRequest, GenerationBody


@dataclass
class Collected:
    """What was heard of one answer so far."""

    text: str = ""
    tokens: list[TokenFacts] = field(default_factory=list)
    finish: str | None = None
    num_tokens: int = 0

    def add(self, piece: Piece) -> None:
        """Take a piece in."""
        self.text += piece.text
        self.tokens += piece.tokens
        self.finish, self.num_tokens = piece.finish, piece.num_tokens


class ReplyWriter:
    """Writes the reply to one request.

    Args:
        request: The request.
        facts: Fields that every reply and chunk has beside OpenAI's.
    """

    def __init__(self, request: GenerationBody, facts: Mapping[str, Any]) -> None:
        self._is_chat = isinstance(request, ChatRequest)
        self._logprobs = request.num_logprobs() is not None
        prefix, kind = ("chatcmpl", "chat.completion") if self._is_chat else ("cmpl", "text_completion")
        self._kind = kind
        self._head = {"created": int(time.time()), "model": request.model, **facts}
        self.id = f"{prefix}-{uuid.uuid4().hex}"
        self._begun: set[int] = set()

    def whole(self, answers: Sequence[Collected], num_prompt_tokens: int) -> dict[str, Any]:
        """The reply, once all is written."""
        choices = [self._choice(index, answer) for index, answer in enumerate(answers)]
        usage = usage_of(num_prompt_tokens, sum(each.num_tokens for each in answers))
        return {"id": self.id, "object": self._kind, **self._head, "choices": choices, "usage": usage}

    def chunks(self, index: int, piece: Piece) -> Iterator[dict[str, Any]]:
        """The chunks that tell of one piece."""
        if not self._is_chat:
            logprobs = completion_logprobs(piece.tokens) if self._logprobs else None
            choice = {"index": index, "text": piece.text, "logprobs": logprobs, "finish_reason": piece.finish}
            yield self._chunk([choice])
            return
        if index not in self._begun:
            self._begun.add(index)
            yield self._delta(index, {"role": "assistant", "content": ""})
        if piece.text or piece.tokens:
            logprobs = chat_logprobs(piece.tokens) if self._logprobs else None
            yield self._delta(index, {"content": piece.text}, logprobs=logprobs)
        if piece.finish is not None:
            yield self._delta(index, {}, finish=piece.finish)

    def usage_chunk(self, num_prompt_tokens: int, num_new_tokens: int) -> dict[str, Any]:
        """The last chunk: counts of tokens alone."""
        return {**self._chunk([]), "usage": usage_of(num_prompt_tokens, num_new_tokens)}

    def _choice(self, index: int, answer: Collected) -> dict[str, Any]:
        if not self._is_chat:
            logprobs = completion_logprobs(answer.tokens) if self._logprobs else None
            return {
                "index": index,
                "text": answer.text,
                "logprobs": logprobs,
                "finish_reason": answer.finish,
            }
        return {
            "index": index,
            "message": {"role": "assistant", "content": answer.text, "refusal": None},
            "logprobs": chat_logprobs(answer.tokens) if self._logprobs else None,
            "finish_reason": answer.finish,
        }

    def _delta(
        self,
        index: int,
        delta: dict[str, Any],
        *,
        logprobs: dict[str, Any] | None = None,
        finish: str | None = None,
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return self._chunk([choice])

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self._is_chat else self._kind
        return {"id": self.id, "object": kind, **self._head, "choices": choices}


def usage_of(num_prompt_tokens: int, num_new_tokens: int) -> dict[str, int]:
    """OpenAI's counts of tokens."""
    return {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": num_new_tokens,
        "total_tokens": num_prompt_tokens + num_new_tokens,
    }


def chat_logprobs(tokens: Sequence[TokenFacts]) -> dict[str, Any]:
    """Log-probabilities as chat completions have them."""
    return {
        "content": [
            {
                **_token(each.token, each.logprob),
                "top_logprobs": [_token(token, value) for token, value in each.alternatives],
            }
            for each in tokens
        ],
        "refusal": None,
    }


def completion_logprobs(tokens: Sequence[TokenFacts]) -> dict[str, Any]:
    """Log-probabilities as text completions have them."""
    return {
        "tokens": [each.token for each in tokens],
        "token_logprobs": [each.logprob for each in tokens],
        "top_logprobs": [dict(each.alternatives) for each in tokens],
        "text_offset": [each.offset for each in tokens],
    }


def _token(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(text.encode("utf-8", "replace"))}
