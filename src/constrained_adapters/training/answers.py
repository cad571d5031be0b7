"""From a method's settings to what its recipe's answers are made of."""

from __future__ import annotations

from constrained_adapters.config import MethodConfig
from constrained_adapters.objectives import Objective, make_objective
from constrained_adapters.recipes import find_recipe

_ARGUMENTS = {
    "distillation": {"temperature": "distillation_temperature", "top_k": "distillation_top_k"},
    "stm": {"threshold": "stm_threshold"},
}
"""Of each objective: the setting of a method that gives an argument."""


def method_objective(method: MethodConfig) -> Objective:
    """What a method minimises."""
    names = find_recipe(method).objectives
    weight = method.distillation_weight
    return make_objective(
        names,
        label_smoothing=method.label_smoothing or 0.0,
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
