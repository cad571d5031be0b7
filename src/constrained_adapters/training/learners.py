"""From a recipe's row to the learner that does what the row says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from constrained_adapters.config import MethodConfig, RunConfig
from constrained_adapters.model import CRMAModel
from constrained_adapters.models.load import LoadedBase
from constrained_adapters.recipes import Answers, find_recipe, model_config, penalty_weights
from constrained_adapters.recipes.rows import PenaltyName
from constrained_adapters.training.adapters import AdapterLearner
from constrained_adapters.training.learner import Learner, Untrained
from constrained_adapters.training.osf import OSFLearner
from constrained_adapters.training.penalties import (
    EWCLoRAPenalty,
    EWCPenalty,
    OLoRAPenalty,
    Penalties,
    Penalty,
)
from constrained_adapters.training.weights import WeightsLearner, trainable_copy


def make_learner(base: LoadedBase, config: RunConfig, method: MethodConfig, memory_folder: Path) -> Learner:
    """Build what a method trains; nothing is written yet.

    Args:
        base: As loaded; :meth:`Learner.release` gives it back unchanged.
        config: Of the run.
        method: Of ``config.methods``.
        memory_folder: Where what is kept for the method as a whole is written.

    Raises:
        ConstrainedAdaptersError: A setting does not suit the base, such as names of layers.
    """
    recipe = find_recipe(method)
    if recipe.trained == "nothing":
        return Untrained(base.model)
    penalty = make_penalty(recipe, method, memory_folder)
    if recipe.trained == "weights":
        return WeightsLearner(trainable_copy(base.model), penalty)
    if recipe.trained == "singular_vectors":
        return OSFLearner(trainable_copy(base.model), config.adapter.layers, len(config.domains))
    use: Literal["together", "alone", "once"] = "once" if recipe.in_one_turn else recipe.scored
    model = CRMAModel.from_base(base, model_config(method, config.base, config.adapter))
    return AdapterLearner(
        model, memory_folder, seed=config.seed, use=use, start=recipe.start, penalty=penalty
    )


def make_penalty(recipe: Answers, method: MethodConfig, memory_folder: Path) -> Penalty | None:
    """What the penalties of a method are together; None where it has none."""
    parts = []
    for name, weight in penalty_weights(method).items():
        prefix = f"{name}_" if len(recipe.penalties) > 1 else ""
        parts.append(_PENALTIES[name](weight, memory_folder, prefix))
    return parts[0] if len(parts) == 1 else Penalties(parts) if parts else None


_PENALTIES: Mapping[PenaltyName, Callable[[float, Path, str], Penalty]] = {
    "ewc": lambda weight, folder, prefix: EWCPenalty(weight, folder, prefix=prefix),
    "ewc_lora": lambda weight, folder, prefix: EWCLoRAPenalty(weight, folder, prefix=prefix),
    "olora": lambda weight, folder, prefix: OLoRAPenalty(weight, prefix=prefix),
}
