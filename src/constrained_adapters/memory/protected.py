"""The inputs that finished domains need: one orthonormal basis per input, and the sum of all that matters.

Each domain in turn adds the fewest directions with which the basis holds its share of *its own* input
factor's trace (GPM, Saha et al. 2021, arXiv 2103.09762, equations 8 and 9), so no domain's share is thinned
out by the others, however many there are. Beside the basis stands the sum of the domains' whole factors, each
at trace one: what they need a little, which no basis can hold without filling up. Neither grows with the
number of domains.

Axis letters: d width, k protected directions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, Literal, TypeVar

import torch
from torch import Tensor

from constrained_adapters.memory.factors import Factor
from constrained_adapters.memory.frequent_directions import FrequentDirections
from constrained_adapters.memory.kfac import BASE_DOMAIN, KFACMemory
from constrained_adapters.memory.statistics import SKETCH_ROWS, WIDE, Covariance

InputKind = Literal["sensitivity", "energy"]
T = TypeVar("T")
DOMAIN_LEAK = 0.5
"""What stays open of a finished domain, as a share of what stays open of the base's own text."""


def protected_share(kind: InputKind, domain: str, strength: float) -> float:
    """Which share of a domain's input factor is protected at a ``constraint_strength``.

    All that occurs (``energy``): the strength itself, as in GPM. What reaches an answer (``sensitivity``):
    of the base's own text the strength, of a finished domain half way from there to all of it, because its
    answers rest on few directions (docs/log.md).

    >>> round(protected_share("sensitivity", "law", 0.8), 4)
    0.9
    """
    if kind == "energy" or domain == BASE_DOMAIN:
        return strength
    return 1.0 - DOMAIN_LEAK * (1.0 - strength)


class ProtectedSpace:
    """What a growing list of memories protects; what was computed for its beginning is used again.

    Args:
        kind: Which input factor counts.
        strength: ``constraint_strength``, 0 … 1.
    """

    def __init__(self, kind: InputKind, strength: float) -> None:
        def extended(basis: Tensor | None, factor: Factor, domain: str) -> Tensor:
            return extend_basis(basis, factor, protected_share(kind, domain, strength))

        self.kind, self.strength = kind, strength
        self._bases = _Growing(kind, extended)
        self._sums = _Growing(kind, _with_factor)

    def bases(self, memories: Sequence[KFACMemory]) -> dict[str, Tensor]:
        """One basis per adapted module, shape (d_in, k); modules that read one input share one tensor.

        Args:
            memories: Of the base and the finished domains, oldest first; the order matters little.
        """
        return self._bases.of(memories)

    def sums(self, memories: Sequence[KFACMemory]) -> dict[str, Covariance]:
        """Per adapted module the sum over the memories of its input's factor, each at trace one.

        Args:
            memories: As for :meth:`bases`.

        Returns:
            Matrices (d_in, d_in), above a width of 2048 sketches; modules that read one input share one.
        """
        return self._sums.of(memories)


class _Growing(Generic[T]):
    """A value per adapted module, made of one memory after another.

    Args:
        kind: Which input factor counts.
        add: From the value so far, a memory's factor and its domain to the next value, a new object.
    """

    def __init__(self, kind: InputKind, add: Callable[[T | None, Factor, str], T]) -> None:
        self._kind, self._add = kind, add
        self._memories: list[KFACMemory] = []
        self._values: dict[str, T] = {}

    def of(self, memories: Sequence[KFACMemory]) -> dict[str, T]:
        """The values for ``memories``; begun anew where those before were others."""
        known = len(self._memories)
        if [id(memory) for memory in memories[:known]] != [id(memory) for memory in self._memories]:
            self._memories, self._values, known = [], {}, 0
        for memory in memories[known:]:
            self._take(memory)
        return dict(self._values)

    def _take(self, memory: KFACMemory) -> None:
        # Which modules share an input can differ between memories: it depends on what was adapted then.
        made: dict[tuple[int, str], T] = {}
        for module, key in memory.groups.items():
            value = self._values.get(module)
            if (id(value), key) not in made:
                made[id(value), key] = self._add(value, memory.inputs[key][self._kind], memory.domain)
            self._values[module] = made[id(value), key]
        self._memories.append(memory)


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


def _with_factor(total: Covariance | None, factor: Factor, domain: str) -> Covariance:
    """``total`` and the factor at trace one, as a new object."""
    scale = 1.0 / max(factor.trace, 1e-30)
    if factor.width <= WIDE:
        dense = scale * factor.dense()
        return dense if total is None else dense + total  # type: ignore[operator]  # of one width, so dense too
    sketch = (
        total.scaled(1.0)
        if isinstance(total, FrequentDirections)
        else FrequentDirections(factor.width, SKETCH_ROWS)
    )
    sketch.update((factor.vectors * (scale * factor.values).sqrt()).T)
    sketch.diagonal += scale * factor.rest
    return sketch
