"""No step against the gradients that the memories predict for the finished domains.

A K-FAC memory predicts a finished domain's loss increase p_k = ½ Σ_W tr(ΔWᵀ G_k ΔW A_k) for the
adapter in training, and so its gradient, without any example:
∂p/∂A = s² (Bᵀ G B)(A A_k) and ∂p/∂B = s² (G B)(A A_k Aᵀ).

* ``agem``: with ḡ = Σ_k ∇p_k, if ⟨g, ḡ⟩ < 0 then g ← g − strength · ⟨g, ḡ⟩ / ⟨ḡ, ḡ⟩ · ḡ
  (Chaudhry et al. 2019, arXiv 1812.00420, equation 11).
* ``gem``: the nearest g̃ with ⟨g̃, ∇p_k⟩ ≥ 0 for every k, one quadratic programme over the whole
  gradient (Lopez-Paz & Ranzato 2017, arXiv 1706.08840, equations 8 to 12), solved as a
  non-negative least squares in the dual.
* ``diagonal``: as ``agem``, with only the diagonals of both factors.

Deviation from both papers: predicted gradients stand in for those of kept examples; and
``strength`` scales what is removed.

Cost per step and domain: r·d_in² + r·d_out·k multiply-adds per matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor, nn

from constrained_adapters.constraints.base import Constraint


class _Pair(Protocol):
    @property
    def module(self) -> str: ...
    @property
    def a(self) -> nn.Parameter: ...
    @property
    def b(self) -> nn.Parameter: ...
    @property
    def scaling(self) -> float: ...


@dataclass(frozen=True)
class Curvature:
    """Dense factors of one memory on one matrix: ``inputs`` (d_in, d_in), ``outputs`` (d_out, d_out)."""

    inputs: Tensor
    outputs: Tensor


class PredictedGradientConstraint(Constraint):
    """GEM and A-GEM on predicted gradients.

    Args:
        pairs: The (A, B) in training.
        domains: For each finished domain the curvature of each pair, in the pairs' order.
        kind: ``gem``, ``agem`` or ``diagonal``.
        strength: Share of the conflicting component that is removed, 0 … 1.
    """

    def __init__(
        self,
        pairs: Sequence[_Pair],
        domains: Sequence[Sequence[Curvature]],
        kind: Literal["gem", "agem", "diagonal"],
        strength: float,
    ) -> None:
        self._pairs, self._kind, self._strength = list(pairs), kind, strength
        self._domains = [[_diagonal(c) if kind == "diagonal" else c for c in domain] for domain in domains]
        self._measured = {"removed_ratio": torch.zeros(()), "conflict": torch.zeros(())}

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All A and B."""
        return [p for pair in self._pairs for p in (pair.a, pair.b)]

    @torch.no_grad()
    def before_step(self) -> None:
        """Remove from the gradient what conflicts with the predicted gradients."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if not self._domains or not gradients:
            self._measured = {"removed_ratio": torch.zeros(()), "conflict": torch.zeros(())}
            return
        gradient = torch.cat([g.float().reshape(-1) for g in gradients])
        old = torch.stack([self._predicted(domain) for domain in self._domains])
        if self._kind != "gem":
            old = old.sum(0, keepdim=True)
        change = self._strength * (project_gem(gradient, old) - gradient)
        norm = gradient.norm().clamp_min(1e-30)
        total = old.sum(0)
        self._measured = {
            "removed_ratio": change.norm() / norm,
            "conflict": (gradient @ total) / (norm * total.norm().clamp_min(1e-30)),
        }
        start = 0
        for g in gradients:
            g.add_(change[start : start + g.numel()].view_as(g).to(g.dtype))
            start += g.numel()

    def after_step(self) -> None:
        """Nothing: these methods bind the gradient only."""

    def measurements(self) -> dict[str, Tensor]:
        """``removed_ratio``, and ``conflict``: cosine of the gradient with the sum of the predicted ones."""
        return dict(self._measured)

    def describe(self) -> dict[str, float]:
        """``num_domains`` whose predicted gradients bind."""
        return {"num_domains": float(len(self._domains))}

    def _predicted(self, domain: Sequence[Curvature]) -> Tensor:
        """∇p of the parameters that have a gradient; the others do not move."""
        parts = []
        for pair, curvature in zip(self._pairs, domain, strict=True):
            a, b = pair.a.float(), pair.b.float()
            seen, pushed = a @ curvature.inputs, curvature.outputs @ b
            if pair.a.grad is not None:
                parts.append((pair.scaling**2 * (b.T @ pushed) @ seen).reshape(-1))
            if pair.b.grad is not None:
                parts.append((pair.scaling**2 * pushed @ (seen @ a.T)).reshape(-1))
        return torch.cat(parts)


def project_gem(gradient: Tensor, old: Tensor) -> Tensor:
    """The vector nearest to ``gradient`` (p,) with no negative product with a row of ``old`` (t, p).

    With one row this is A-GEM's closed form. The dual, min_{v ≥ 0} ‖oldᵀ v + gradient‖, is solved
    through the Cholesky factor of the t × t Gram matrix, so it costs t²·p + a small NNLS.

    >>> project_gem(torch.tensor([1.0, -1.0]), torch.tensor([[0.0, 2.0]]))
    tensor([1., 0.])
    """
    if bool((old @ gradient >= 0).all()):
        return gradient
    norms = old.double().norm(dim=1).clamp_min(1e-300)
    rows = old.double() / norms[:, None]
    gram = (rows @ rows.T).cpu().numpy()
    factor = np.linalg.cholesky(gram + 1e-10 * np.eye(len(gram)))
    target = np.linalg.solve(factor, -(rows @ gradient.double()).cpu().numpy())
    dual, _ = nnls(factor.T, target)
    change: Tensor = torch.from_numpy(dual).to(rows) @ rows
    return gradient + change.to(gradient.dtype)


def _diagonal(curvature: Curvature) -> Curvature:
    return Curvature(curvature.inputs.diagonal().diag(), curvature.outputs.diagonal().diag())
