"""The forgetting guard of one domain of a run: which rows it watches, and what each was learnt to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from constrained_adapters.config.guard import GuardConfig
from constrained_adapters.config.run import MethodConfig
from constrained_adapters.constraints.attach import strengthen
from constrained_adapters.data.tokens import Tokens
from constrained_adapters.guards.forgetting import ForgettingGuard
from constrained_adapters.recipes import find_recipe

STRONGER = 2.0
"""What a penalty is multiplied with."""


def can_be_guarded(method: MethodConfig) -> bool:
    """Whether the model in training is the one that answers for the old domains too."""
    recipe = find_recipe(method)
    return recipe.trained != "nothing" and recipe.scored != "alone" and not recipe.in_one_turn


def make_guard(
    settings: GuardConfig,
    old: Mapping[str, Sequence[Tokens]],
    new: Sequence[Tokens],
    learnt_nats: Mapping[str, float],
    model: Any,
) -> ForgettingGuard:
    """The guard of a domain's training.

    Args:
        settings: ``guard:`` of crma.yaml.
        old: For each finished domain rows of its validation split.
        new: Such rows of the domain in training; they watch it once it is finished, too.
        learnt_nats: Loss of finished domains on these rows when they were learnt.
        model: What is trained.
    """
    chosen = settings.model_dump()
    if isinstance(settings.max_increase, dict):  # it may name domains that are still to come
        chosen["max_increase"] = {name: settings.limit(name) for name in old} or 0.1

    def make_stronger() -> dict[str, float]:
        own: dict[str, float] = getattr(model, "strengthen_constraint", dict)()
        return own or strengthen([p for p in model.parameters() if p.requires_grad], STRONGER)

    return ForgettingGuard(old, new, baseline=learnt_nats, strengthen=make_stronger, **chosen)


def guard_facts(guard: ForgettingGuard | None) -> dict[str, float]:
    """What is written down of a guard beside its curves and events: ``learnt_nats`` and ``time_ratio``."""
    if guard is None or guard.last_new_nats is None:
        return {}
    return {"learnt_nats": guard.last_new_nats, "time_ratio": guard.time_ratio}


def learnt_nats(facts: Mapping[str, Any]) -> float | None:
    """From a finished domain's ``training.json``: its loss on the watched rows when it was learnt."""
    found: float | None = facts.get("guard", {}).get("learnt_nats")
    return found
