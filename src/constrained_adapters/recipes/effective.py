"""Which settings of ``methods:`` act on which answers; a setting that would not act is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from constrained_adapters.recipes.combine import Answers
from constrained_adapters.recipes.recipe import BOTTLENECKS

_BY_FISHER = {"ewc", "ewc_lora", "freeze_important", "online_ewc", "online_ewc_lora"}
_MEASURED = _BY_FISHER | {"ogd", "ogd_lora"}


def _by_fisher(answers: Answers) -> bool:
    return bool(_BY_FISHER & {*answers.bounds})


def _bound(answers: Answers) -> bool:
    return answers.constraint != "none"


def _distils(answers: Answers) -> bool:
    return "distillation" in answers.objectives


def _mixes_text(answers: Answers) -> bool:
    return "general_text" in answers.rehearsals


def _writes(answers: Answers) -> bool:
    return "generated" in answers.rehearsals


def _has_golden_set(answers: Answers) -> bool:
    return "golden_set" in answers.rehearsals


def _replays(answers: Answers) -> bool:
    return "replay" in answers.rehearsals


def _trains(answers: Answers) -> bool:
    return answers.trained != "nothing"


ACTS_ON: Mapping[str, Callable[[Answers], bool]] = {
    "base_text": _bound,
    "constraint_strength": _bound,
    "constraint_type": _bound,
    "distillation_temperature": _distils,
    "distillation_top_k": _distils,
    "distillation_weight": _distils,
    "domain_layers": lambda answers: answers.shared,
    "domain_ranks": lambda answers: answers.shared,
    "ewc_decay": lambda answers: bool({"online_ewc", "online_ewc_lora"} & {*answers.bounds}),
    "frozen_ratio": lambda answers: "freeze_important" in answers.bounds,
    "gem_margin": lambda answers: "gem" in answers.bounds,
    "gem_rows": lambda answers: bool({"agem", "gem"} & {*answers.bounds}),
    "general_ratio": _mixes_text,
    "general_text": _mixes_text,
    "generated_examples": _writes,
    "generated_ratio": _writes,
    "golden_ratio": _has_golden_set,
    "golden_set": _has_golden_set,
    "gradient_memory_size": lambda answers: _bound(answers) or bool(_MEASURED & {*answers.bounds}),
    "label_smoothing": _trains,
    "learning_rate": _trains,
    "num_layers": lambda answers: answers.trained in {"freeze_first", "freeze_last", "last_layers"},
    "ogd_directions": lambda answers: "ogd" in answers.bounds,
    "penalty_weight": lambda answers: bool(answers.penalties),
    "prompt_weight": _writes,
    "protect_base": _bound,
    "rate_by_importance": _by_fisher,
    "replay_capacity": lambda answers: answers.keeps_examples,
    "replay_capacity_bytes": lambda answers: answers.keeps_examples,
    "replay_ratio": _replays,
    "replay_selection": lambda answers: answers.keeps_examples,
    "shared_rank": lambda answers: answers.shared,
    "slowest_rate_ratio": _by_fisher,
    "stm_threshold": lambda answers: "stm" in answers.objectives,
    "width": lambda answers: answers.trained in BOTTLENECKS | {"columns"},
}
"""Each setting of a method, beside recipe and name; whether it acts on what its recipe does."""


def effective_settings(answers: Answers) -> frozenset[str]:
    """The settings that act on a method."""
    return frozenset(key for key, acts in ACTS_ON.items() if acts(answers))
