"""From finished domains' memories to the constraint that binds an adapter in training."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor
from torch import distributed as dist

from constrained_adapters.adapters.lora import AdapterPair
from constrained_adapters.config.crma import CRMAConfig
from constrained_adapters.constraints import (
    SUBSPACE_TYPES,
    Constraint,
    PredictedGradientConstraint,
    SubspaceConstraint,
)
from constrained_adapters.constraints.in_turn import InTurn
from constrained_adapters.constraints.output_change import OutputChangeConstraint, weighted_square
from constrained_adapters.constraints.predicted import Curvature
from constrained_adapters.errors import AdapterStateError, ModelError
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
    layers: Mapping[str, Any],
    memories: Sequence[KFACMemory],
    config: CRMAConfig,
    space: ProtectedSpace | None = None,
) -> Constraint:
    """Build what ``config.constraint_type`` binds steps with, at ``config.constraint_strength``.

    Args:
        pairs: The (A, B) in training.
        layers: The adapted layers by the pairs' modules.
        memories: Of the finished domains, oldest first.
        config: Its type must not be ``none``.
        space: What was computed for earlier domains, from :func:`protected_space`.

    Raises:
        ModelError: A memory lacks an adapted layer.
    """
    check_layers(memories, [pair.module for pair in pairs])
    if config.constraint_type not in SUBSPACE_TYPES:
        domains = [_curvatures(pairs, memory) for memory in memories]
        kind = config.constraint_type
        assert kind in {"gem", "agem", "diagonal"}, kind
        return PredictedGradientConstraint(pairs, domains, kind, config.effective_strength)
    space = space or protected_space(config)
    bases = space.bases(memories)
    matrices = {f"{index}": pair.a for index, pair in enumerate(pairs)}
    named = {f"{index}": bases[pair.module] for index, pair in enumerate(pairs) if pair.module in bases}
    closed = SubspaceConstraint(matrices, named, free=[pair.b for pair in pairs])
    if config.constraint_type != "fisher" or config.penalty_weight == 0.0 or not memories:
        return closed
    return InTurn([output_change(pairs, layers, memories, space, config.penalty_weight), closed])


def output_change(
    pairs: Sequence[AdapterPair],
    layers: Mapping[str, Any],
    memories: Sequence[KFACMemory],
    space: ProtectedSpace,
    weight: float,
) -> OutputChangeConstraint:
    """The penalty on what ``space`` leaves open.

    Args:
        pairs: The (A, B) in training.
        layers: The adapted layers by the pairs' modules.
        memories: Of the finished domains.
        space: Whose sums of the memories' inputs weigh the change.
        weight: λ.
    """
    sums = space.sums(memories)
    outputs = {
        pair.module: weighted_square(base_weight(layers[pair.module]), sums[pair.module].to(pair.a.device))
        for pair in pairs
        if pair.module in sums
    }
    return OutputChangeConstraint(pairs, sums, outputs, sum(m.num_domains for m in memories), weight)


@torch.no_grad()
def base_weight(layer: Any) -> Tensor:
    """W (d_out, d_in) of an adapted layer's base, dequantised where it is packed."""
    base = layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer
    weight: Tensor = dequantize_module_weight(base)
    return weight.T if type(base).__name__ == "Conv1D" else weight


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


def refuse_several_processes(adapter_name: str) -> None:
    """Each would make a memory of the rows that it has seen, and the replicas' steps would differ."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        raise AdapterStateError(
            f"the memory of {adapter_name!r} would not be the same in all processes",
            got=f"no rows, in process {dist.get_rank()} of {dist.get_world_size()}",
            expected="the same rows in each",
            hint=f"update_gradient_memory({adapter_name!r}, rows=...)",
        )
