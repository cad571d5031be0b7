"""From a method's settings to what its recipe's answers are made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from constrained_adapters.config.collapse import PreventCollapseConfig
from constrained_adapters.config.run import MethodConfig
from constrained_adapters.memory.diagonal import DiagonalMemory
from constrained_adapters.objectives import Objective, make_objective
from constrained_adapters.recipes import find_recipe
from constrained_adapters.schedules import SLOWEST_RATIO, importance_ratios
from constrained_adapters.training.penalties import IMPORTANCE, trained_weights
from constrained_adapters.training.prevention import prevented_smoothing

_ARGUMENTS = {
    "distillation": {"temperature": "distillation_temperature", "top_k": "distillation_top_k"},
    "prompts": {"weight": "prompt_weight"},
    "stm": {"threshold": "stm_threshold"},
}
"""Of each objective: the setting of a method that gives an argument."""


def method_rates(method: MethodConfig, model: Any, memory_folder: Path) -> dict[str, float]:
    """For each trained parameter its part of the learning rate, where a Fisher is to say it."""
    found = sorted(memory_folder.rglob(IMPORTANCE.name))
    if method.rate_by_importance is None or not found:
        return {}
    return importance_ratios(
        trained_weights(model),
        DiagonalMemory.load(found[0]).importance,
        by=method.rate_by_importance,
        slowest_ratio=method.slowest_rate_ratio or SLOWEST_RATIO,
    )


def method_objective(method: MethodConfig, prevent: PreventCollapseConfig | None = None) -> Objective:
    """What a method minimises; ``prevent`` smooths its labels where the method does not say how much."""
    names = find_recipe(method).objectives
    weight = method.distillation_weight
    return make_objective(
        names,
        label_smoothing=prevented_smoothing(method, prevent),
        weights={} if weight is None else {"distillation": weight},
        settings={
            name: {
                argument: getattr(method, setting)
                for argument, setting in _ARGUMENTS[name].items()
                if getattr(method, setting) is not None
            }
            for name in names
        },
    )
