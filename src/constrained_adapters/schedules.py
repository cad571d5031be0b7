"""Learning rates over the steps of a domain and over the parts of a model; both are factors of one rate."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any, Literal

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from constrained_adapters.errors import ConfigError

SLOWEST_RATIO = 0.1
"""The rate of the most important part, at least, in parts of the rate."""


def warmup_argument(ratio: float) -> float:
    """Transformers' ``warmup_steps`` for a share of the steps, 0 … 1: from 1 on it would be a number.

    >>> warmup_argument(0.3), warmup_argument(1.0) < 1.0
    (0.3, True)
    """
    return min(ratio, math.nextafter(1.0, 0.0))


def stage_factor(step: int, *, ratios: Sequence[float], num_steps: int, num_warmup: int) -> float:
    """The factor of staged rates at a step: stages of equal length, under a linear warm-up from 0.

    Args:
        step: From 0.
        ratios: The stages' rates, in parts of the learning rate.
        num_steps: Of the whole training; the last stage takes what cannot be divided.
        num_warmup: Steps over which the factor rises to the stage's.

    >>> [stage_factor(i, ratios=(0.1, 0.3, 1.0), num_steps=6, num_warmup=0) for i in range(6)]
    [0.1, 0.1, 0.3, 0.3, 1.0, 1.0]
    """
    stage = min(step * len(ratios) // max(num_steps, 1), len(ratios) - 1)
    return ratios[stage] * min(1.0, step / num_warmup if num_warmup else 1.0)


def staged_schedule(
    optimizer: Optimizer, ratios: Sequence[float], *, num_steps: int, num_warmup: int
) -> LambdaLR:
    """A scheduler by :func:`stage_factor`; its state is the step, so it goes on where a checkpoint left it.

    Raises:
        ConfigError: There is no stage, or a ratio is outside 0 … 1.
    """
    if not ratios or not all(0.0 < ratio <= 1.0 for ratio in ratios):
        raise ConfigError(
            "the stages of the learning rate are out of range",
            got=f"stage_ratios = {list(ratios)!r}",
            expected="one or more numbers over 0 and up to 1, in parts of learning_rate",
            hint="[0.1, 0.3, 1.0] with learning_rate 1e-5 for 1e-6, then 3e-6, then 1e-5",
        )
    return LambdaLR(
        optimizer,
        partial(stage_factor, ratios=tuple(ratios), num_steps=num_steps, num_warmup=num_warmup),
    )


def importance_ratios(
    names: Iterable[str],
    importance: Mapping[str, Tensor],
    *,
    by: Literal["parameter", "layer"],
    slowest_ratio: float = SLOWEST_RATIO,
) -> dict[str, float]:
    """Each trained parameter's rate in parts of the rate: slower where finished domains depend on it.

    A part (a parameter, or all parameters of a decoder layer) whose mean importance per weight is F gets
    the ratio min(1, √(F̃ / F)), at least ``slowest_ratio``, with F̃ the median over all parts. So the less
    important half learns at the full rate, the unit of F does not matter, and equal importance changes
    nothing. This rule is a choice of this library; it is taken from no paper.

    Args:
        names: Of the trained parameters.
        importance: Diagonal Fisher, by parameter or by the name of the module that it stands in.
        by: Which parts share a rate.
        slowest_ratio: Over 0, up to 1.

    Returns:
        A ratio for each name whose importance is known; others learn at the full rate.

    Raises:
        ConfigError: ``slowest_ratio`` is out of range.
    """
    if not 0.0 < slowest_ratio <= 1.0:
        raise ConfigError(
            "the slowest rate is out of range", got=repr(slowest_ratio), expected="over 0, up to 1"
        )
    owner = {name: key for name in names if (key := _key_of(name, importance)) is not None}
    part = {name: name if by == "parameter" else _layer_of(name) for name in owner}
    total: dict[str, float] = {}
    count: dict[str, int] = {}
    for name, key in owner.items():
        total[part[name]] = total.get(part[name], 0.0) + float(importance[key].double().sum())
        count[part[name]] = count.get(part[name], 0) + importance[key].numel()
    means = {each: total[each] / count[each] for each in total}
    middle = median(means.values()) if means else 0.0
    ratio = {
        each: 1.0 if mean <= middle else max(slowest_ratio, (middle / mean) ** 0.5)
        for each, mean in means.items()
    }
    return {name: ratio[part[name]] for name in owner}


def divide_groups(optimizer: Optimizer, names: Mapping[Tensor, str], ratios: Mapping[str, float]) -> None:
    """Divide an optimizer's groups, before its first step, so that each parameter has its own rate.

    Within a group, whose other settings (weight decay) its parts keep, faster ones come first; a group whose
    parameters all have the ratio 1 stays as it is.

    Args:
        optimizer: Whose groups have a rate.
        names: Of the parameters.
        ratios: See :func:`importance_ratios`; 1 for a name that is not there.
    """
    divided: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        parts: dict[float, list[Tensor]] = {}
        for parameter in group["params"]:
            parts.setdefault(ratios.get(names[parameter], 1.0), []).append(parameter)
        fastest_first = sorted(parts.items(), reverse=True, key=lambda part: part[0])
        divided += [
            {**group, "params": params, "lr": group["lr"] * ratio} for ratio, params in fastest_first
        ] or [group]
    optimizer.param_groups[:] = divided


def _key_of(name: str, importance: Mapping[str, Tensor]) -> str | None:
    """The parameter's own importance, or that of the innermost module that it stands in."""
    if name in importance:
        return name
    around = [key for key in importance if f".{key}." in f".{name}"]
    return max(around, key=len, default=None)


def _layer_of(name: str) -> str:
    """Everything up to the first number in a name, which counts decoder layers; else the name.

    Inserted modules are named by set and then by layer and place: ``sets.0.11_mlp.up.weight``.
    """
    found = re.match(r"sets\.\d+\.\d+(?=_)|.*?\.\d+(?=\.)", name)
    return found[0] if found else name
