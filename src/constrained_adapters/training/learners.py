"""From a recipe's row to the learner that does what the row says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from constrained_adapters.adapters.bottleneck import NAMED, Bottlenecks
from constrained_adapters.adapters.inserted import Family, InsertedModel
from constrained_adapters.adapters.progressive import Columns
from constrained_adapters.adapters.selection import Part, Which
from constrained_adapters.config.run import MethodConfig, RunConfig
from constrained_adapters.data.tokens import Tokens
from constrained_adapters.memory.directions import CAPACITY
from constrained_adapters.model import CRMAModel
from constrained_adapters.models.decoder import decoder_layers
from constrained_adapters.models.load import LoadedBase
from constrained_adapters.recipes import (
    EWC_DECAY,
    FROZEN_RATIO,
    GEM_MARGIN,
    Answers,
    find_recipe,
    model_config,
    penalty_weights,
)
from constrained_adapters.recipes.recipe import WEIGHTS, Bound, Trained
from constrained_adapters.training.adapters import AdapterLearner
from constrained_adapters.training.inserted import InsertedLearner, InsertedUse
from constrained_adapters.training.isolation import Isolation
from constrained_adapters.training.learner import Learner, Untrained
from constrained_adapters.training.old_gradients import (
    AGEMPenalty,
    GEMPenalty,
    KeptRows,
    OGDLoRAPenalty,
    OGDPenalty,
)
from constrained_adapters.training.osf import OSFLearner
from constrained_adapters.training.penalties import (
    EWCLoRAPenalty,
    EWCPenalty,
    FrozenPenalty,
    OLoRAPenalty,
    Penalties,
    Penalty,
)
from constrained_adapters.training.weights import WeightsLearner, trainable_copy


def make_learner(
    base: LoadedBase,
    config: RunConfig,
    method: MethodConfig,
    memory_folder: Path,
    kept: KeptRows,
    base_rows: Sequence[Tokens] = (),
) -> Learner:
    """Build what a method trains; nothing is written yet.

    Args:
        base: As loaded; :meth:`Learner.release` gives it back unchanged.
        config: Of the run.
        method: Of ``config.methods``.
        memory_folder: Where what is kept for the method as a whole is written.
        kept: Gives the rows of finished domains that the method's lessons keep.
        base_rows: What the base's memory is made of; empty: text that it writes.

    Raises:
        ConstrainedAdaptersError: A setting does not suit the base, such as names of layers.
    """
    recipe = find_recipe(method)
    if recipe.trained == "nothing":
        return Untrained(base.model)
    penalty = make_penalty(recipe, method, memory_folder, batch_size=config.training.batch_size, kept=kept)
    if recipe.trained in WEIGHTS:
        return WeightsLearner(trainable_copy(base.model, _part(base.model, recipe.trained, method)), penalty)
    if recipe.trained == "singular_vectors":
        return OSFLearner(trainable_copy(base.model), config.adapter.layers, len(config.domains))
    family = _family(recipe.trained, method)
    if family is not None:
        inserted = InsertedModel(base.model, family, fingerprint=base.fingerprint)
        return InsertedLearner(inserted, _inserted_use(recipe), penalty)
    use: Literal["together", "alone", "once"] = "once" if recipe.in_one_turn else recipe.scored
    model = CRMAModel.from_base(base, model_config(method, config.base, config.adapter))
    return AdapterLearner(
        model,
        memory_folder,
        seed=config.seed,
        use=use,
        start=recipe.start,
        penalty=penalty,
        isolation=_isolation(base.model, config, method, memory_folder) if recipe.shared else None,
        base_rows=base_rows,
    )


def check_methods_on(base: LoadedBase, config: RunConfig) -> None:
    """Refuse what a method could not do with this base, before anything is diagnosed or trained.

    Raises:
        ConstrainedAdaptersError: As :func:`make_learner`.
    """
    for method in config.methods:
        make_learner(base, config, method, config.output / method.name, dict).release()


def _part(model: Any, trained: Trained, method: MethodConfig) -> Part:
    """What of the base's weights is trained; half of the decoder layers where their number is left out."""
    which = _PARTS[trained]
    if which in {"all", "biases"}:
        return Part(which)
    return Part(which, len(decoder_layers(model)) // 2 if method.num_layers is None else method.num_layers)


def _family(trained: Trained, method: MethodConfig) -> Family | None:
    if trained == "columns":
        return Columns(method.width or Columns.width)
    return replace(NAMED[trained], width=method.width or Bottlenecks.width) if trained in NAMED else None


def _isolation(base: Any, config: RunConfig, method: MethodConfig, folder: Path) -> Isolation:
    rank = config.adapter.rank
    assert rank != "auto", "check_methods refuses it"
    return Isolation(
        base,
        layers=method.domain_layers or {},
        ranks=method.domain_ranks or {},
        shared_rank=rank if method.shared_rank is None else method.shared_rank,
        folder=folder,
    )


def _inserted_use(recipe: Answers) -> InsertedUse:
    if recipe.in_one_turn:
        return "once"
    return "alone" if recipe.scored == "alone" else "onward"


_PARTS: Mapping[Trained, Which] = {
    "weights": "all",
    "biases": "biases",
    "freeze_first": "freeze_first",
    "freeze_last": "freeze_last",
    "last_layers": "train_last",
}


def make_penalty(
    recipe: Answers, method: MethodConfig, memory_folder: Path, *, batch_size: int, kept: KeptRows
) -> Penalty | None:
    """What binds the steps of a method beside CRMA's constraint, as one; None where nothing does."""
    weights, parts = penalty_weights(method), []
    for name in recipe.bounds:
        prefix = f"{name}_" if len(recipe.bounds) > 1 or recipe.constraint != "none" else ""
        asked = _Asked(weights.get(name, 0.0), method, memory_folder, prefix, batch_size, kept)
        parts.append(_BOUNDS[name](asked))
    return parts[0] if len(parts) == 1 else Penalties(parts) if parts else None


@dataclass(frozen=True)
class _Asked:
    """What a bound is made from."""

    weight: float
    method: MethodConfig
    folder: Path
    prefix: str
    batch_size: int
    kept: KeptRows

    @property
    def importance(self) -> dict[str, Any]:
        """How bounds by a Fisher keep it and name their figures; rates by it want it at weight 0 too."""
        return {"prefix": self.prefix, "always": self.method.rate_by_importance is not None}


def _agem(asked: _Asked) -> Penalty:
    rows = asked.method.gem_rows or asked.batch_size
    return AGEMPenalty(asked.kept, rows_per_step=rows, prefix=asked.prefix)


def _gem(asked: _Asked) -> Penalty:
    margin, rows = _given(asked.method.gem_margin, GEM_MARGIN), asked.method.gem_rows
    return GEMPenalty(asked.kept, margin=margin, rows_per_step=rows, prefix=asked.prefix)


def _frozen(asked: _Asked) -> Penalty:
    share = _given(asked.method.frozen_ratio, FROZEN_RATIO)
    return FrozenPenalty(share, asked.folder, **asked.importance)


def _ogd(asked: _Asked) -> Penalty:
    capacity = asked.method.ogd_directions or CAPACITY
    return OGDPenalty(asked.folder, capacity=capacity, prefix=asked.prefix)


def _online(kind: type[EWCPenalty] | type[EWCLoRAPenalty]) -> Callable[[_Asked], Penalty]:
    def make(asked: _Asked) -> Penalty:
        decay = _given(asked.method.ewc_decay, EWC_DECAY)
        return kind(asked.weight, asked.folder, decay=decay, **asked.importance)

    return make


def _given(value: float | None, default: float) -> float:
    return default if value is None else value


_BOUNDS: Mapping[Bound, Callable[[_Asked], Penalty]] = {
    "agem": _agem,
    "ewc": lambda asked: EWCPenalty(asked.weight, asked.folder, **asked.importance),
    "ewc_lora": lambda asked: EWCLoRAPenalty(asked.weight, asked.folder, **asked.importance),
    "freeze_important": _frozen,
    "gem": _gem,
    "ogd": _ogd,
    "ogd_lora": lambda asked: OGDLoRAPenalty(asked.folder, prefix=asked.prefix),
    "olora": lambda asked: OLoRAPenalty(asked.weight, prefix=asked.prefix),
    "online_ewc": _online(EWCPenalty),
    "online_ewc_lora": _online(EWCLoRAPenalty),
}
