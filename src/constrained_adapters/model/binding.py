"""From finished domains' memories to the constraint that binds an adapter in training."""

from __future__ import annotations

from collections.abc import Sequence

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
from constrained_adapters.memory.kfac import KFACMemory
from constrained_adapters.memory.protected import protected_bases


def make_constraint(
    pairs: Sequence[AdapterPair], memories: Sequence[KFACMemory], config: CRMAConfig
) -> Constraint:
    """Build the constraint of ``config.constraint_type`` at ``config.constraint_strength``.

    Args:
        pairs: The (A, B) in training.
        memories: Of the finished domains, oldest first.
        config: Its type must not be ``none``.

    Raises:
        ModelError: A memory lacks an adapted layer.
    """
    for memory in memories:
        missing = [pair.module for pair in pairs if pair.module not in memory.groups]
        if missing:
            raise ModelError(
                f"the memory of domain {memory.domain!r} was made for other layers",
                got=f"{len(memory.groups)} layers, without {missing[0]}",
                expected=f"all {len(pairs)} adapted layers",
                hint="adapt the same layers for every domain",
            )
    if config.constraint_type in SUBSPACE_TYPES:
        bases = protected_bases(memories, SUBSPACE_TYPES[config.constraint_type], config.constraint_strength)
        matrices = {f"{index}": pair.a for index, pair in enumerate(pairs)}
        named = {f"{index}": bases[pair.module] for index, pair in enumerate(pairs) if pair.module in bases}
        return SubspaceConstraint(matrices, named, free=[pair.b for pair in pairs])
    device = pairs[0].a.device
    domains = [
        [
            Curvature(
                memory.inputs[memory.groups[pair.module]]["energy"].dense().to(device),
                memory.outputs[pair.module].dense().to(device),
            )
            for pair in pairs
        ]
        for memory in memories
    ]
    kind = config.constraint_type
    assert kind in {"gem", "agem", "diagonal"}, kind
    return PredictedGradientConstraint(pairs, domains, kind, config.constraint_strength)
