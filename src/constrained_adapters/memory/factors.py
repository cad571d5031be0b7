"""A positive semi-definite matrix kept as its top eigenvectors plus the mean of the rest.

Axis letters: d width, k kept directions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Factor:
    """``M ≈ V diag(λ) Vᵀ + ρ (I − V Vᵀ)``.

    Args:
        vectors: V, orthonormal columns, shape (d, k), float32.
        values: λ, descending, shape (k,), float32.
        rest: ρ ≥ 0, the mean of the d − k eigenvalues left out.
    """

    vectors: Tensor
    values: Tensor
    rest: float

    @property
    def width(self) -> int:
        """d, the size of the matrix."""
        return self.vectors.shape[0]

    @property
    def trace(self) -> float:
        """Tr M, exact: the rest is kept as its mean."""
        return float(self.values.sum()) + self.rest * (self.width - self.values.numel())

    def dense(self) -> Tensor:
        """M as a full (d, d) matrix, for tests and small widths."""
        shifted = self.vectors * (self.values - self.rest)
        return shifted @ self.vectors.T + self.rest * torch.eye(self.width, device=self.vectors.device)

    def quadratic(self, rows: Tensor) -> Tensor:
        """``rows M rowsᵀ`` of shape (n, n) for rows of shape (n, d); O(n d k) time."""
        seen = rows @ self.vectors
        return (seen * (self.values - self.rest)) @ seen.T + self.rest * (rows @ rows.T)

    @classmethod
    def from_dense(cls, matrix: Tensor, share: float, max_rank: int | None = None) -> Factor:
        """Keep the fewest top eigenvectors that hold ``share`` of the trace.

        Args:
            matrix: Symmetric positive semi-definite, shape (d, d).
            share: In 0 … 1; 1 keeps all.
            max_rank: Upper bound on k.
        """
        values, vectors = torch.linalg.eigh(matrix.float())
        values, vectors = values.flip(0).clamp_min(0.0), vectors.flip(1)
        total = float(values.sum())
        if total == 0.0:
            return cls(vectors[:, :0].contiguous(), values[:0].contiguous(), 0.0)
        held = torch.cumsum(values, 0) / total
        keep = min(int((held < share).sum()) + 1, values.numel(), max_rank or values.numel())
        rest = float(values[keep:].mean()) if keep < values.numel() else 0.0
        return cls(vectors[:, :keep].contiguous(), values[:keep].contiguous(), rest)
