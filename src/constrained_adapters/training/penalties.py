"""Penalties of a recipe: what binds a domain's steps, and what is kept of the finished domains for it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from constrained_adapters.training.learner import Rows


class Penalty(Protocol):
    """Adds the gradient of a penalty to the steps of the domain in training."""

    def bind(self, model: Any, domain: str, earlier: Sequence[str]) -> None:
        """Put the penalty in force for the trainable parameters of ``model``."""

    def release(self) -> None:
        """Take it off."""

    def remembers(self, domain: str) -> bool:
        """Whether there is nothing of this domain left to remember."""

    def remember(self, model: Any, domain: str, rows: Rows, *, seed: int) -> None:
        """Make and write the memory of a domain, at the present weights of ``model``."""

    def describe(self) -> dict[str, float]:
        """Fixed facts of the penalty in force."""


def note_in(model: Any) -> Callable[[Mapping[str, Tensor]], None]:
    """What writes each step's measurements into ``model.last_measurements`` without keeping it alive."""
    reference = weakref.ref(model)

    def note(measured: Mapping[str, Tensor]) -> None:
        there = reference()
        if there is not None:
            there.last_measurements = {name: float(value) for name, value in measured.items()}

    return note
