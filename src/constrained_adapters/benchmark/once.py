"""An observer for many runs on the same data: what all of them say is passed on once."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from constrained_adapters.training.observer import RunObserver


class SayOnce:
    """Passes all on to another observer, a message with the same words only the first time.

    Args:
        observer: Is told.
    """

    def __init__(self, observer: RunObserver) -> None:
        self._observer = observer
        self._said: set[str] = set()

    def message(self, text: str) -> None:
        """Something worth a line, unless it was said: the notes on the data are those of every cell."""
        if text not in self._said:
            self._said.add(text)
            self._observer.message(text)

    def started(self, total_methods: int, domains: list[str]) -> None:
        """Pass on."""
        self._observer.started(total_methods, domains)

    def stage(self, method: str, domain: str | None, text: str) -> None:
        """Pass on."""
        self._observer.stage(method, domain, text)

    def steps(self, method: str, domain: str, done: int, total: int, loss: float | None) -> None:
        """Pass on."""
        self._observer.steps(method, domain, done, total, loss)

    def row(self, method: str, row: int, scores: dict[str, dict[str, float]]) -> None:
        """Pass on."""
        self._observer.row(method, row, scores)
