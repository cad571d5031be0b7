"""Which settings of ``methods:`` act on which answers; a setting that would not act is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from constrained_adapters.recipes.combine import Answers
from constrained_adapters.recipes.rows import BOTTLENECKS

_FISHER = {"ewc", "ewc_lora"}


def _bound(answers: Answers) -> bool:
    return answers.constraint != "none"


def _distils(answers: Answers) -> bool:
    return "distillation" in answers.objectives


def _replays(answers: Answers) -> bool:
    return "replay" in answers.rehearsals


def _trains(answers: Answers) -> bool:
    return answers.trained != "nothing"


ACTS_ON: Mapping[str, Callable[[Answers], bool]] = {
    "constraint_strength": _bound,
    "constraint_type": _bound,
    "distillation_temperature": _distils,
    "distillation_top_k": _distils,
    "distillation_weight": _distils,
    "domain_layers": lambda answers: answers.shared,
    "domain_ranks": lambda answers: answers.shared,
    "gradient_memory_size": lambda answers: _bound(answers) or bool(_FISHER & {*answers.penalties}),
    "label_smoothing": _trains,
    "learning_rate": _trains,
    "num_layers": lambda answers: answers.trained in {"freeze_first", "freeze_last", "last_layers"},
    "penalty_weight": lambda answers: bool(answers.weighted),
    "protect_base": _bound,
    "replay_capacity": _replays,
    "replay_ratio": _replays,
    "shared_rank": lambda answers: answers.shared,
    "stm_threshold": lambda answers: "stm" in answers.objectives,
    "width": lambda answers: answers.trained in BOTTLENECKS | {"columns"},
}
"""Each setting of a method, beside recipe and name; whether it acts on what its recipe does."""


def effective_settings(answers: Answers) -> frozenset[str]:
    """The settings that act on a method."""
    return frozenset(key for key, acts in ACTS_ON.items() if acts(answers))
