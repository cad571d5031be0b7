"""Several constraints as one: one check of the gradients and one copy to go back to serve them all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from torch import Tensor, nn

from constrained_adapters.constraints.base import Constraint


@final
class InTurn(Constraint):
    """Each part acts in the given order, before the step and after it: what adds first, what projects last.

    Args:
        parts: At least one; no two measure or describe the same thing.
    """

    projects = True

    def __init__(self, parts: Sequence[Constraint]) -> None:
        self._parts = list(parts)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Those of all parts, each once."""
        return list({id(p): p for part in self._parts for p in part.parameters}.values())

    def before_step(self) -> None:
        """Of each part."""
        for part in self._parts:
            part.before_step()

    def after_step(self) -> None:
        """Of each part."""
        for part in self._parts:
            part.after_step()

    def measurements(self) -> dict[str, Tensor]:
        """Of all parts."""
        return {name: value for part in self._parts for name, value in part.measurements().items()}

    def strengthen(self, factor: float) -> dict[str, float]:
        """Each part that can be."""
        return {name: value for part in self._parts for name, value in part.strengthen(factor).items()}

    def describe(self) -> dict[str, float]:
        """Of all parts."""
        return {name: value for part in self._parts for name, value in part.describe().items()}
