"""No step against the gradients that the memories predict for the finished domains.

A K-FAC memory predicts a finished domain's loss increase p_k = ½ Σ_W tr(ΔWᵀ G_k ΔW A_k) for the
adapter in training, and so its gradient, without any example:
∂p/∂A = s² (Bᵀ G B)(A A_k) and ∂p/∂B = s² (G B)(A A_k Aᵀ).

* ``agem``: A-GEM (Chaudhry et al. 2019, arXiv 1812.00420) against ḡ = Σ_k ∇p_k, one old gradient.
* ``gem``: GEM (Lopez-Paz & Ranzato 2017, arXiv 1706.08840) with ∇p_k of every domain.
* ``diagonal``: as ``agem``, with only the diagonals of both factors.

What both do with an old gradient stands in :mod:`constrained_adapters.constraints.cone`. Deviation from
both: predicted gradients stand in for those of kept examples (:mod:`constrained_adapters.constraints.kept`
has those); and ``strength`` scales what is removed.

Cost per step and domain: r·(d_in + d_out)·k multiply-adds per matrix for k directions of a factor; nothing of
size d × d is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor, nn

from constrained_adapters.adapters.lora import AdapterPair
from constrained_adapters.constraints.cone import ConeConstraint
from constrained_adapters.memory.factors import Factor


@dataclass(frozen=True)
class Curvature:
    """One memory on one matrix: factors of ``inputs``, of width d_in, and ``outputs``, of width d_out."""

    inputs: Factor
    outputs: Factor

    def diagonal(self) -> Curvature:
        """With each factor's diagonal only."""
        return Curvature(_diagonal(self.inputs), _diagonal(self.outputs))


@final
class PredictedGradientConstraint(ConeConstraint):
    """GEM and A-GEM on predicted gradients.

    Args:
        pairs: The (A, B) in training.
        domains: For each finished domain the curvature of each pair, in the pairs' order, on their device.
        kind: ``gem``, ``agem`` or ``diagonal``.
        strength: Share of the conflicting component that is removed, 0 … 1.
    """

    def __init__(
        self,
        pairs: Sequence[AdapterPair],
        domains: Sequence[Sequence[Curvature]],
        kind: Literal["gem", "agem", "diagonal"],
        strength: float,
    ) -> None:
        super().__init__(strength)
        self._pairs, self._kind = list(pairs), kind
        self._domains = [[c.diagonal() if kind == "diagonal" else c for c in domain] for domain in domains]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All A and B."""
        return [p for pair in self._pairs for p in (pair.a, pair.b)]

    @property
    def num_old_gradients(self) -> int:
        """One per domain for ``gem``, else one for all."""
        return len(self._domains) if self._kind == "gem" else min(len(self._domains), 1)

    @torch.no_grad()
    def old_gradients(self) -> list[list[Tensor]]:
        """∇p_k, or their sum."""
        found = [self._predicted(domain) for domain in self._domains]
        if self._kind == "gem":
            return found
        return [[torch.stack(parts).sum(0) for parts in zip(*found, strict=True)]]

    def describe(self) -> dict[str, float]:
        """``num_domains`` whose predicted gradients bind."""
        return {"num_domains": float(len(self._domains))}

    def _predicted(self, domain: Sequence[Curvature]) -> list[Tensor]:
        parts = []
        for pair, curvature in zip(self._pairs, domain, strict=True):
            a, b = pair.a.float(), pair.b.float()
            seen, pushed = _times(a, curvature.inputs), _times(b.T, curvature.outputs)
            parts.append(pair.scaling**2 * (pushed @ b) @ seen)
            parts.append(pair.scaling**2 * pushed.T @ (seen @ a.T))
        return parts


def _times(rows: Tensor, factor: Factor) -> Tensor:
    """``rows @ M`` for rows (r, d)."""
    return ((rows @ factor.vectors) * factor.values) @ factor.vectors.T + rows * factor.rest


def _diagonal(factor: Factor) -> Factor:
    return Factor(factor.vectors[:, :0], factor.values[:0], factor.diagonal)
