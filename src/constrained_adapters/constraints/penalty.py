"""Constraints that add the gradient of a penalty to the step.

The gradient is added once per optimizer step, when the loss's own is complete: accumulated, unscaled and
*clipped*. So the penalty is neither divided by the accumulated batches nor clipped with the loss, and
``max_grad_norm`` bounds the loss's share of the step only.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from constrained_adapters.constraints.base import Constraint

_NOTHING = {name: torch.zeros(()) for name in ("penalty", "penalty_ratio", "penalty_cosine")}


class PenaltyConstraint(Constraint):
    """Adds ∂P/∂θ to the gradient of each parameter that has one; a subclass says what P is."""

    def __init__(self) -> None:
        self._measured = dict(_NOTHING)
        self._factor = 1.0

    @abstractmethod
    def terms(self) -> Iterator[tuple[nn.Parameter, Tensor, Tensor]]:
        """For each parameter ∂P/∂θ and its share of P (0-dim), at the present weights; one at a time."""

    @torch.no_grad()
    def before_step(self) -> None:
        """Add the penalty's gradient, and note the penalty before the step."""
        own, added, value, shared = [], [], [], []
        for parameter, gradient, share in self.terms():
            value.append(self._factor * share.float())
            if parameter.grad is None:
                continue
            own.append(parameter.grad.float().norm())
            shared.append((parameter.grad.float() * gradient.float()).sum())
            added.append(self._factor * gradient.float().norm())
            parameter.grad.add_(gradient.to(parameter.grad.dtype), alpha=self._factor)
        if not added:
            self._measured = dict(_NOTHING)
            return
        loss_norm, penalty_norm = torch.stack(own).norm(), torch.stack(added).norm()
        dot = self._factor * torch.stack(shared).sum()
        self._measured = {
            "penalty": torch.stack(value).sum(),
            "penalty_ratio": penalty_norm / loss_norm.clamp_min(1e-30),
            "penalty_cosine": dot / (loss_norm * penalty_norm).clamp_min(1e-30),
        }

    def after_step(self) -> None:
        """Nothing: a penalty acts through the gradient only."""

    def strengthen(self, factor: float) -> dict[str, float]:
        """The penalty counts ``factor`` times as much; ``penalty_factor`` is the product so far."""
        self._factor *= factor
        return {"penalty_factor": self._factor}

    def measurements(self) -> dict[str, Tensor]:
        """What the last step met.

        ``penalty``: P before it; ``penalty_ratio``: ‖∂P/∂θ‖ over the norm of the loss's; ``penalty_cosine``:
        of both gradients, −1 … 1: below 0 a step down the loss alone would raise P.
        """
        return dict(self._measured)
