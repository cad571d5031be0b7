"""No step along given directions of the whole parameter space; subclasses say how those are kept.

With n directions u_i as rows of D: g ← g − Dᵀ (D Dᵀ)⁺ D g before the optimizer's step, and the same of the
step itself after it, because AdamW's scaling, momentum and weight decay leave a subspace; under plain SGD
the second changes nothing. Parameters without a gradient do not move and are left out of D.

Axis letters: n directions.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from constrained_adapters.constraints.base import Constraint

DEPENDENT = 1e-7
"""Eigenvalues of the Gram matrix of directions of unit length below this count as zero."""


class OffDirections(Constraint):
    """Keeps gradients and steps orthogonal to n directions; tensors are named by their parameter's index."""

    projects = True

    def __init__(self) -> None:
        self._before: dict[int, Tensor] = {}
        self._inverse = torch.zeros(0, 0)
        self._removed = torch.zeros(())

    @property
    @abstractmethod
    def num_directions(self) -> int:
        """How many directions there are, n."""

    @abstractmethod
    def gram(self, indices: tuple[int, ...]) -> Tensor:
        """D Dᵀ at the present weights over some parameters, shape (n, n), float64."""

    @abstractmethod
    def products(self, tensors: Mapping[int, Tensor]) -> Tensor:
        """D x for x in these parameters, shape (n,), float64."""

    @abstractmethod
    def combination(self, weights: Tensor, indices: tuple[int, ...]) -> Iterator[tuple[int, Tensor]]:
        """Dᵀ w for weights (n,), parameter by parameter, float32."""

    @torch.no_grad()
    def before_step(self) -> None:
        """Project the gradient, and keep a copy of what moves."""
        self._before, self._removed = {}, torch.zeros(())
        moving = {index: p.grad for index, p in enumerate(self.parameters) if p.grad is not None}
        if not moving or not self.num_directions:
            return
        self._inverse = _pseudo_inverse(self.gram(tuple(moving)))
        whole = torch.stack([g.float().norm() for g in moving.values()]).norm()
        along = self.products(moving)
        weights = self._inverse @ along
        for index, part in self.combination(weights, tuple(moving)):
            moving[index].sub_(part.to(moving[index].dtype))
        removed = (weights @ along).clamp_min(0.0).sqrt().float()
        self._removed = (removed / whole.clamp_min(1e-30)).clamp_max(1.0)
        self._before = {index: self.parameters[index].detach().clone() for index in moving}

    @torch.no_grad()
    def after_step(self) -> None:
        """Project the step; one that :meth:`before_step` did not see is left alone."""
        if not self._before:
            return
        parameters = self.parameters
        steps = {index: parameters[index].float() - old.float() for index, old in self._before.items()}
        weights = self._inverse @ self.products(steps)
        for index, part in self.combination(weights, tuple(steps)):
            parameters[index].sub_(part.to(parameters[index].dtype))
        self._before = {}

    def measurements(self) -> dict[str, Tensor]:
        """``removed_ratio`` of the last step."""
        return {"removed_ratio": self._removed}

    def describe(self) -> dict[str, float]:
        """``num_directions`` that are closed."""
        return {"num_directions": float(self.num_directions)}


def _pseudo_inverse(gram: Tensor) -> Tensor:
    """Of D Dᵀ, with directions of very different lengths treated alike."""
    lengths = gram.diagonal().sqrt()
    scale = torch.where(lengths > 0.0, 1.0 / lengths.clamp_min(1e-150), 0.0)
    values, vectors = torch.linalg.eigh(gram * scale * scale[:, None])
    kept = values > DEPENDENT * values[-1].clamp_min(1.0)
    inverse: Tensor = (vectors * torch.where(kept, 1.0 / values.clamp_min(DEPENDENT), 0.0)) @ vectors.T
    return inverse * scale * scale[:, None]
