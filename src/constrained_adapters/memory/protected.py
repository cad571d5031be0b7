"""The input directions that finished domains need, one orthonormal basis per input.

Each domain in turn adds the fewest directions with which the basis holds ``share`` of *its
own* input factor's trace (GPM, Saha et al. 2021, arXiv 2103.09762, equations 8 and 9), so no
domain's share is thinned out by the others, however many there are. The basis never holds more
than d_in directions: the cost does not grow with the number of domains.

Axis letters: d width, k protected directions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from constrained_adapters.memory.factors import Factor
from constrained_adapters.memory.kfac import KFACMemory


def protected_bases(memories: Iterable[KFACMemory], kinds: Sequence[str], share: float) -> dict[str, Tensor]:
    """One basis per adapted module, shape (d_in, k); modules that read one input share one tensor.

    Args:
        memories: Of the finished domains, oldest first; the order matters little.
        kinds: Which input factors count: ``weighted`` (by the Fisher), ``energy``, or both.
        share: Of the trace of each of these factors of each domain that must lie in the basis, 0 … 1, or all
            that its memory keeps where that is less.
    """
    kept = list(memories)
    bases: dict[str, Tensor] = {}
    shared: dict[tuple[tuple[int, str], ...], Tensor] = {}
    for module in dict.fromkeys(module for memory in kept for module in memory.groups):
        # Which modules share an input can differ between memories: it depends on what was adapted then.
        sources = tuple(
            (i, memory.groups[module]) for i, memory in enumerate(kept) if module in memory.groups
        )
        if sources not in shared:
            basis: Tensor | None = None
            for index, key in sources:
                for kind in kinds:
                    basis = extend_basis(basis, kept[index].inputs[key][kind], share)
            assert basis is not None
            shared[sources] = basis
        bases[module] = shared[sources]
    return bases


def extend_basis(basis: Tensor | None, factor: Factor, share: float) -> Tensor:
    """Add the fewest directions to ``basis`` (d, k) with which it holds ``share`` of ``factor``.

    >>> axes = Factor(torch.eye(3), torch.tensor([8.0, 1.0, 1.0]), 0.0)
    >>> extend_basis(None, axes, 0.8).shape
    torch.Size([3, 1])
    >>> extend_basis(torch.eye(3)[:, :1], axes, 0.9).shape
    torch.Size([3, 2])
    """
    if basis is None:
        basis = factor.vectors[:, :0]
    weighted = factor.vectors * factor.values.sqrt()
    outside = weighted - basis @ (basis.T @ weighted)
    captured = float((basis.T @ weighted).square().sum())
    missing = min(share * factor.trace - captured, float(outside.square().sum()))
    if share <= 0.0 or missing <= 1e-6 * factor.trace:
        return basis
    # The left singular vectors of `outside` through its Gram matrix: several times faster than an SVD.
    exact = outside.double()
    values, right = torch.linalg.eigh(exact.T @ exact)
    values, right = values.flip(0).clamp_min(0.0), right.flip(1)
    count = int((torch.cumsum(values, 0) < missing * (1 - 1e-6)).sum()) + 1
    joined: Tensor = torch.linalg.qr(torch.cat([basis, (exact @ right[:, :count]).float()], dim=1)).Q
    return joined.contiguous()
