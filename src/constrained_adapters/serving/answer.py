"""One answer while it is written: its tokens, its text, and what its reader is told."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from constrained_adapters.serving.sampling import Chosen, Sampling, choose, generator_for
from constrained_adapters.serving.text import TextStream

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class TokenFacts:
    """One token with its log-probability.

    Args:
        token: Its text.
        logprob: ln p.
        offset: Where its text begins in the answer, in characters.
        alternatives: The most probable tokens and their ln p.
    """

    token: str
    logprob: float
    offset: int
    alternatives: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Piece:
    """What a reader is told at once.

    Args:
        text: New text, maybe empty.
        tokens: The tokens it is made of, where log-probabilities were asked for.
        finish: Why the answer ends here, if it does.
        num_tokens: Tokens written up to here.
        error: What went wrong; the answer ends.
    """

    text: str = ""
    tokens: tuple[TokenFacts, ...] = ()
    finish: FinishReason | None = None
    num_tokens: int = 0
    error: Exception | None = None


@dataclass(frozen=True)
class Wanted:
    """What is to be written, apart from the prompt.

    Args:
        max_new_tokens: Most tokens of the answer.
        sampling: How tokens are chosen.
        stops: Strings that end the answer.
        deadline: ``time.monotonic()`` after which the answer is given up.
    """

    max_new_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stops: tuple[str, ...] = ()
    deadline: float = float("inf")


class Answer:
    """One answer of a request (a request with ``n`` = 2 has two).

    Args:
        prompt: Token ids, one or more.
        adapters: Weights by the model's own adapter names; empty for the base.
        wanted: What is to be written.
        index: Which of a request's answers this is; part of the seed.
        tokenizer: Makes the text.
        ends: Tokens that end an answer.
        deliver: Called on the thread of the model with each piece.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        adapters: Mapping[str, float],
        wanted: Wanted,
        *,
        index: int,
        tokenizer: Any,
        ends: frozenset[int],
        deliver: Callable[[Piece], None],
    ) -> None:
        self.prompt, self.adapters, self.wanted = list(prompt), dict(adapters), wanted
        self.tokens: list[int] = []
        self.num_cached = 0
        """Tokens whose keys and values are in the cache."""
        self.cancelled = False
        """Set by any thread; the model's thread looks before every step."""
        self.finished = False
        self.alone = False
        """Its prompt is to be read without others beside it: memory was short."""
        self.on_end: list[Callable[[], None]] = []
        self._ends, self._deliver, self._tokenizer = ends, deliver, tokenizer
        self._text = TextStream(tokenizer, prompt, wanted.stops)
        self._generator = generator_for(wanted.sampling, index)
        self._untold: list[TokenFacts] = []

    @property
    def length(self) -> int:
        """Tokens of prompt and answer."""
        return len(self.prompt) + len(self.tokens)

    def is_overdue(self) -> bool:
        """Whether its time is over."""
        return time.monotonic() > self.wanted.deadline

    def write(self, logits: Any) -> None:
        """Choose the next token from its logits, shape (v,), and tell the reader what is certain."""
        chosen = choose(logits, self.wanted.sampling, self._generator)
        self.tokens.append(chosen.token)
        if chosen.token in self._ends:
            self._end(self._text.finish(), "stop")
            return
        offset = self._text.num_characters
        text = self._text.push(chosen.token)
        if chosen.logprob is not None:
            self._untold.append(self._facts(chosen, offset))
        if self._text.stopped_at is not None:
            self._end(text, "stop")
        elif len(self.tokens) >= self.wanted.max_new_tokens:
            self._end(text + self._text.finish(), "length")
        elif text:
            self._deliver(Piece(text, self._told(), num_tokens=len(self.tokens)))

    def fail(self, error: Exception) -> None:
        """End with an error."""
        self._leave(Piece(num_tokens=len(self.tokens), error=error))

    def drop(self) -> None:
        """End without a word: nobody reads any more."""
        self._leave(None)

    def _end(self, text: str, finish: FinishReason) -> None:
        cut = self._text.stopped_at
        if cut is not None:  # a token that lies wholly beyond the cut is no part of the answer
            finish = "stop"
            self._untold = [each for each in self._untold if each.offset < cut]
        self._leave(Piece(text, self._told(), finish, len(self.tokens)))

    def _leave(self, piece: Piece | None) -> None:
        if self.finished:
            return
        self.finished = True
        if piece is not None:
            self._deliver(piece)
        for call in self.on_end:
            call()

    def _told(self) -> tuple[TokenFacts, ...]:
        told, self._untold = tuple(self._untold), []
        return told

    def _facts(self, chosen: Chosen, offset: int) -> TokenFacts:
        assert chosen.logprob is not None
        alternatives = tuple((self._token_text(token), value) for token, value in chosen.alternatives)
        return TokenFacts(self._token_text(chosen.token), chosen.logprob, offset, alternatives)

    def _token_text(self, token: int) -> str:
        text: str = self._tokenizer.decode([token], clean_up_tokenization_spaces=False)
        return text
