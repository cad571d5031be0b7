"""Text of tokens as they come: whole characters only, and nothing that may turn out to be a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

CONTEXT_TOKENS = 5
"""Tokens of the prompt that are decoded along: some tokenizers drop a space at the start of a text."""


class TextStream:
    """Turns the tokens of one answer into text.

    Args:
        tokenizer: Of transformers.
        prompt: Token ids before the answer.
        stops: Strings that end the answer; none of them is ever part of the text that is given out.
    """

    def __init__(self, tokenizer: Any, prompt: Sequence[int], stops: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stops = [stop for stop in stops if stop]
        self._ids = list(prompt[-CONTEXT_TOKENS:])
        self._begin, self._read = 0, len(self._ids)
        self._held = ""
        self.num_characters = 0
        """Characters seen, those still held included."""
        self.stopped_at: int | None = None
        """Where the text was cut by a stop string, in characters."""

    def push(self, token: int) -> str:
        """Take the next token; return the text that is certain now."""
        self._ids.append(token)
        known = self._decode(self._begin, self._read)
        now = self._decode(self._begin, len(self._ids))
        if len(now) <= len(known) or now.endswith("\ufffd"):  # half a character
            return ""
        self._begin, self._read = self._read, len(self._ids)
        return self._take(now[len(known) :])

    def finish(self) -> str:
        """Return what was still held, half characters as the tokenizer shows them."""
        rest = self._decode(self._begin, len(self._ids))[len(self._decode(self._begin, self._read)) :]
        self._begin = self._read = len(self._ids)
        certain = self._take(rest) if rest else ""
        held, self._held = self._held, ""
        return certain + held

    def _take(self, text: str) -> str:
        held = self._held + text
        start = self.num_characters - len(self._held)
        self.num_characters += len(text)
        found = [place for stop in self._stops if (place := held.find(stop)) >= 0]
        if found:
            self.stopped_at = start + min(found)
            self._held = ""
            return held[: min(found)]
        keep = max((_overlap(held, stop) for stop in self._stops), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def _decode(self, begin: int, end: int) -> str:
        text: str = self._tokenizer.decode(
            self._ids[begin:end], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that is a beginning of ``stop``."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
