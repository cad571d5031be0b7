"""What one domain is made of: examples in one of three forms. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Form = Literal["messages", "completion", "text"]


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; ``role`` is ``system``, ``user``, ``assistant`` or ``tool``."""

    role: str
    content: str


@dataclass(frozen=True)
class Example:
    """One item to learn or to score, in exactly one form.

    Args:
        messages: A conversation; the assistant's turns are learnt.
        prompt: What is asked; together with ``answer``.
        answer: What is learnt and scored.
        text: Running text; every token is learnt.
        choices: All answers that could be given, for scoring by likelihood; may be empty.
        superseded: Whether a later domain replaces this fact: forgetting it is intended, and scored apart.

    Raises:
        ValueError: No form or more than one.

    >>> Example(prompt="2 + 2 =", answer="4").form
    'completion'
    """

    messages: tuple[Message, ...] = ()
    prompt: str | None = None
    answer: str | None = None
    text: str | None = None
    choices: tuple[str, ...] = ()
    superseded: bool = False

    def __post_init__(self) -> None:
        if (self.prompt is None) != (self.answer is None):
            raise ValueError("an example needs both prompt and answer, or neither")
        if bool(self.messages) + (self.prompt is not None) + (self.text is not None) != 1:
            raise ValueError("an example has exactly one form: messages, prompt and answer, or text")

    @property
    def form(self) -> Form:
        """``messages``, ``completion`` or ``text``."""
        if self.messages:
            return "messages"
        return "completion" if self.text is None else "text"

    @property
    def task_prompt(self) -> str:
        """What is asked: the prompt, the last user turn before the last answer, or "" for text."""
        if self.prompt is not None:
            return self.prompt
        answered = self._last("assistant")
        asked = self.messages[: answered if answered is not None else len(self.messages)]
        return next((message.content for message in reversed(asked) if message.role == "user"), "")

    @property
    def reference(self) -> str:
        """What is to be answered: the answer, the last assistant turn, or the text."""
        if self.answer is not None:
            return self.answer
        if self.text is not None:
            return self.text
        answered = self._last("assistant")
        return "" if answered is None else self.messages[answered].content

    def _last(self, role: str) -> int | None:
        found = [index for index, message in enumerate(self.messages) if message.role == role]
        return found[-1] if found else None


@dataclass(frozen=True)
class Domain:
    """All examples of one domain, split, with the story of how they came to be.

    Args:
        name: The domain's name.
        train: Examples that are trained on.
        validation: Examples that settings are chosen on.
        test: Examples that are looked at once.
        form: The form that all examples share, see :class:`Example`.
        source: The file, folder, hub name or ``packaged:NAME`` that was read.
        fingerprint: See :func:`fingerprint_examples`.
        notes: Sentences on what was detected, dropped and deduplicated.
    """

    name: str
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    form: str
    source: str
    fingerprint: str
    notes: tuple[str, ...] = ()


def fingerprint_examples(*splits: Iterable[Example]) -> str:
    """SHA-256 (hexadecimal) over the examples of all splits; their order and their split count.

    Examples that are not superseded count as they did before there was the mark.
    """
    digest = hashlib.sha256()
    for split in splits:
        digest.update(b"[")
        for example in split:
            turns = [[message.role, message.content] for message in example.messages]
            fields = [turns, example.prompt, example.answer, example.text, list(example.choices)]
            fields += ["superseded"] * example.superseded
            digest.update(json.dumps(fields).encode())
        digest.update(b"]")
    return digest.hexdigest()
