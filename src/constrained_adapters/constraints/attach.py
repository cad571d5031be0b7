"""Hang a constraint on every optimizer that steps its parameters.

torch's global step hooks reach whatever optimizer a Trainer, TRL's SFTTrainer or a hand-written
loop makes, at the one moment when gradients are accumulated, unscaled and complete.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

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
        owner: The constraint comes off when this object is freed, such as the model whose steps it
            binds; ``on_step`` must not keep it alive.
    """

    def __init__(
        self,
        constraint: Constraint,
        *,
        domain: str,
        on_step: Callable[[dict[str, Any]], None] | None = None,
        owner: object = None,
    ) -> None:
        self.constraint = constraint
        self._domain, self._on_step, self._num_steps = domain, on_step, 0
        self._bound_ids = {id(p) for p in constraint.parameters}
        self._handles = [
            register_optimizer_step_pre_hook(self._before),
            register_optimizer_step_post_hook(self._after),
        ]
        self._farewell = None if owner is None else weakref.finalize(owner, self.remove)

    def remove(self) -> None:
        """Take the constraint off; later steps are free."""
        for handle in self._handles:
            handle.remove()
        if self._farewell is not None:
            self._farewell.detach()

    def _binds(self, optimizer: Optimizer) -> bool:
        return any(id(p) in self._bound_ids for group in optimizer.param_groups for p in group["params"])

    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not self._binds(optimizer) or _overflowed(optimizer):
            return
        parameters = (p for group in optimizer.param_groups for p in group["params"])
        gradients = [p.grad for p in parameters if p.grad is not None]
        if gradients and not bool(
            torch.isfinite(torch.stack(torch._foreach_norm(gradients, 2, torch.float32))).all()
        ):
            raise TrainingError(
                f"the gradient of domain {self._domain!r} is not finite at step {self._num_steps + 1}",
                hint="lower the learning rate, or look for broken examples near this step",
            )
        self.constraint.before_step()

    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not self._binds(optimizer):
            return
        self.constraint.after_step()
        self._num_steps += 1
        if self._on_step is not None:
            self._on_step(self.constraint.measurements())


def _overflowed(optimizer: Optimizer) -> bool:
    """Whether a gradient scaler found a float16 overflow: a fused optimizer skips such a step by itself."""
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)


def attach(
    constraint: Constraint,
    *,
    domain: str,
    on_step: Callable[[dict[str, Any]], None] | None = None,
    owner: object = None,
) -> Attachment:
    """Put ``constraint`` in force for every optimizer that holds one of its parameters."""
    return Attachment(constraint, domain=domain, on_step=on_step, owner=owner)
