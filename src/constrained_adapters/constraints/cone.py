"""The nearest gradient that goes against none of some others, for GEM and A-GEM.

g̃ = g + Σ_k v_k g_k is nearest to g among those with ⟨g̃, g_k⟩ ≥ 0 for every k, where v ≥ 0 solves the dual,
min_v ½ vᵀ G v + ⟨v, p⟩ with G the t × t Gram matrix of the g_k and p_k = ⟨g, g_k⟩ (GEM, Lopez-Paz & Ranzato
2017, arXiv 1706.08840, equations 8 to 12). With a margin γ the bound is v ≥ γ wherever g goes against any
g_k, as in the authors' code, so that g̃ lowers the old losses a little. With t = 1 it is A-GEM's closed
form (Chaudhry et al. 2019, arXiv 1812.00420, equation 11).

Only inner products are needed, so nothing of the gradients' size is made; they are summed in float64.

Axis letters: t old gradients, p numbers in a gradient.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from constrained_adapters.constraints.base import Constraint

PIECE = 2**20
"""How many numbers of each gradient are in float64 at a time."""


@dataclass(frozen=True)
class Products:
    """Inner products of one gradient and t old ones, float64, on the gradients' device.

    Args:
        gram: ⟨g_i, g_k⟩, shape (t, t).
        with_own: ⟨g, g_k⟩, shape (t,).
        own_square: ⟨g, g⟩, 0-dim.
    """

    gram: Tensor
    with_own: Tensor
    own_square: Tensor

    @classmethod
    def of(cls, gradient: Sequence[Tensor], old: Sequence[Sequence[Tensor]]) -> Products:
        """Sum over the parameters.

        Args:
            gradient: One tensor per parameter.
            old: For each old gradient its tensors, shaped as those of ``gradient``; at least one.

        Cost: t² · p multiply-adds.
        """
        t = len(old)
        total = torch.zeros(t + 1, t + 1, dtype=torch.float64, device=gradient[0].device)
        for own, *others in zip(gradient, *old, strict=True):
            flat = [tensor.reshape(-1) for tensor in (own, *others)]
            for start in range(0, own.numel(), PIECE):
                rows = torch.stack([each[start : start + PIECE].double() for each in flat])
                total += (rows @ rows.T).to(total.device)
        return cls(total[1:, 1:], total[0, 1:], total[0, 0])


def dual_weights(products: Products, margin: float = 0.0) -> Tensor:
    """The weights v of the old gradients: all zero where g goes against none.

    Args:
        products: Of g and the old gradients.
        margin: γ ≥ 0, the least v where g goes against any; in units of the old gradients.

    Returns:
        v, shape (t,), float64. With one old gradient the device is not waited for.

    >>> g, old = torch.tensor([1.0, -1.0]), torch.tensor([0.0, 2.0])
    >>> dual_weights(Products.of([g], [[old]]))
    tensor([0.5000], dtype=torch.float64)
    """
    gram, with_own = products.gram, products.with_own
    if len(gram) == 1:
        square = gram[0].clamp_min(torch.finfo(torch.float64).tiny)
        return torch.where(with_own < 0.0, (-with_own / square).clamp_min(margin), 0.0)
    if not bool((with_own < 0.0).any()):
        return torch.zeros_like(with_own)
    # Rows of unit length: what a small old gradient forbids binds as what a large one does.
    norms = gram.diagonal().sqrt().clamp_min(1e-300)
    least = margin * norms
    unit = gram / norms / norms[:, None]
    linear = with_own / norms + unit @ least
    # The ridge keeps parallel old gradients apart; min ½ uᵀ(LLᵀ)u + ⟨u, q⟩ is min ‖Lᵀu + L⁻¹q‖.
    factor = np.linalg.cholesky(unit.cpu().numpy() + 1e-13 * np.eye(len(unit)))
    above, _ = nnls(factor.T, np.linalg.solve(factor, -linear.cpu().numpy()), maxiter=100 * len(unit))
    return (torch.from_numpy(above).to(norms) + least) / norms


class ConeConstraint(Constraint):
    """Changes the gradient to the nearest that goes against no old gradient; a subclass says which those are.

    Args:
        strength: Share of the change that is made, 0 … 1.
        margin: γ ≥ 0.
    """

    projects = True

    def __init__(self, strength: float = 1.0, margin: float = 0.0) -> None:
        self._strength, self._margin = strength, margin
        self._measured = self._nothing()

    @property
    @abstractmethod
    def num_old_gradients(self) -> int:
        """How many there are, t."""

    @abstractmethod
    def old_gradients(self) -> Sequence[Sequence[Tensor]]:
        """Each of the t, at the present weights: one tensor per parameter, in their order."""

    def before_step(self) -> None:
        """Change the gradients; a parameter without one does not move and is left out."""
        moving = [index for index, p in enumerate(self.parameters) if p.grad is not None]
        if not moving or not self.num_old_gradients or self._strength == 0.0:
            self._measured = self._nothing()
            return
        found = self.old_gradients()
        with torch.no_grad():
            old = [[each[index] for index in moving] for each in found]
            gradient = [p.grad for p in self.parameters if p.grad is not None]
            products = Products.of(gradient, old)
            weights = self._strength * dual_weights(products, self._margin)
            self._measure(products, weights)
            for g, *others in zip(gradient, *old, strict=True):
                parts = zip(weights.float(), others, strict=True)
                change = torch.stack([w.to(o.device) * o.float() for w, o in parts]).sum(0)
                g.add_(change.to(g.dtype))

    def after_step(self) -> None:
        """Nothing: these methods bind the gradient only."""

    def measurements(self) -> dict[str, Tensor]:
        """``removed_ratio``, and ``conflict``: cosine of the gradient with the sum of the old ones."""
        return dict(self._measured)

    def _measure(self, products: Products, weights: Tensor) -> None:
        tiny = torch.finfo(torch.float64).tiny
        own = products.own_square.clamp_min(tiny).sqrt()
        change = (weights @ products.gram @ weights).clamp_min(0.0).sqrt()
        whole = products.gram.sum().clamp_min(tiny).sqrt()
        cosine = products.with_own.sum() / (own * whole)
        self._measured = {"removed_ratio": (change / own).float(), "conflict": cosine.float()}

    @staticmethod
    def _nothing() -> dict[str, Tensor]:
        return {"removed_ratio": torch.zeros(()), "conflict": torch.zeros(())}
