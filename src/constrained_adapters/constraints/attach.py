"""Hang a constraint on every optimizer that steps its parameters.

torch's global step hooks reach whatever optimizer a Trainer, TRL's SFTTrainer or a hand-written
loop makes, at the one moment when gradients are accumulated, unscaled and complete.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from constrained_adapters.constraints.base import Constraint
from constrained_adapters.errors import TrainingError


class Attachment:
    """A constraint in force until :meth:`remove`.

    Args:
        constraint: What binds the steps.
        domain: Named in errors.
        on_step: Called after each bound step with the constraint's measurements.
    """

    def __init__(
        self, constraint: Constraint, *, domain: str, on_step: Callable[[dict[str, Any]], None] | None = None
    ) -> None:
        self.constraint = constraint
        self._domain, self._on_step, self._num_steps = domain, on_step, 0
        self._bound_ids = {id(p) for p in constraint.parameters}
        self._concerns: WeakKeyDictionary[Optimizer, bool] = WeakKeyDictionary()
        self._handles = [
            register_optimizer_step_pre_hook(self._before),
            register_optimizer_step_post_hook(self._after),
        ]

    def remove(self) -> None:
        """Take the constraint off; later steps are free."""
        for handle in self._handles:
            handle.remove()

    def _binds(self, optimizer: Optimizer) -> bool:
        if optimizer not in self._concerns:
            ids = {id(p) for group in optimizer.param_groups for p in group["params"]}
            self._concerns[optimizer] = not ids.isdisjoint(self._bound_ids)
        return self._concerns[optimizer]

    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not self._binds(optimizer):
            return
        self.constraint.before_step()
        if not bool(torch.isfinite(self.constraint.measurements()["removed_ratio"])):
            raise TrainingError(
                f"the gradient of domain {self._domain!r} is not finite at step {self._num_steps + 1}",
                hint="lower the learning rate, or look for broken examples near this step",
            )

    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not self._binds(optimizer):
            return
        self.constraint.after_step()
        self._num_steps += 1
        if self._on_step is not None:
            self._on_step(self.constraint.measurements())


def attach(
    constraint: Constraint, *, domain: str, on_step: Callable[[dict[str, Any]], None] | None = None
) -> Attachment:
    """Put ``constraint`` in force for every optimizer that holds one of its parameters."""
    return Attachment(constraint, domain=domain, on_step=on_step)
