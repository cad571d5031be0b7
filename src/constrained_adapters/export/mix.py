"""Several weighted adapters as one, exactly; and one adapter with fewer ranks, at a stated loss.

``Σ wᵢ Bᵢ Aᵢ = [w₁B₁, w₂B₂, …] · [A₁; A₂; …]``: ranks add up and nothing is lost. With fewer ranks the best
approximation in the Frobenius norm is the truncated singular value decomposition (Eckart and Young 1936);
it is taken of the factors (QR of both sides, SVD of the r × r core), never of the whole matrix.

Axis letters: R sum of the ranks, r rank, d width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from constrained_adapters.errors import ConfigError, ModelError
from constrained_adapters.export.plain import Pairs


@dataclass(frozen=True)
class Compressed:
    """An adapter of fewer ranks, and what it lost.

    Args:
        pairs: Of rank r at most.
        error_ratio: ‖ΔW − ΔW_r‖ / ‖ΔW‖ in the Frobenius norm, over all layers together.
        worst_ratio: The same of the layer that lost most.
        worst_module: Its name.
    """

    pairs: Pairs
    error_ratio: float
    worst_ratio: float
    worst_module: str


def mix_pairs(parts: Sequence[tuple[Pairs, float]]) -> Pairs:
    """Concatenate the ranks of weighted adapters, layer by layer; a layer that only some adapt is theirs.

    Args:
        parts: Adapters with their weights; an adapter of weight 0 takes no part.

    Raises:
        ConfigError: No adapter has a weight, or one is not a finite number.
        ModelError: Two adapters take a layer for one of another shape.
    """
    for _, weight in parts:
        if not math.isfinite(weight):
            raise ConfigError("the weight of an adapter is not a finite number", got=str(weight))
    acting = [(pairs, weight) for pairs, weight in parts if weight != 0.0]
    if not acting:
        raise ConfigError(
            "there is nothing to mix", got="every weight is 0", expected="at least one other weight"
        )
    mixed: dict[str, tuple[Tensor, Tensor]] = {}
    for module in dict.fromkeys(name for pairs, _ in acting for name in pairs):
        own = [(*pairs[module], weight) for pairs, weight in acting if module in pairs]
        shapes = {(b.shape[0], a.shape[1]) for a, b, _ in own}
        if len(shapes) > 1:
            raise ModelError(
                "these adapters belong to different bases",
                got=f"{module}: ΔW of shape {' and '.join(str(list(shape)) for shape in sorted(shapes))}",
                expected="adapters of one base",
            )
        mixed[module] = (
            torch.cat([a for a, _, _ in own]),
            torch.cat([b * weight for _, b, weight in own], dim=1),
        )
    return mixed


def pad_pairs(pairs: Pairs, rank: int) -> Pairs:
    """Add rows of zeros to A and columns of zeros to B up to ``rank``; ΔW stays as it is, bit for bit."""
    return {module: (_padded(a, rank, 0), _padded(b, rank, 1)) for module, (a, b) in pairs.items()}


def compress_pairs(pairs: Pairs, rank: int) -> Compressed:
    """The adapter of at most ``rank`` ranks that is nearest to ``pairs``.

    Cost: O((d_in + d_out) R² + R³) a layer.
    """
    kept, lost, whole = {}, {}, {}
    for module, (a, b) in pairs.items():
        q_out, r_out = torch.linalg.qr(b.double())
        q_in, r_in = torch.linalg.qr(a.double().T)
        u, s, v = torch.linalg.svd(r_out @ r_in.T)
        root = s[:rank].sqrt()  # halved between the sides, so that neither holds values of another size
        kept[module] = (
            (root[:, None] * (v[:rank] @ q_in.T)).to(a.dtype),
            ((q_out @ u[:, :rank]) * root).to(b.dtype),
        )
        lost[module], whole[module] = float(s[rank:].square().sum()), float(s.square().sum())
    ratios = {name: math.sqrt(lost[name] / whole[name]) if whole[name] else 0.0 for name in pairs}
    worst = max(ratios, key=lambda name: ratios[name])
    total = sum(whole.values())
    error = math.sqrt(sum(lost.values()) / total) if total else 0.0
    return Compressed(kept, error, ratios[worst], worst)


def _padded(matrix: Tensor, rank: int, axis: int) -> Tensor:
    shape = list(matrix.shape)
    shape[axis] = rank - shape[axis]
    return torch.cat([matrix, matrix.new_zeros(shape)], dim=axis) if shape[axis] > 0 else matrix
