"""From a recipe's row to the learner that does what the row says."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from constrained_adapters.config import MethodConfig, RunConfig
from constrained_adapters.model import CRMAModel
from constrained_adapters.models.load import LoadedBase
from constrained_adapters.recipes import find_recipe, model_config, penalty_weight
from constrained_adapters.training.adapters import AdapterLearner
from constrained_adapters.training.learner import Learner, Untrained
from constrained_adapters.training.osf import OSFLearner
from constrained_adapters.training.penalties import EWCLoRAPenalty, EWCPenalty, OLoRAPenalty, Penalty
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
    weight = penalty_weight(method)
    if recipe.trained == "weights":
        held = EWCPenalty(weight, memory_folder) if recipe.penalty == "ewc" else None
        return WeightsLearner(trainable_copy(base.model), held)
    if recipe.trained == "singular_vectors":
        return OSFLearner(trainable_copy(base.model), config.adapter.layers, len(config.domains))
    use: Literal["together", "alone", "once"] = "alone" if recipe.alone else "together"
    penalty: Penalty | None = None
    if recipe.rehearsal == "all":
        use = "once"
    if recipe.penalty == "olora":
        penalty = OLoRAPenalty(weight)
    elif recipe.penalty == "ewc_lora":
        penalty = EWCLoRAPenalty(weight, memory_folder)
    model = CRMAModel.from_base(base, model_config(method, config.base, config.adapter))
    return AdapterLearner(
        model, memory_folder, seed=config.seed, use=use, start=recipe.start, penalty=penalty
    )
