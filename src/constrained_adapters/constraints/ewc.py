"""``ewc`` and ``online_ewc``: trained weights are held where the finished domains left them, by importance.

P = λ/2 Σ_k Σ_i F_i^k (θ_i − θ*_i^k)² (EWC, Kirkpatrick et al. 2017, arXiv 1612.00796, equation 3, one term
for each finished domain k). The sum of parabolas is one parabola: with S = Σ_k F^k and the anchor
m = Σ_k F^k θ*^k / S it is λ/2 (Σ_i S_i (θ_i − m_i)² + c), c a constant, so ∂P/∂θ = λ S (θ − m) and two
numbers per weight are kept, however many domains there are; nothing is approximated by that.

F is per loss token (:mod:`constrained_adapters.memory.diagonal`), so at λ = 1 P is the second-order
estimate of the sum, over the finished domains, of the nats per token by which the model has moved.

``online_ewc`` (Schwarz et al. 2018, arXiv 1805.06370, section 3.2) is the same around one anchor, the last
domain's θ*, with F ← γF + F^t: γ = 1 forgets where each domain ended, γ < 1 also that it mattered.
Deviation: there γ multiplies the penalty too, λ/2 γ S (θ − θ*)²; here that is part of λ, so that with one
domain it is ``ewc``. Their rescaling of every F to the same norm is left out, since all are per loss token.

Cost per step: three multiply-adds per weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import final

import torch
from torch import Tensor, nn

from constrained_adapters.constraints.penalty import PenaltyConstraint


@final
class EWCConstraint(PenaltyConstraint):
    """Penalises distance from the anchor.

    Args:
        weights: The trained parameters by name.
        importance: S by name, shaped as the weights.
        anchor: m by name.
        constant: c.
        weight: λ ≥ 0.
    """

    def __init__(
        self,
        weights: Mapping[str, nn.Parameter],
        importance: Mapping[str, Tensor],
        anchor: Mapping[str, Tensor],
        constant: float,
        weight: float,
    ) -> None:
        super().__init__()
        self._bound = [
            (p, importance[name].to(p.device), anchor[name].to(p.device)) for name, p in weights.items()
        ]
        self._constant, self._weight = constant, weight

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The trained weights."""
        return [p for p, _, _ in self._bound]

    def terms(self) -> Iterator[tuple[nn.Parameter, Tensor, Tensor]]:
        """One per weight matrix; the constant is counted with the first."""
        constant = 0.5 * self._weight * self._constant
        for p, importance, anchor in self._bound:
            moved = p.detach() - anchor
            gradient = self._weight * importance * moved
            yield p, gradient, 0.5 * torch.sum(gradient * moved) + constant
            constant = 0.0

    def describe(self) -> dict[str, float]:
        """``penalty_weight``."""
        return {"penalty_weight": self._weight}
