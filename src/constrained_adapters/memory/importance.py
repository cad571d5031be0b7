"""Which modules a finished domain depends on, read from its memory's file without rebuilding it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open

from constrained_adapters.memory.kfac import FORMAT_VERSION


def module_importance(path: Path) -> dict[str, float]:
    """Return each module's mean Fisher information per weight, six digits each; empty without a memory.

    By the memory's K-FAC estimate ``F = G ⊗ A`` of a module's d_out × d_in weights, ``tr G · tr A / (d_out ·
    d_in)``, in nats per token and squared unit of weight: how much the domain's loss rises where its weights
    are disturbed. The traces are the sums of the stored values; no direction is unpacked.

    Args:
        path: A file of :meth:`~constrained_adapters.memory.kfac.KFACMemory.to_bytes`.
    """
    if not path.is_file():
        return {}
    with safe_open(path, "pt") as file:
        facts = json.loads(file.metadata()["constrained_adapters"])
        if facts["format_version"] != FORMAT_VERSION:
            return {}

        def mean_value(label: str) -> float:
            values, rest = file.get_tensor(f"{label}.values"), file.get_tensor(f"{label}.rest").float()
            total = float(values.float().sum() + rest.sum())
            return total / rest.numel() if torch.isfinite(rest).all() else 0.0

        return {
            module: float(f"{mean_value(f'output:{module}') * mean_value(f'energy:{key}'):.6g}")
            for module, key in facts["groups"].items()
        }
