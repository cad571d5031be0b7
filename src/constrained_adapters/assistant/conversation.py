"""A conversation with a finished run: each question is answered by its domain, a mix, or the base."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from constrained_adapters.assistant.streaming import Decoding, encode_conversation, stream_answer
from constrained_adapters.data.examples import Message
from constrained_adapters.errors import AdapterStateError
from constrained_adapters.model.opened import OpenedModel
from constrained_adapters.routing import BASE, Route, Router

LEAST_PROMPT_TOKENS = 16


@dataclass(frozen=True)
class Choice:
    """What answers a question.

    Args:
        weights: Domains with their weights; empty for the base.
        route: The router's decision, where it was asked.
    """

    weights: Mapping[str, float]
    route: Route | None = None

    def __str__(self) -> str:
        """The domain with the router's probability, a mix, or the base."""
        if self.route is not None and len(self.weights) < 2:
            return f"{self.route.domain or BASE} {100 * self.route.probability:.0f} %"
        if not self.weights:
            return BASE
        if list(self.weights.values()) == [1.0]:
            return next(iter(self.weights))
        return " + ".join(f"{weight:g} {name}" for name, weight in self.weights.items())


@dataclass(frozen=True)
class Turn:
    """One question with its answer.

    Args:
        question: Of the user.
        answer: As far as it was written.
        choice: What answered.
        whole: Whether the answer came to its end.
    """

    question: str
    answer: str
    choice: Choice
    whole: bool


@dataclass
class Conversation:
    """Questions to a finished run, with their history.

    Args:
        opened: The run.
        router: Picks the domain of each question while none is chosen; None: one must be chosen.
        decoding: How answers are written.
    """

    opened: OpenedModel
    router: Router | None = None
    decoding: Decoding = field(default_factory=Decoding)
    turns: list[Turn] = field(default_factory=list, init=False)
    _chosen: dict[str, float] | None = field(default=None, init=False)

    @property
    def mode(self) -> str:
        """``auto``, or what was chosen."""
        return "auto" if self._chosen is None else str(Choice(self._chosen))

    def use_auto(self) -> None:
        """Let the router pick the domain of each question.

        Raises:
            AdapterStateError: There is no router.
        """
        if self.router is None:
            raise AdapterStateError(
                "this run has no router, so a domain must be chosen",
                got=f"domains: {', '.join(self.opened.domains)}",
                hint=f"crma route --build --run {self.opened.workspace.root}",
            )
        self._chosen = None

    def use_base(self) -> None:
        """Let the base answer."""
        self._chosen = {}

    def use(self, weights: Mapping[str, float]) -> None:
        """Let a domain, ``{name: 1.0}``, or a mix of domains answer.

        Raises:
            UnknownNameError: There is no such domain.
            ConfigError: A weight is not a finite number.
        """
        self.opened.adapters_for(weights)
        self._chosen = dict(weights)

    def choose(self, question: str) -> Choice:
        """What would answer a question now.

        Raises:
            AdapterStateError: Nothing is chosen, and there is no router.
        """
        if self._chosen is not None:
            return Choice(self._chosen)
        if self.router is None:
            self.use_auto()
        assert self.router is not None
        asked = [{"role": turn.role, "content": turn.content} for turn in self._messages(question)]
        route = self.router.route(asked)
        return Choice(route.weights, route)

    def ask(
        self,
        question: str,
        *,
        choice: Choice | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> Turn:
        """Answer a question; it and the answer become part of the history.

        Args:
            question: Of the user.
            choice: What answers; default: :meth:`choose`.
            on_text: Given each piece of the answer while it is written.

        Raises:
            AdapterStateError: Nothing is chosen, and there is no router.
            DataError: The model's chat template refuses the conversation.
        """
        choice = choice or self.choose(question)
        opened = self.opened
        longest = getattr(opened.model.config.get_text_config(), "max_position_embeddings", 1 << 20)
        room = max(longest - self.decoding.max_new_tokens, LEAST_PROMPT_TOKENS)
        prompt = encode_conversation(self._messages(question), opened.tokenizer, room)
        opened.activate(choice.weights or None)
        text, whole = stream_answer(opened.model, opened.tokenizer, prompt, self.decoding, on_text)
        turn = Turn(question, text, choice, whole)
        self.turns.append(turn)
        return turn

    def forget(self) -> None:
        """Begin anew: what was said is not told to the model any more."""
        self.turns.clear()

    def _messages(self, question: str) -> list[Message]:
        said = [
            message
            for turn in self.turns
            for message in (Message("user", turn.question), Message("assistant", turn.answer))
        ]
        return [*said, Message("user", question)]
