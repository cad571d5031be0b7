"""What the sequence needs of the thing that learns, answers of nothing to it, and the learner of nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, final

from torch import Tensor

Rows = Sequence[tuple[Tensor, Tensor]]
"""Token ids and labels of examples, each of shape (s,)."""


class Learner(Protocol):
    """One model that is taught domain after domain; domains are numbered from 1.

    The sequence calls, for each domain, :meth:`begin`, trains :attr:`module`, asks for :meth:`describe` and
    :meth:`predicted_increase_nats`, and calls :meth:`finish`; or, where the domain's folder is there already,
    :meth:`resume`. Then :meth:`remember` unless :meth:`remembers`, and :meth:`show` before anything is
    scored. What a learner computes must depend on its arguments and its files only, so that a run that was
    stopped ends with the same numbers.
    """

    @property
    def module(self) -> Any:
        """The causal language model that is trained and scored now.

        Its ``last_measurements``, where it has them, are the constraint's figures of the last step.
        """

    def prepare(self, tell: Callable[[str], None]) -> None:
        """What needs no domain, such as the memory of the base; ``tell`` says what takes long."""

    def begin(self, number: int, domain: str, rows: Rows) -> None:
        """Make ready to train a domain, with what binds its steps; ``rows`` are some of its examples."""

    def finish(self, domain: str, folder: Path) -> None:
        """End training and write what was learnt into an empty folder."""

    def resume(self, number: int, domain: str, home: Path) -> None:
        """Become what :meth:`finish` left in ``home``."""

    def remembers(self, domain: str, home: Path) -> bool:
        """Whether there is no memory of this domain left to make."""

    def remember(self, number: int, domain: str, home: Path, rows: Rows) -> None:
        """Make the memory of the domain just learnt from some of its training rows, and write it."""

    def show(self, row: int, number: int) -> None:
        """Take the state in which domain ``number`` (0: text of no domain) is scored after ``row``."""

    def shown_since(self, row: int, number: int) -> int:
        """The first row at which that state was the same: its scores need not be taken again."""

    def settle(self, homes: Sequence[Path]) -> None:
        """All of the domains in ``homes`` are measured: drop what only an earlier one needed."""

    def describe(self) -> dict[str, float]:
        """Fixed facts of the constraint in force."""

    def predicted_increase_nats(self, domain: str) -> dict[str, float]:
        """For each finished domain the loss increase that its memory predicts for the domain in training."""

    def release(self) -> None:
        """Give the base back as it was."""


class NeedsNothing:
    """A learner with nothing to make before the first domain, and no memory that predicts."""

    @final
    def prepare(self, tell: Callable[[str], None]) -> None:
        """Nothing."""

    @final
    def predicted_increase_nats(self, domain: str) -> dict[str, float]:
        """No prediction."""
        return {}


class OneState(NeedsNothing):
    """A learner that is scored as it stands, whichever domain is asked about, on a model of its own."""

    @final
    def show(self, row: int, number: int) -> None:
        """The weights are what they are."""

    @final
    def release(self) -> None:
        """Nothing: the base itself was not touched."""


class KeepsNoMemory:
    """A learner that measures nothing of a finished domain."""

    @final
    def remembers(self, domain: str, home: Path) -> bool:
        """Nothing is left to remember."""
        return True

    @final
    def remember(self, number: int, domain: str, home: Path, rows: Rows) -> None:
        """Nothing."""


@final
class Untrained(OneState, KeepsNoMemory):
    """The base as it is: the reference of what was known before."""

    def __init__(self, model: Any) -> None:
        self.module = model

    def begin(self, number: int, domain: str, rows: Rows) -> None:
        """Never called: there is nothing to train."""

    def finish(self, domain: str, folder: Path) -> None:
        """Nothing."""

    def resume(self, number: int, domain: str, home: Path) -> None:
        """Nothing."""

    def shown_since(self, row: int, number: int) -> int:
        """Row 0."""
        return 0

    def settle(self, homes: Sequence[Path]) -> None:
        """Nothing."""

    def describe(self) -> dict[str, float]:
        """No constraint."""
        return {}
