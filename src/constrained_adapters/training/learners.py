"""From a recipe's row to the learner that does what the row says."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from constrained_adapters.config import MethodConfig, RunConfig
from constrained_adapters.model import CRMAModel
from constrained_adapters.models.load import LoadedBase
from constrained_adapters.recipes import find_recipe, model_config
from constrained_adapters.training.adapters import AdapterLearner
from constrained_adapters.training.learner import Learner, Untrained


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
    model = CRMAModel.from_base(base, model_config(method, config.base, config.adapter))
    use: Literal["together", "alone", "once"] = "alone" if recipe.alone else "together"
    if recipe.rehearsal == "all":
        use = "once"
    return AdapterLearner(model, memory_folder, seed=config.seed, use=use)
