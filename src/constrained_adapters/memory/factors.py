"""A positive semi-definite matrix kept as a few directions plus the diagonal of the rest.

Several matrices of one width can stand on one common basis, so that it is stored once: the inputs that occur
and the inputs that matter are nearly the same directions. Directions are stored in as few bits as their share
of the trace permits and made orthonormal again when they are read. Of the matrix whose eigenvectors v_i they
are this costs at most Σ_i λ_i ‖v_i − v'_i‖² of the trace, kept below ``ROUNDING_SHARE`` of it.

Axis letters: d width, k kept directions, n rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from constrained_adapters.memory.frequent_directions import FrequentDirections
from constrained_adapters.memory.rounding import RoundedColumns, round_columns

Covariance = Tensor | FrequentDirections
ROUNDING_SHARE = 1e-3
"""Share of a matrix's trace that rounding its kept directions may cost at most; a fifth of it is usual."""
TURN_SHARE = 0.01
"""Share of a matrix's trace beyond which what its directions have in common is not dropped."""
OVERSAMPLING = 8
NUM_ITERATIONS = 6


@dataclass(frozen=True)
class Factor:
    """``M ≈ V diag(λ) Vᵀ + diag(ρ)``, with M's trace.

    Args:
        vectors: V, orthonormal columns (to rounding), shape (d, k), float32.
        values: λ, M's energy along each column, shape (k,), float32.
        rest: ρ ≥ 0, shape (d,), or one number for all axes.
        basis: What V is the orthonormal form of, as it is stored; factors on one basis share it.
        turn: Where V is the basis turned: the rotation (k, k), as it is stored.
    """

    vectors: Tensor
    values: Tensor
    rest: Tensor
    basis: RoundedColumns | None = None
    turn: RoundedColumns | None = None

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
        return replace(
            self,
            vectors=self.vectors.to(device),
            values=self.values.to(device),
            rest=self.rest.to(device),
        )

    def dense(self) -> Tensor:
        """M as a full (d, d) matrix."""
        return (self.vectors * self.values) @ self.vectors.T + self.rest.diag()

    def roots(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Two blocks whose squared norms add up to tr(rows M rowsᵀ): shapes (n, k) and (n, d)."""
        return (rows @ self.vectors) * self.values.sqrt(), rows * self.rest.sqrt()

    @classmethod
    def along(cls, covariance: Covariance, vectors: Tensor) -> Factor:
        """Describe a matrix (d, d), or its sketch, along orthonormal directions (d, k)."""
        values = (vectors * _times(covariance, vectors)).sum(0).clamp_min(0.0)
        whole, held = diagonal_of(covariance), vectors.square() @ values
        # Off the matrix's own eigenvectors an axis can hold too much; the others then give it up.
        rest = (whole - held).clamp_min(0.0)
        rest = rest * ((whole.sum() - held.sum()).clamp_min(0.0) / rest.sum().clamp_min(1e-30))
        return cls(vectors, values, rest)

    @classmethod
    def stored(cls, covariance: Covariance, max_rank: int) -> Factor:
        """Keep ``max_rank`` directions, rounded: what is read back after storing."""
        return cls.stored_together({"": covariance}, top_directions(covariance, max_rank))[""]

    @classmethod
    def stored_together(cls, covariances: Mapping[str, Covariance], basis: Tensor) -> dict[str, Factor]:
        """The same for several matrices of one width on one basis (d, k), which is stored once.

        Each direction is rounded as far as the matrix that has most along it permits. A matrix whose
        eigenvectors they are not is described along the basis turned, and the rotation is stored.
        """
        shares = [(basis * _times(c, basis)).sum(0) / _trace(c) for c in covariances.values()]
        rounded = _round_as_far(basis, torch.stack(shares).amax(0))
        straight = read_directions(rounded)
        found = {}
        for name, covariance in covariances.items():
            vectors, turn = straight.to(basis.device), None
            core = vectors.T @ _times(covariance, vectors)
            off_diagonal = (core - core.diagonal().diag()).norm() / _trace(covariance)
            if len(covariances) > 1 and float(off_diagonal) > TURN_SHARE:
                values, own = torch.linalg.eigh(((core + core.T) / 2).double())
                turn = _round_as_far(own.flip(1).float(), values.flip(0).float() / _trace(covariance))
                vectors = read_directions(rounded, turn).to(basis.device)
            kept = cls.along(covariance, vectors).to("cpu")
            found[name] = replace(kept, rest=kept.rest.bfloat16().float(), basis=rounded, turn=turn)
        return found


def _round_as_far(columns: Tensor, shares: Tensor) -> RoundedColumns:
    """Round orthonormal columns so that together they lose ``ROUNDING_SHARE``, each having its own share."""
    allowed = ROUNDING_SHARE / (max(columns.shape[1], 1) * shares.clamp_min(1e-30))
    return round_columns(columns, allowed).to("cpu")


def read_directions(basis: RoundedColumns, turn: RoundedColumns | None = None) -> Tensor:
    """Orthonormal directions (d, k) from what is stored; the first ones of a basis keep their span."""
    vectors: Tensor = torch.linalg.qr(basis.read()).Q
    if turn is not None:
        vectors = vectors @ torch.linalg.qr(turn.read()).Q
    return vectors.contiguous()


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


def _trace(covariance: Covariance) -> Tensor:
    return diagonal_of(covariance).sum().clamp_min(1e-30)


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


def top_directions(covariance: Covariance, rank: int) -> Tensor:
    """About the top ``rank`` eigenvectors, shape (d, k), largest first; fewer where it has no more.

    Of a matrix by subspace iteration (Halko, Martinsson & Tropp 2011, arXiv 0909.4061, algorithms 4.4 and
    5.3) from a fixed start, which for few of many directions costs a small part of all eigenvectors.
    """
    block = rank + OVERSAMPLING
    if isinstance(covariance, FrequentDirections) or 4 * block > covariance.shape[0]:
        return common_basis([covariance], [1.0], rank)
    places, columns = torch.arange(1, covariance.shape[0] + 1), torch.arange(1, block + 1) * 0.618034
    found = torch.outer(places, columns).cos().to(covariance)
    for _ in range(NUM_ITERATIONS):
        found = torch.linalg.qr(covariance @ found).Q
    core = found.T @ (covariance @ found)
    values, turn = torch.linalg.eigh((core + core.T) / 2)
    count = min(rank, int((values > 1e-6 * covariance.trace()).sum()))
    top: Tensor = (found @ turn.flip(1)[:, :count]).contiguous()
    return top
