"""The input directions that finished domains need, one orthonormal basis per input.

Each domain in turn adds the fewest directions with which the basis holds its share of *its own* input
factor's trace (GPM, Saha et al. 2021, arXiv 2103.09762, equations 8 and 9), so no domain's share is thinned
out by the others, however many there are. The basis never holds more than d_in directions: the cost does not
grow with the number of domains.

Axis letters: d width, k protected directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from constrained_adapters.memory.factors import Factor
from constrained_adapters.memory.kfac import BASE_DOMAIN, KFACMemory

InputKind = Literal["sensitivity", "energy"]
DOMAIN_LEAK = 0.25
"""What a finished domain may leak at most, as a share of what the base's own text may."""


def protected_share(kind: InputKind, domain: str, strength: float) -> float:
    """Which share of a domain's input factor is protected at a ``constraint_strength``.

    All that occurs (``energy``): the strength itself, as in GPM. What reaches an answer (``sensitivity``):
    of the base's own text the strength; a finished domain may leak a quarter of what the base may, because
    its answers rest on few directions and the last hundredths of them count (docs/log.md).

    >>> round(protected_share("sensitivity", "law", 0.9), 4)
    0.975
    """
    if kind == "energy" or domain == BASE_DOMAIN:
        return strength
    return 1.0 - DOMAIN_LEAK * (1.0 - strength)


class ProtectedSpace:
    """The bases of a growing list of memories; what was computed for its beginning is used again.

    Args:
        kind: Which input factor counts.
        strength: ``constraint_strength``, 0 … 1.
    """

    def __init__(self, kind: InputKind, strength: float) -> None:
        self.kind, self.strength = kind, strength
        self._memories: list[KFACMemory] = []
        self._bases: dict[str, Tensor] = {}

    def bases(self, memories: Sequence[KFACMemory]) -> dict[str, Tensor]:
        """One basis per adapted module, shape (d_in, k); modules that read one input share one tensor.

        Args:
            memories: Of the base and the finished domains, oldest first; the order matters little.
        """
        known = len(self._memories)
        if [id(memory) for memory in memories[:known]] != [id(memory) for memory in self._memories]:
            self._memories, self._bases, known = [], {}, 0
        for memory in memories[known:]:
            self._extend(memory)
        return dict(self._bases)

    def _extend(self, memory: KFACMemory) -> None:
        share = protected_share(self.kind, memory.domain, self.strength)
        # Which modules share an input can differ between memories: it depends on what was adapted then.
        extended: dict[tuple[int, str], Tensor] = {}
        for module, key in memory.groups.items():
            basis = self._bases.get(module)
            if (id(basis), key) not in extended:
                extended[id(basis), key] = extend_basis(basis, memory.inputs[key][self.kind], share)
            self._bases[module] = extended[id(basis), key]
        self._memories.append(memory)


def protected_bases(memories: Sequence[KFACMemory], kind: InputKind, strength: float) -> dict[str, Tensor]:
    """The bases of :class:`ProtectedSpace`, made at once."""
    return ProtectedSpace(kind, strength).bases(memories)


def extend_basis(basis: Tensor | None, factor: Factor, share: float) -> Tensor:
    """Add the fewest directions to ``basis`` (d, k) with which it holds ``share`` of ``factor``.

    Where the factor keeps less than that, it adds all that is kept.

    >>> axes = Factor(torch.eye(3), torch.tensor([8.0, 1.0, 1.0]), 0.0)
    >>> extend_basis(None, axes, 0.8).shape
    torch.Size([3, 1])
    >>> extend_basis(torch.eye(3)[:, :1], axes, 0.9).shape
    torch.Size([3, 2])
    """
    if basis is None:
        basis = factor.vectors[:, :0]
    scaled = factor.vectors * factor.values.sqrt()
    outside = scaled - basis @ (basis.T @ scaled)
    captured = float((basis.T @ scaled).square().sum())
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
