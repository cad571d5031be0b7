"""Learners whose steps a penalty may bind, and nothing else does."""

from __future__ import annotations

from abc import ABC
from pathlib import Path
from typing import Any, final

from constrained_adapters.training.learner import Rows
from constrained_adapters.training.penalties import Penalty


class UnderPenalty(ABC):
    """One set of weights, learnt on from domain to domain, under a penalty or free.

    Args:
        penalty: Binds the steps from the second domain on.
    """

    module: Any
    """The model whose trainable parameters are bound."""

    def __init__(self, penalty: Penalty | None) -> None:
        self._penalty = penalty
        self._learnt: list[str] = []

    @final
    def bind(self, domain: str) -> None:
        """Put the penalty in force for the steps of ``domain``."""
        if self._penalty is not None:
            self._penalty.bind(self.module, domain, self._learnt)

    @final
    def learnt(self, domain: str) -> None:
        """Note that ``domain`` is learnt; a penalty in force comes off."""
        if self._penalty is not None:
            self._penalty.release()
        self._learnt.append(domain)

    @final
    def remembers(self, domain: str, home: Path) -> bool:
        """Whether the penalty knows the domain."""
        return self._penalty is None or self._penalty.remembers(domain)

    @final
    def remember(self, number: int, domain: str, home: Path, rows: Rows) -> None:
        """Give the penalty the domain's rows."""
        if self._penalty is not None:
            self._penalty.remember(self.module, domain, rows, seed=number)

    @final
    def describe(self) -> dict[str, float]:
        """Facts of the penalty."""
        return {} if self._penalty is None else self._penalty.describe()
