"""The named methods, one row each: which answers they pick, what they keep, where they come from."""

from __future__ import annotations

from dataclasses import dataclass

from constrained_adapters.config import AdapterConfig, BaseConfig, ConstraintType, CRMAConfig, MethodConfig
from constrained_adapters.errors import ConfigError, UnknownNameError


@dataclass(frozen=True)
class Recipe:
    """One row.

    Args:
        name: As written in ``methods:``.
        summary: One line.
        source: Paper.
        constraint: What a step may not do.
        strength: Default ``constraint_strength``.
        keeps_old_data: Whether examples of finished domains are kept.
    """

    name: str
    summary: str
    source: str
    constraint: ConstraintType = "none"
    strength: float = 0.0
    keeps_old_data: bool = False


RECIPES: dict[str, Recipe] = {
    "lora": Recipe(
        "lora",
        "sequential LoRA: a new adapter for each domain on top of the earlier ones, nothing protected",
        "Hu et al. 2021, arXiv 2106.09685",
    ),
    "crma": Recipe(
        "crma",
        "LoRA kept out of the input subspace that the base and the finished domains depend on",
        "after Saha et al. 2021, arXiv 2103.09762; see docs/methods.md",
        constraint="fisher",
        strength=0.95,
    ),
}


def find_recipe(method: MethodConfig) -> Recipe:
    """The row of ``method.recipe``.

    Raises:
        UnknownNameError: No such recipe.
        ConfigError: A setting that has no effect on this recipe.
    """
    if method.recipe not in RECIPES:
        raise UnknownNameError.of("recipe", method.recipe, RECIPES, where="methods")
    recipe = RECIPES[method.recipe]
    if recipe.constraint == "none":
        idle = ("constraint_strength", "constraint_type", "gradient_memory_size", "protect_base")
        for key in idle:
            if getattr(method, key) is not None:
                raise ConfigError(
                    f"the setting {key!r} has no effect on the recipe {recipe.name!r}",
                    got=f"methods: {method.name}: {key} = {getattr(method, key)!r}",
                    hint="leave it out, or use the recipe crma",
                )
    return recipe


def model_config(method: MethodConfig, base: BaseConfig, adapter: AdapterConfig) -> CRMAConfig:
    """The settings of the model that a method trains."""
    recipe = find_recipe(method)
    chosen = {
        "constraint_type": method.constraint_type or recipe.constraint,
        "constraint_strength": recipe.strength
        if method.constraint_strength is None
        else method.constraint_strength,
        "gradient_memory_size": method.gradient_memory_size,
        "protect_base": method.protect_base,
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
