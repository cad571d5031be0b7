"""What a method of a run sets, held against what its recipe does; everything here is before any training."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

from constrained_adapters.config.crma import PENALTY_WEIGHT, CRMAConfig
from constrained_adapters.config.run import AdapterConfig, BaseConfig, MethodConfig, RunConfig
from constrained_adapters.errors import ConfigError, UnknownNameError
from constrained_adapters.recipes.combine import ON_ADAPTERS, Answers, combine, recipe_names
from constrained_adapters.recipes.effective import ACTS_ON
from constrained_adapters.recipes.recipe import WEIGHTS, Rehearsal
from constrained_adapters.recipes.rows import RECIPES

GOLDEN_RATIO = 0.1
REPLAY_RATIO = 0.1
REPLAY_CAPACITY = 1000
EWC_DECAY = 0.9
FROZEN_RATIO = 0.1
GEM_MARGIN = 0.5
"""The authors'."""
GENERAL_RATIO = 0.1
GENERATED_EXAMPLES = 100
GENERATED_RATIO = 0.2
"""LAMOL's."""
GENERAL_TEXT = "packaged:general"
SHARED = "shared"
"""The adapter that ``isolation`` keeps beside each domain's own."""

PENALTY_WEIGHTS: dict[str, float] = {
    "crma": PENALTY_WEIGHT,
    "ewc": 100.0,
    "ewc_lora": 1000.0,
    "olora": 0.5,
    "online_ewc": 100.0,
    "online_ewc_lora": 1000.0,
}
"""λ of each penalty where ``penalty_weight`` is left out."""


def find_recipe(method: MethodConfig) -> Answers:
    """What ``method.recipe`` does: one row, or several joined by ``+``.

    Raises:
        UnknownNameError: No such recipe.
        ConfigError: Recipes that do not go together, or a setting that has no effect on this one.
    """
    rows = combine([RECIPES[name] for name in recipe_names(method.recipe)])
    answers = rows
    if method.constraint_type is not None and rows.constraint != "none":
        answers = replace(rows, constraint=method.constraint_type)
    for key, acts in ACTS_ON.items():
        # Where the type is 'none', the setting that says so acts, and no other of the constraint's.
        if getattr(method, key) is not None and not acts(rows if key == "constraint_type" else answers):
            of_type = f" with constraint_type {method.constraint_type!r}" if acts(rows) else ""
            raise ConfigError(
                f"the setting {key!r} has no effect on the recipe {answers.name!r}{of_type}",
                got=f"methods: {method.name}: {key} = {getattr(method, key)!r}",
                expected=f"{key} only with {', '.join(users_of(key))}",
                hint="leave it out, or use one of these recipes",
            )
    if method.slowest_rate_ratio is not None and method.rate_by_importance is None:
        raise ConfigError(
            "the setting 'slowest_rate_ratio' has no effect without 'rate_by_importance'",
            got=f"methods: {method.name}: slowest_rate_ratio = {method.slowest_rate_ratio!r}",
            expected="rate_by_importance: layer, or parameter",
        )
    if method.base_text is not None and method.protect_base is False:
        raise ConfigError(
            "the setting 'base_text' has no effect where the base is not protected",
            got=f"methods: {method.name}: base_text = {method.base_text!r}, protect_base = False",
            expected="one of the two",
        )
    _weights(method, answers)
    return answers


def users_of(setting: str) -> list[str]:
    """The recipes that a setting acts on, and where it needs weights that last, ``full`` beside them."""
    acts = ACTS_ON[setting]
    alone = [row.name for row in RECIPES.values() if acts(combine([row]))]
    open_rows = [row for row in RECIPES.values() if row.trained is None and row.bounds]
    return alone or [f"full + {row.name}" for row in open_rows if acts(combine([RECIPES["full"], row]))]


def check_methods(config: RunConfig) -> None:
    """Refuse, before anything is loaded, what a method of this run could not do.

    Raises:
        UnknownNameError: No such recipe.
        ConfigError: Recipes that do not go together, a setting without effect, a replay buffer smaller than
            a batch, more mixed in than there is room for, weights of a quantised base to be trained, or
            examples to be encrypted without a key.
        MissingExtraError: Examples are to be encrypted, without the package for it.
    """
    for method in config.methods:
        recipe = find_recipe(method)
        capacity, batch = method.replay_capacity or REPLAY_CAPACITY, config.training.batch_size
        if recipe.keeps_examples and capacity < batch:
            raise ConfigError(
                "the replay buffer is smaller than a batch",
                got=f"methods: {method.name}: replay_capacity = {capacity}",
                expected=f"at least training.batch_size = {batch}",
            )
        _check_isolation(method, recipe, config)
        _check_ratios(method, recipe, config)
        _check_privacy(method, recipe, config)
        if recipe.trained in WEIGHTS | {"singular_vectors"} and config.base.quantization is not None:
            raise ConfigError(
                f"the recipe {recipe.name!r} trains the base's weights, and packed ones cannot be trained",
                got=f"base.quantization = {config.base.quantization}",
                expected="base.quantization: null",
                hint="leave it out, or use a recipe that trains adapters: lora, crma",
            )


def mixed_ratios(method: MethodConfig, recipe: Answers) -> dict[Rehearsal, float]:
    """The share of a method's rows that each kind of mixed-in data has."""
    asked: dict[Rehearsal, tuple[float | None, float]] = {
        "replay": (method.replay_ratio, REPLAY_RATIO),
        "generated": (method.generated_ratio, GENERATED_RATIO),
        "general_text": (method.general_ratio, GENERAL_RATIO),
        "golden_set": (method.golden_ratio, GOLDEN_RATIO),
    }
    return {
        name: default if given is None else given
        for name, (given, default) in asked.items()
        if name in recipe.rehearsals
    }


def _check_ratios(method: MethodConfig, recipe: Answers, config: RunConfig) -> None:
    ratios = mixed_ratios(method, recipe)
    prevent = config.collapse_settings
    if prevent is not None and prevent.general_ratio > 0.0 and recipe.trained != "nothing":
        ratios.setdefault("general_text", prevent.general_ratio)
    if sum(map(Fraction, map(str, ratios.values()))) > 1:
        raise ConfigError(
            "more is mixed in than there is room for",
            got=f"methods: {method.name}: " + " + ".join(f"{r} ({name})" for name, r in ratios.items()),
            expected="1 or less in all",
        )


def _check_privacy(method: MethodConfig, recipe: Answers, config: RunConfig) -> None:
    if config.private == "encrypted" and (recipe.keeps_examples or "generated" in recipe.rehearsals):
        from constrained_adapters.rehearsal.kept_file import cipher  # brings torch

        cipher()
    by_model = method.replay_selection == "highest_loss" or "generated" in recipe.rehearsals
    if config.private is True and by_model and recipe.trained in WEIGHTS | {"singular_vectors"}:
        raise ConfigError(
            "a run that was stopped could not find its examples again: the weights that chose them are gone",
            got=f"methods: {method.name}: private = true, {recipe.name} with weights that are trained on",
            expected="private: encrypted, replay_selection: reservoir or diverse, or adapters in training",
        )


def _check_isolation(method: MethodConfig, recipe: Answers, config: RunConfig) -> None:
    domains = [domain.name for domain in config.domains]
    for setting in ("domain_layers", "domain_ranks"):
        for name in getattr(method, setting) or {}:
            if name not in domains:
                raise UnknownNameError.of("domain", name, domains, where=f"methods: {method.name}: {setting}")
    if recipe.shared and SHARED in domains:
        raise ConfigError(
            f"a domain has the name of isolation's shared adapter: {SHARED!r}",
            got=f"methods: {method.name}",
            hint="give the domain another name, or use 'separate'",
        )
    if recipe.shared and config.adapter.rank == "auto":
        raise ConfigError(
            "isolation gives each domain its rank, and 'auto' would choose it again",
            got=f"adapter.rank = 'auto', methods: {method.name}",
            expected="a number, and domain_ranks where a domain differs",
        )


def model_config(method: MethodConfig, base: BaseConfig, adapter: AdapterConfig) -> CRMAConfig:
    """The settings of the model whose adapters a method trains."""
    recipe = find_recipe(method)
    chosen: dict[str, Any] = {
        "constraint_type": method.constraint_type or recipe.constraint,
        "constraint_strength": recipe.strength
        if method.constraint_strength is None
        else method.constraint_strength,
        "gradient_memory_size": method.gradient_memory_size,
        "protect_base": method.protect_base,
        "penalty_weight": _weights(method, recipe).get("crma"),
    }
    return CRMAConfig(
        base_model_name=base.model,
        adapter_dim=adapter.rank,
        residual_scaling=adapter.residual_scaling,
        domain_specific_layers=adapter.layers,
        dtype=base.dtype,
        quantization=base.quantization,
        **{key: value for key, value in chosen.items() if value is not None},
    )


def penalty_weights(method: MethodConfig) -> dict[str, float]:
    """λ of each penalty of a method: its own, or the default; empty where its recipe has none."""
    return _weights(method, find_recipe(method))


def _weights(method: MethodConfig, recipe: Answers) -> dict[str, float]:
    given = method.penalty_weight
    if given is None:
        return {name: PENALTY_WEIGHTS[name] for name in recipe.penalties}
    if not isinstance(given, dict):
        if len(recipe.penalties) == 1:
            return {recipe.penalties[0]: given}
        raise ConfigError(
            f"one penalty_weight for {len(recipe.penalties)} penalties of different units",
            got=f"methods: {method.name}: penalty_weight = {given!r}",
            expected=f"a weight for each of {', '.join(recipe.penalties)}",
            hint=f"penalty_weight: {_listed(recipe)}",
        )
    stands_in: dict[Any, str] = dict(ON_ADAPTERS) if recipe.trained == "adapters" else {}
    named = {stands_in.get(name, name): weight for name, weight in given.items()}
    unknown = sorted(set(named) - set(recipe.penalties))
    if unknown:
        raise ConfigError(
            f"the recipe {recipe.name!r} has no penalty {unknown[0]!r}",
            got=f"methods: {method.name}: penalty_weight = {given!r}",
            expected=f"weights of {', '.join(recipe.penalties)}",
            hint=f"penalty_weight: {_listed(recipe)}",
        )
    return {name: named.get(name, PENALTY_WEIGHTS[name]) for name in recipe.penalties}


def _listed(recipe: Answers) -> str:
    return "{" + ", ".join(f"{name}: {PENALTY_WEIGHTS[name]:g}" for name in recipe.penalties) + "}"
