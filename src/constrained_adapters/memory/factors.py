"""A positive semi-definite matrix kept as a few directions plus the diagonal of the rest.

Several matrices of one width can stand on one common basis, so that it is stored once: the inputs that occur
and the inputs that matter are nearly the same directions.

Axis letters: d width, k kept directions, n rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        return cls.along(matrix, common_basis([matrix], [share], max_rank))

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
        return cls.along(covariance, _rounded(common_basis([covariance], [1.0], max_rank)))

    @classmethod
    def stored_together(cls, covariances: Mapping[str, Covariance], basis: Tensor) -> dict[str, Factor]:
        """The same for several matrices of one width on one basis (d, k), which is stored once."""
        basis, found = _rounded(basis), {}
        for name, covariance in covariances.items():
            core = (basis.T @ _times(covariance, basis)).double()
            rotation = _rounded(torch.linalg.eigh((core + core.T) / 2)[1].flip(1).float())
            found[name] = cls.along(covariance, basis @ rotation, basis, rotation)
        return found


def common_basis(
    covariances: Sequence[Covariance], shares: Sequence[float], max_rank: int | None = None
) -> Tensor:
    """Orthonormal directions, shape (d, k), that hold a share of the trace of each of some matrices.

    One matrix after another adds the fewest directions with which its own share is held; an earlier one is
    served first where ``max_rank`` binds.

    Args:
        covariances: Matrices (d, d) or sketches of one width.
        shares: Of each matrix's trace, in 0 … 1; 1 keeps all.
        max_rank: Upper bound on k; where it binds, less is held.
    """
    basis = diagonal_of(covariances[0])[:, None][:, :0]
    for each, share in zip(covariances, shares, strict=True):
        trace = float(diagonal_of(each).sum())
        if trace <= 0.0:
            continue
        missing = share - float((basis * _times(each, basis)).sum()) / trace
        if missing > 1e-6:  # less is rounding, and so would be the directions that it asks for
            values, vectors = outside_directions(each, basis)
            count = int((torch.cumsum(values, 0) / trace < missing).sum()) + 1
            basis = torch.cat([basis, vectors[:, :count]], dim=1)
    return basis[:, : max_rank or basis.shape[1]].contiguous()


def diagonal_of(covariance: Covariance) -> Tensor:
    """The diagonal, shape (d,), exact for a sketch too."""
    return covariance.diagonal if isinstance(covariance, FrequentDirections) else covariance.diagonal()


def _times(covariance: Covariance, columns: Tensor) -> Tensor:
    if isinstance(covariance, FrequentDirections):
        return covariance.rows.T @ (covariance.rows @ columns)
    return covariance @ columns


def outside_directions(covariance: Covariance, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (k'), largest first, and eigenvectors (d, k') of what a matrix holds off a basis (d, k).

    The eigenvectors are orthogonal to the basis; of a sketch as many are found as it holds.
    """
    if isinstance(covariance, FrequentDirections):
        rows = covariance.rows - (covariance.rows @ basis) @ basis.T
        rows = rows - (rows @ basis) @ basis.T  # twice: what is left may be small against what was taken
        values, left = torch.linalg.eigh((rows @ rows.T).double())
        there = values > 1e-7 * values[-1]
        vectors: Tensor = torch.linalg.qr(rows.T @ left[:, there].flip(1).float()).Q
        return values[there].flip(0).float(), vectors
    half = covariance - basis @ (basis.T @ covariance)
    rest = half - (half @ basis) @ basis.T
    # The basis itself goes to the bottom of the spectrum, apart from directions that merely hold nothing.
    values, vectors = torch.linalg.eigh((rest + rest.T) / 2 - covariance.trace() * (basis @ basis.T))
    free = covariance.shape[0] - basis.shape[1]
    return values.flip(0)[:free].clamp_min(0.0), vectors.flip(1)[:, :free]


def _rounded(tensor: Tensor) -> Tensor:
    # Entries of orthonormal columns lie in −1 … 1: float16 is eight times finer there than bfloat16.
    # Contiguous, as it will be read back: products with it are then the same to the bit.
    return tensor.contiguous().to(torch.float16).float()
