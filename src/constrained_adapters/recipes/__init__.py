"""The named methods, one row of answers each, and how rows add up to one method. Imports no torch."""

from constrained_adapters.recipes.combine import Answers, combine, recipe_names
from constrained_adapters.recipes.effective import effective_settings
from constrained_adapters.recipes.recipe import Recipe
from constrained_adapters.recipes.rows import ALIASES, RECIPES
from constrained_adapters.recipes.settings import (
    EWC_DECAY,
    FROZEN_RATIO,
    GEM_MARGIN,
    GENERAL_TEXT,
    GENERATED_EXAMPLES,
    REPLAY_CAPACITY,
    SHARED,
    check_methods,
    find_recipe,
    mixed_ratios,
    model_config,
    penalty_weights,
)

__all__ = [
    "ALIASES",
    "EWC_DECAY",
    "FROZEN_RATIO",
    "GEM_MARGIN",
    "GENERAL_TEXT",
    "GENERATED_EXAMPLES",
    "RECIPES",
    "REPLAY_CAPACITY",
    "SHARED",
    "Answers",
    "Recipe",
    "check_methods",
    "combine",
    "effective_settings",
    "find_recipe",
    "mixed_ratios",
    "model_config",
    "penalty_weights",
    "recipe_names",
]
