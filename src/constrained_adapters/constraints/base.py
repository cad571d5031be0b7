"""What every constraint is: something that acts before and after an optimizer's step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn


class Constraint(ABC):
    """Binds the steps of the parameters that it names.

    :func:`constrained_adapters.constraints.attach.attach` calls :meth:`before_step` when the
    gradients are complete (accumulated, unscaled, clipped) and :meth:`after_step` right after
    the optimizer changed the parameters.
    """

    projects: ClassVar[bool] = False
    """Whether it takes something away from the whole gradient, and so acts after those that add to it."""

    @property
    @abstractmethod
    def parameters(self) -> list[nn.Parameter]:
        """The parameters whose steps are bound."""

    @abstractmethod
    def before_step(self) -> None:
        """Change the gradients in place."""

    @abstractmethod
    def after_step(self) -> None:
        """Change the parameters in place."""

    @abstractmethod
    def measurements(self) -> dict[str, Tensor]:
        """What the last step's constraint did, as 0-dim tensors (no device sync).

        ``removed_ratio``: norm of the removed gradient over the norm of the whole, 0 … 1.
        """

    def strengthen(self, factor: float) -> dict[str, float]:
        """Weigh what is protected ``factor`` times as much from the next step on.

        Returns:
            What is in force now, by name; empty where nothing here can be made stronger.
        """
        return {}

    @abstractmethod
    def describe(self) -> dict[str, float]:
        """Fixed facts, such as ``closed_ratio``, the mean share of directions that are closed."""
