"""The named methods, one row each: which answers they pick, what they keep, where they come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from constrained_adapters.config import (
    AdapterConfig,
    BaseConfig,
    ConstraintType,
    CRMAConfig,
    MethodConfig,
    RunConfig,
)
from constrained_adapters.errors import ConfigError, UnknownNameError

Trained = Literal["nothing", "adapters", "weights", "singular_vectors"]
Penalty = Literal["none", "ewc", "ewc_lora", "olora"]
Rehearsal = Literal["none", "replay", "all"]


@dataclass(frozen=True)
class Recipe:
    """One row: a method's answers to the six questions of docs/methods.md, and their default settings.

    Args:
        name: As written in ``methods:``.
        summary: One line.
        source: Paper.
        trained: What is trained: nothing; a LoRA adapter a domain; all weights; the trailing singular
            vectors of the adapted layers (PEFT's OSF).
        alone: Whether each domain is scored with its own adapter only.
        memory: What is remembered of a finished domain: CRMA's input statistics, or the diagonal Fisher
            of the trained weights or of the adapted layers' full-size weights.
        start: Where a new adapter starts: anywhere, or in the open directions that its domain uses most.
        constraint: What a step may not do, by CRMA's machinery.
        penalty: What a step may not do, by a penalty's gradient.
        rehearsal: Which old data is mixed in: none; kept examples; all of it (no sequence at all).
        objective: What is minimised.
        guards: What watches.
        strength: Default ``constraint_strength``.
        penalty_weight: Default ``penalty_weight``.
        resizable: Whether domains can be added at the end of a finished run.
    """

    name: str
    summary: str
    source: str
    trained: Trained = "adapters"
    alone: bool = False
    start: Literal["random", "inputs"] = "random"
    memory: Literal["none", "kfac", "weight_fisher", "layer_fisher"] = "none"
    constraint: ConstraintType = "none"
    penalty: Penalty = "none"
    rehearsal: Rehearsal = "none"
    objective: Literal["cross_entropy"] = "cross_entropy"
    guards: Literal["none"] = "none"
    strength: float = 0.0
    penalty_weight: float = 0.0
    resizable: bool = True

    @property
    def keeps_old_data(self) -> bool:
        """Whether examples of finished domains are kept."""
        return self.rehearsal != "none"

    @property
    def effective_settings(self) -> frozenset[str]:
        """The settings of ``methods:`` that act on this recipe, beside its name."""
        names = set()
        if self.trained != "nothing":
            names.add("learning_rate")
        if self.constraint != "none":
            names |= {"constraint_strength", "constraint_type", "protect_base"}
        if self.memory != "none":
            names.add("gradient_memory_size")
        if self.penalty != "none":
            names.add("penalty_weight")
        if self.rehearsal == "replay":
            names |= {"replay_ratio", "replay_capacity"}
        return frozenset(names)


REPLAY_RATIO = 0.1
REPLAY_CAPACITY = 1000

_ROWS = [
    Recipe("base", "the base as it is: nothing is trained", "-", trained="nothing"),
    Recipe(
        "joint",
        "all domains' data at once, one LoRA: the upper reference, which keeps all data",
        "Caruana 1997, Multitask Learning",
        rehearsal="all",
        resizable=False,
    ),
    Recipe(
        "separate",
        "a LoRA a domain, each used for its own domain only: zero drift, if the domain is known",
        "Hu et al. 2021, arXiv 2106.09685",
        alone=True,
    ),
    Recipe(
        "lora",
        "sequential LoRA: a new adapter for each domain on top of the earlier ones, nothing protected",
        "Hu et al. 2021, arXiv 2106.09685",
    ),
    Recipe(
        "full",
        "all weights, domain after domain, nothing protected",
        "-",
        trained="weights",
        resizable=False,
    ),
    Recipe(
        "ewc",
        "all weights, each held to where earlier domains left it by their diagonal Fisher",
        "Kirkpatrick et al. 2017, arXiv 1612.00796",
        trained="weights",
        memory="weight_fisher",
        penalty="ewc",
        penalty_weight=100.0,
        resizable=False,
    ),
    Recipe(
        "ewc_lora",
        "sequential LoRA under a penalty on ΔW by the diagonal Fisher of the full-size weight",
        "Zheng et al. 2026, arXiv 2602.17559",
        memory="layer_fisher",
        penalty="ewc_lora",
        penalty_weight=100.0,
    ),
    Recipe(
        "olora",
        "sequential LoRA whose A is pushed orthogonal to the earlier domains' A",
        "Wang et al. 2023, arXiv 2310.14152",
        penalty="olora",
        penalty_weight=0.5,
    ),
    Recipe(
        "orthogonal",
        "LoRA kept out of the subspace of inputs that occurred before",
        "Saha et al. 2021, arXiv 2103.09762",
        memory="kfac",
        constraint="orthogonal",
        strength=0.95,
    ),
    Recipe(
        "replay",
        "sequential LoRA with kept examples of the finished domains mixed into the batches",
        "Rolnick et al. 2019, arXiv 1811.11682",
        rehearsal="replay",
    ),
    Recipe(
        "osf",
        "the adapted layers' weights, off their leading singular subspace, by PEFT's own OSF tuner",
        "Nayak et al. 2025, arXiv 2504.07097",
        trained="singular_vectors",
        resizable=False,
    ),
    Recipe(
        "crma",
        "LoRA kept out of the input subspace that the base and the finished domains depend on",
        "after Saha et al. 2021, arXiv 2103.09762; see docs/methods.md",
        start="inputs",
        memory="kfac",
        constraint="fisher",
        strength=0.95,
    ),
]

RECIPES: Mapping[str, Recipe] = {row.name: row for row in _ROWS}


def find_recipe(method: MethodConfig) -> Recipe:
    """The row of ``method.recipe``.

    Raises:
        UnknownNameError: No such recipe.
        ConfigError: A setting that has no effect on this recipe.
    """
    if method.recipe not in RECIPES:
        raise UnknownNameError.of("recipe", method.recipe, RECIPES, where="methods")
    recipe = RECIPES[method.recipe]
    for key in sorted(set(MethodConfig.model_fields) - {"recipe", "name"} - recipe.effective_settings):
        if getattr(method, key) is not None:
            users = [row.name for row in RECIPES.values() if key in row.effective_settings]
            raise ConfigError(
                f"the setting {key!r} has no effect on the recipe {recipe.name!r}",
                got=f"methods: {method.name}: {key} = {getattr(method, key)!r}",
                expected=f"{key} only with {', '.join(users)}",
                hint="leave it out, or use one of these recipes",
            )
    return recipe


def check_methods(config: RunConfig) -> None:
    """Refuse, before anything is loaded, what a method of this run could not do.

    Raises:
        UnknownNameError: No such recipe.
        ConfigError: A setting without effect, a replay buffer smaller than a batch, or weights of a
            quantised base to be trained.
    """
    for method in config.methods:
        recipe = find_recipe(method)
        capacity, batch = method.replay_capacity, config.training.batch_size
        if capacity is not None and capacity < batch:
            raise ConfigError(
                "the replay buffer is smaller than a batch",
                got=f"methods: {method.name}: replay_capacity = {capacity}",
                expected=f"at least training.batch_size = {batch}",
            )
        if recipe.trained in {"weights", "singular_vectors"} and config.base.quantization is not None:
            raise ConfigError(
                f"the recipe {recipe.name!r} trains the base's weights, and packed ones cannot be trained",
                got=f"base.quantization = {config.base.quantization}",
                expected="base.quantization: null",
                hint="leave it out, or use a recipe that trains adapters: lora, crma",
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


def penalty_weight(method: MethodConfig) -> float:
    """λ of a method: its own, or its recipe's."""
    return find_recipe(method).penalty_weight if method.penalty_weight is None else method.penalty_weight
