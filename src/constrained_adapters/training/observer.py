"""What a run tells whoever watches it; the terminal's progress bars are one such watcher."""

from __future__ import annotations

from typing import Protocol


class RunObserver(Protocol):
    """Told about a run's progress; must not change anything."""

    def started(self, total_methods: int, domains: list[str]) -> None:
        """The run begins."""

    def stage(self, method: str, domain: str | None, text: str) -> None:
        """A part without steps begins, such as making a memory."""

    def steps(self, method: str, domain: str, done: int, total: int, loss: float | None) -> None:
        """An optimizer step is done."""

    def row(self, method: str, row: int, scores: dict[str, dict[str, float]]) -> None:
        """Row ``row`` of R is measured: domain → metric → value."""

    def message(self, text: str) -> None:
        """Something worth a line."""


class SilentObserver:
    """A :class:`RunObserver` that does nothing."""

    def started(self, total_methods: int, domains: list[str]) -> None:
        """Ignore."""

    def stage(self, method: str, domain: str | None, text: str) -> None:
        """Ignore."""

    def steps(self, method: str, domain: str, done: int, total: int, loss: float | None) -> None:
        """Ignore."""

    def row(self, method: str, row: int, scores: dict[str, dict[str, float]]) -> None:
        """Ignore."""

    def message(self, text: str) -> None:
        """Ignore."""
