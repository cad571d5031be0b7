"""Hang a constraint on every optimizer that steps its parameters.

torch's global step hooks reach whatever optimizer a Trainer, TRL's SFTTrainer or a hand-written
loop makes, at the one moment when gradients are accumulated, unscaled and complete.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from constrained_adapters.constraints.base import Constraint
from constrained_adapters.constraints.finite import LastGood, first_not_finite
from constrained_adapters.errors import TrainingError

_in_force: weakref.WeakSet[Attachment] = weakref.WeakSet()
_numbers = itertools.count()


class Attachment:
    """A constraint in force until :meth:`remove`.

    Several can be in force at once. Those that project act after those that add to the gradient, whichever
    was attached first; of one kind the earlier acts first. A gradient is bound once, in the step of the
    optimizer that holds its parameter; where a closure computes it within the step, after each evaluation.

    A gradient that is not finite stops the run before the step; a step that makes a weight not finite
    is taken back and stops the run too. Both errors name domain, step and parameter. What is taken
    back are the weights, up to :data:`~constrained_adapters.constraints.finite.SNAPSHOT_BYTES` of
    them; the optimizer's own state is not.

    Args:
        constraint: What binds the steps.
        domain: Named in errors.
        on_step: Called after each bound step with the constraint's measurements.
        owner: The constraint comes off when this object is freed, such as the model whose steps it
            binds; ``on_step`` must not keep it alive. A module's parameter names are used in errors.
        watched: Parameters whose steps are checked for broken numbers though the constraint leaves them free.
    """

    def __init__(
        self,
        constraint: Constraint,
        *,
        domain: str,
        on_step: Callable[[dict[str, Any]], None] | None = None,
        owner: object = None,
        watched: Iterable[nn.Parameter] = (),
    ) -> None:
        self.constraint = constraint
        self._domain, self._on_step, self._num_steps = domain, on_step, 0
        self._bound = list(constraint.parameters)
        self._bound_ids = {id(p) for p in (*self._bound, *watched)}
        self._moving: list[nn.Parameter] | None = None
        self._last_good = LastGood()
        self._number = next(_numbers)
        self._hang()
        if not constraint.projects:
            for other in sorted(_in_force, key=lambda each: each._number):
                if other.constraint.projects:
                    other._unhang()
                    other._hang()
        self._owner = None if owner is None else weakref.ref(owner)
        self._farewell = None if owner is None else weakref.finalize(owner, self.remove)
        _in_force.add(self)

    def remove(self) -> None:
        """Take the constraint off; later steps are free."""
        self._unhang()
        if self._farewell is not None:
            self._farewell.detach()
        _in_force.discard(self)

    def binds(self, parameters: Iterable[nn.Parameter]) -> bool:
        """Whether the step of any of these parameters is bound."""
        return any(id(p) in self._bound_ids for p in parameters)

    def _hang(self) -> None:
        """Behind all that hangs already."""
        self._handles = [
            register_optimizer_step_pre_hook(self._before),
            register_optimizer_step_post_hook(self._after),
        ]

    def _unhang(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        self._moving = None
        parameters: list[nn.Parameter] = [p for group in optimizer.param_groups for p in group["params"]]
        if not self.binds(parameters) or _overflowed(optimizer):
            return None
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            _unscale(optimizer, parameters)
            self._last_good.take([p for p in parameters if p.grad is not None])
            self._bind_gradients(optimizer, parameters)
            return None

        # The gradients are made within the step, by some optimizers several times.
        def bound_closure() -> Any:
            loss = closure()
            self._bind_gradients(optimizer, parameters)
            return loss

        self._last_good.take([p for p in parameters if p.requires_grad])
        if len(args) > 1:
            return (args[0], bound_closure, *args[2:]), kwargs
        return args, {**kwargs, "closure": bound_closure}

    def _bind_gradients(self, optimizer: Optimizer, parameters: list[nn.Parameter]) -> None:
        moving = [p for p in parameters if p.grad is not None]
        gradients = [p.grad for p in moving if p.grad is not None]
        broken = first_not_finite(gradients)
        if broken is not None:
            self._last_good.put_back()  # where a closure had moved them already
            step = (_num_steps_of(optimizer) or self._num_steps) + 1
            raise TrainingError(
                f"the gradient of domain {self._domain!r} is not finite at step {step}",
                got=self._describe(moving[broken], gradients[broken], parameters)
                + ("; clipping gradients spreads one broken value to all" if len(moving) > 1 else ""),
                hint="lower the learning rate, or look for broken examples near this step",
            )
        self._moving = moving
        stepped = {id(p) for p in parameters}
        with _without_gradients([p for p in self._bound if id(p) not in stepped]):
            self.constraint.before_step()

    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._moving is None:
            return
        moving, self._moving = self._moving, None
        self.constraint.after_step()
        self._num_steps += 1
        broken = first_not_finite([p.detach() for p in moving])
        if broken is not None:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            what = self._describe(moving[broken], moving[broken].detach(), parameters)
            if self._last_good.put_back():
                hint = (
                    "the weights before this step are back; lower the learning rate and start a new optimizer"
                )
            else:
                hint = "go on from the last checkpoint with a lower rate: the weights were too large to copy"
            step = _num_steps_of(optimizer) or self._num_steps
            raise TrainingError(
                f"step {step} of domain {self._domain!r} made a weight that is not finite",
                got=what,
                hint=hint,
            )
        if self._on_step is not None:
            self._on_step(self.constraint.measurements())

    def _describe(self, parameter: nn.Parameter, values: Tensor, parameters: list[nn.Parameter]) -> str:
        owner = self._owner() if self._owner is not None else None
        named = owner.named_parameters() if isinstance(owner, nn.Module) else ()
        number = next(i for i, p in enumerate(parameters, start=1) if p is parameter)
        name = next((name for name, p in named if p is parameter), f"the optimizer's parameter {number}")
        count = int((~torch.isfinite(values)).sum())
        return f"{count} of {values.numel()} values of {name}, shape {tuple(values.shape)}"


@contextmanager
def _without_gradients(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Set aside the gradients of parameters that another optimizer steps, which binds them then."""
    kept = [(p, p.grad) for p in parameters if p.grad is not None]
    for p, _ in kept:
        p.grad = None
    try:
        yield
    finally:
        for p, gradient in kept:
            p.grad = gradient


def _num_steps_of(optimizer: Optimizer) -> int:
    """The steps it counts, which a checkpoint holds; 0 where it counts none, as SGD."""
    return int(max((state["step"] for state in optimizer.state.values() if "step" in state), default=0))


def _overflowed(optimizer: Optimizer) -> bool:
    """Whether a gradient scaler found a float16 overflow: a fused optimizer skips such a step by itself."""
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)


def _unscale(optimizer: Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Do what a gradient scaler leaves to a fused optimizer, which divides by the scale within its step.

    A penalty's gradient is not scaled, so beside scaled ones it would be nothing.
    """
    scale = getattr(optimizer, "grad_scale", None)
    if scale is None:
        return
    for p in parameters:
        if p.grad is not None:
            p.grad.div_(scale.to(p.grad.device))
    optimizer.grad_scale = None  # type: ignore[attr-defined]


def attach(
    constraint: Constraint,
    *,
    domain: str,
    on_step: Callable[[dict[str, Any]], None] | None = None,
    owner: object = None,
    watched: Iterable[nn.Parameter] = (),
) -> Attachment:
    """Put ``constraint`` in force for every optimizer that holds one of its parameters."""
    return Attachment(constraint, domain=domain, on_step=on_step, owner=owner, watched=watched)


def strengthen(parameters: Iterable[nn.Parameter], factor: float) -> dict[str, float]:
    """Make every constraint in force on any of these parameters ``factor`` times as strong.

    Returns:
        What is in force now, by name; empty where no constraint can be made stronger.
    """
    given = list(parameters)
    bound = sorted((each for each in _in_force if each.binds(given)), key=lambda each: each._number)
    return {name: value for each in bound for name, value in each.constraint.strengthen(factor).items()}


def is_bound(parameters: Iterable[nn.Parameter]) -> bool:
    """Whether a constraint in force binds any of these parameters."""
    given = list(parameters)
    return any(attachment.binds(given) for attachment in _in_force)
