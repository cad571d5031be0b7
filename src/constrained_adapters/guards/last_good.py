"""A training's state at its last good moment, in main memory: trained weights, optimizer, random numbers."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor


class LastGood:
    """One state that can be gone back to within a running training.

    Trainer's own checkpoints need a new call of ``train()`` to be gone back to, which a callback cannot make;
    this is put into the running one. The steps since are spent: the step count and the schedule's place are
    not turned back, so the training ends when it would have ended. Cost: a copy of the trained weights and of
    the optimizer's state in main memory, three times the trained weights with AdamW.
    """

    def __init__(self) -> None:
        self.step: int | None = None
        self._weights: dict[str, Tensor] = {}
        self._optimizer: dict[str, Any] = {}
        self._random: tuple[Any, ...] = ()
        self._num_returns = 0

    def take(self, model: Any, optimizer: Any, step: int) -> None:
        """Copy the present state.

        Args:
            model: Whose parameters with a gradient are trained.
            optimizer: Theirs.
            step: Optimizer steps done.
        """
        self._weights = {
            name: parameter.detach().to("cpu", copy=True)
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
        self._optimizer = _on_cpu(optimizer.state_dict())
        self._random = _random_state()
        self.step, self._num_returns = step, 0

    @torch.no_grad()
    def put_back(self, model: Any, optimizer: Any, scheduler: Any, *, rate_factor: float) -> float:
        """Go back to the state, with a lower rate, lower still each time it is gone back to.

        Args:
            model: As it was taken.
            optimizer: As it was taken.
            scheduler: Its base rates are lowered; its place is kept. None where there is none.
            rate_factor: What the rate is multiplied with, once more at each return.

        Returns:
            The rate of the first parameter group from now on.
        """
        assert self.step is not None, "nothing was taken yet"
        self._num_returns += 1
        rates = [float(group["lr"]) for group in optimizer.param_groups]
        for name, parameter in model.named_parameters():
            if name in self._weights:
                parameter.copy_(self._weights[name].to(parameter.device))
        optimizer.load_state_dict(copy.deepcopy(self._optimizer))
        _restore_random(self._random)
        # The rates of now, not of then: what earlier returns took away is in them.
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * rate_factor
            if "initial_lr" in group:
                group["initial_lr"] *= rate_factor**self._num_returns
        scheduler = getattr(scheduler, "scheduler", scheduler)  # accelerate's wrapper
        if hasattr(scheduler, "base_lrs"):
            scheduler.base_lrs = [rate * rate_factor for rate in scheduler.base_lrs]
        return float(optimizer.param_groups[0]["lr"])


def _on_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _on_cpu(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_on_cpu(each) for each in value)
    return copy.deepcopy(value)


def _random_state() -> tuple[Any, ...]:
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), devices


def _restore_random(state: tuple[Any, ...]) -> None:
    random.setstate(state[0])
    np.random.set_state(state[1])
    torch.set_rng_state(state[2])
    if state[3]:
        torch.cuda.set_rng_state_all(state[3])
