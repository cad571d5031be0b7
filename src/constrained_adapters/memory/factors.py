"""A positive semi-definite matrix kept as a few directions plus the diagonal of the rest.

Several matrices of one width can stand on one common basis, so that it is stored once: the inputs that occur
and the inputs that matter are nearly the same directions.

Axis letters: d width, k kept directions, n rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from constrained_adapters.memory.frequent_directions import FrequentDirections

Covariance = Tensor | FrequentDirections


@dataclass(frozen=True)
class Factor:
    """``M ≈ V diag(λ) Vᵀ + diag(ρ)``, with M's trace.

    Args:
        vectors: V, orthonormal columns (to rounding), shape (d, k), float32.
        values: λ, descending, shape (k,), float32.
        rest: ρ ≥ 0, shape (d,), or one number for all axes.
        basis: Where V is stored as ``basis @ rotation``: the basis (d, k) that factors share.
        rotation: And the rotation (k, k).
    """

    vectors: Tensor
    values: Tensor
    rest: Tensor
    basis: Tensor | None = None
    rotation: Tensor | None = None

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "rest", torch.as_tensor(self.rest, dtype=self.vectors.dtype).expand(self.width)
        )

    @property
    def width(self) -> int:
        """d, the size of the matrix."""
        return self.vectors.shape[0]

    @property
    def trace(self) -> float:
        """Tr M."""
        return float(self.diagonal.sum())

    @property
    def diagonal(self) -> Tensor:
        """Of M, shape (d,)."""
        return self.vectors.square() @ self.values + self.rest

    def to(self, device: torch.device | str) -> Factor:
        """The factor on another device."""
        if self.basis is None or self.rotation is None:
            return Factor(self.vectors.to(device), self.values.to(device), self.rest.to(device))
        basis, rotation = self.basis.to(device), self.rotation.to(device)
        # Made on the device where it will be used, so that a memory read back is the same to the bit.
        return Factor(basis @ rotation, self.values.to(device), self.rest.to(device), basis, rotation)

    def dense(self) -> Tensor:
        """M as a full (d, d) matrix, for tests and small widths."""
        return (self.vectors * self.values) @ self.vectors.T + self.rest.diag()

    def quadratic(self, rows: Tensor) -> Tensor:
        """``rows M rowsᵀ`` of shape (n, n) for rows of shape (n, d); O(n d k) time."""
        seen = rows @ self.vectors
        return (seen * self.values) @ seen.T + (rows * self.rest) @ rows.T

    def roots(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Two blocks whose squared norms add up to tr(rows M rowsᵀ): shapes (n, k) and (n, d)."""
        return (rows @ self.vectors) * self.values.sqrt(), rows * self.rest.sqrt()

    @classmethod
    def from_dense(cls, matrix: Tensor, share: float, max_rank: int | None = None) -> Factor:
        """Keep the fewest top eigenvectors that hold ``share`` of the trace.

        Args:
            matrix: Symmetric positive semi-definite, shape (d, d).
            share: In 0 … 1; 1 keeps all.
            max_rank: Upper bound on k.
        """
        matrix = matrix.float()
        return cls.along(matrix, common_basis([matrix], share, max_rank))

    @classmethod
    def along(
        cls,
        covariance: Covariance,
        vectors: Tensor,
        basis: Tensor | None = None,
        rotation: Tensor | None = None,
    ) -> Factor:
        """Describe a matrix (d, d), or its sketch, along given eigenvectors (d, k), perhaps rounded."""
        values = (vectors * _times(covariance, vectors)).sum(0).clamp_min(0.0)
        whole, held = diagonal_of(covariance), vectors.square() @ values
        # Off the matrix's own eigenvectors an axis can hold too much; the others then give it up.
        rest = (whole - held).clamp_min(0.0)
        rest = rest * ((whole.sum() - held.sum()).clamp_min(0.0) / rest.sum().clamp_min(1e-30))
        return cls(vectors, values, rest, basis, rotation)

    @classmethod
    def stored(cls, covariance: Covariance, max_rank: int) -> Factor:
        """Keep ``max_rank`` directions, rounded to float16: what is read back after storing."""
        return cls.along(covariance, _rounded(common_basis([covariance], 1.0, max_rank)))

    @classmethod
    def stored_together(
        cls, covariances: Mapping[str, Covariance], share: float, max_rank: int
    ) -> dict[str, Factor]:
        """The same for several matrices of one width on one :func:`common_basis`, which is stored once."""
        basis = _rounded(common_basis(list(covariances.values()), share, max_rank))
        found = {}
        for name, covariance in covariances.items():
            core = (basis.T @ _times(covariance, basis)).double()
            rotation = _rounded(torch.linalg.eigh((core + core.T) / 2)[1].flip(1).float())
            found[name] = cls.along(covariance, basis @ rotation, basis, rotation)
        return found


def common_basis(covariances: list[Covariance], share: float, max_rank: int | None = None) -> Tensor:
    """The fewest directions, shape (d, k), that hold ``share`` of the trace of each of some matrices.

    Each counts alike, whatever its trace: they are the top eigenvectors of the sum of the matrices, each
    divided by its trace.

    Args:
        covariances: Matrices (d, d) or sketches of one width.
        share: In 0 … 1; 1 keeps all.
        max_rank: Upper bound on k; where it binds, less than ``share`` is held.
    """
    traces = [float(diagonal_of(each).sum()) for each in covariances]
    kept = [(each, trace) for each, trace in zip(covariances, traces, strict=True) if trace > 0.0]
    if not kept:
        return diagonal_of(covariances[0])[:, None][:, :0]
    vectors = _top_vectors([(each, 1.0 / trace) for each, trace in kept])
    needed = 1
    for each, trace in kept:
        held = torch.cumsum((vectors * _times(each, vectors)).sum(0), 0) / trace
        needed = max(needed, int((held < share).sum()) + 1)
    return vectors[:, : min(needed, vectors.shape[1], max_rank or needed)].contiguous()


def diagonal_of(covariance: Covariance) -> Tensor:
    """The diagonal, shape (d,), exact for a sketch too."""
    return covariance.diagonal if isinstance(covariance, FrequentDirections) else covariance.diagonal()


def _times(covariance: Covariance, columns: Tensor) -> Tensor:
    if isinstance(covariance, FrequentDirections):
        return covariance.rows.T @ (covariance.rows @ columns)
    return covariance @ columns


def _top_vectors(weighted: list[tuple[Covariance, float]]) -> Tensor:
    """Eigenvectors of the weighted sum, largest first; for sketches those of their span."""
    rows = [each.rows * weight**0.5 for each, weight in weighted if isinstance(each, FrequentDirections)]
    dense = [each * weight for each, weight in weighted if not isinstance(each, FrequentDirections)]
    if dense:
        total = sum(dense[1:], dense[0]) + sum((part.T @ part for part in rows), 0.0)
        vectors: Tensor = torch.linalg.eigh(total)[1].flip(1)
        return vectors
    stacked = torch.cat(rows)
    values, left = torch.linalg.eigh((stacked @ stacked.T).double())
    there = values > 1e-7 * values[-1]
    basis: Tensor = torch.linalg.qr(stacked.T @ left[:, there].flip(1).float()).Q
    return basis


def _rounded(tensor: Tensor) -> Tensor:
    # Entries of orthonormal columns lie in −1 … 1: float16 is eight times finer there than bfloat16.
    # Contiguous, as it will be read back: products with it are then the same to the bit.
    return tensor.contiguous().to(torch.float16).float()
