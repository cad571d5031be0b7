"""From finished domains' memories to the constraint that binds an adapter in training."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from constrained_adapters.adapters.lora import AdapterPair
from constrained_adapters.config import CRMAConfig
from constrained_adapters.constraints import (
    SUBSPACE_TYPES,
    Constraint,
    PredictedGradientConstraint,
    SubspaceConstraint,
)
from constrained_adapters.constraints.predicted import Curvature
from constrained_adapters.errors import ModelError
from constrained_adapters.memory.factors import Factor
from constrained_adapters.memory.kfac import KFACMemory
from constrained_adapters.memory.protected import ProtectedSpace


def check_base(found: str | None, own: str, *, where: str, base_name: str = "") -> None:
    """Refuse what was made on another base; an unknown fingerprint on either side passes.

    Args:
        found: Fingerprint of the base that an adapter or memory was made on.
        own: Fingerprint of the base at hand.
        where: Where it was found.
        base_name: Of the base at hand.

    Raises:
        ModelError: They differ; the message holds both.
    """
    if found and own and found != own:
        raise ModelError(
            "this adapter or memory belongs to another base model",
            got=f"base fingerprint {found} in {where}",
            expected=f"{own} ({base_name})" if base_name else own,
            hint="load the base it was trained on; a changed context length or changed weights count too",
        )


def check_layers(memories: Sequence[KFACMemory], modules: Sequence[str]) -> None:
    """Refuse memories that know nothing of a layer in training.

    Raises:
        ModelError: A memory lacks one; the message holds the layers of both.
    """
    for memory in memories:
        missing = [module for module in modules if module not in memory.groups]
        if missing:
            raise ModelError(
                f"the memory of domain {memory.domain!r} was made for other layers",
                got=f"{_listed(memory.groups)}, without {missing[0]}",
                expected=_listed(modules),
                hint="adapt the same layers for every domain",
            )


def _listed(modules: Collection[str]) -> str:
    kinds = sorted({module.rpartition(".")[2] for module in modules})
    return f"{len(modules)} layers ({', '.join(kinds)})"


def protected_space(config: CRMAConfig, strength: float | None = None) -> ProtectedSpace:
    """The space, still empty, that the types ``fisher`` and ``orthogonal`` close.

    Args:
        config: Says which inputs count.
        strength: Default: the config's.
    """
    own = config.effective_strength if strength is None else strength
    return ProtectedSpace(SUBSPACE_TYPES[config.constraint_type], own)


def make_constraint(
    pairs: Sequence[AdapterPair],
    memories: Sequence[KFACMemory],
    config: CRMAConfig,
    space: ProtectedSpace | None = None,
) -> Constraint:
    """Build the constraint of ``config.constraint_type`` at ``config.constraint_strength``.

    Args:
        pairs: The (A, B) in training.
        memories: Of the finished domains, oldest first.
        config: Its type must not be ``none``.
        space: What was computed for earlier domains, from :func:`protected_space`.

    Raises:
        ModelError: A memory lacks an adapted layer.
    """
    check_layers(memories, [pair.module for pair in pairs])
    if config.constraint_type in SUBSPACE_TYPES:
        bases = (space or protected_space(config)).bases(memories)
        matrices = {f"{index}": pair.a for index, pair in enumerate(pairs)}
        named = {f"{index}": bases[pair.module] for index, pair in enumerate(pairs) if pair.module in bases}
        return SubspaceConstraint(matrices, named, free=[pair.b for pair in pairs])
    domains = [_curvatures(pairs, memory) for memory in memories]
    kind = config.constraint_type
    assert kind in {"gem", "agem", "diagonal"}, kind
    return PredictedGradientConstraint(pairs, domains, kind, config.effective_strength)


def _curvatures(pairs: Sequence[AdapterPair], memory: KFACMemory) -> list[Curvature]:
    """Of each pair, on its device; those that read the same input share its factor."""
    inputs: dict[tuple[str, torch.device], Factor] = {}
    found = []
    for pair in pairs:
        key = (memory.groups[pair.module], pair.a.device)
        if key not in inputs:
            inputs[key] = memory.inputs[key[0]]["energy"].to(key[1])
        found.append(Curvature(inputs[key], memory.outputs[pair.module].to(pair.b.device)))
    return found
