"""A covariance too wide to be kept whole, streamed into a few rows: Frequent Directions.

Ghashami, Liberty, Phillips & Woodruff 2016, arXiv 1501.01711, algorithm 3.1 (the buffer of twice the size).
For rows A seen so far the sketch B obeys, for every k < ℓ,

    0 ⪯ AᵀA − BᵀB,   ‖AᵀA − BᵀB‖₂ ≤ ‖A − A_k‖_F² / (ℓ − k).

Beside it stands diag(AᵀA), exact, so that no energy is lost: what shrinking takes from the sketch is given
back to the axes. Deviation: the sketch is read with up to 2ℓ rows, as they stand in the buffer; the bound
holds for it too.

Axis letters: d width, l size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from constrained_adapters.errors import TrainingError


class FrequentDirections:
    """A sketch of AᵀA for rows of A that arrive in any portions; the portions do not matter.

    Args:
        width: d.
        size: ℓ: the bound's denominator; the buffer holds twice as many rows.
        device: Where the rows are.

    Cost: O(d ℓ) memory and O(d ℓ) time per row.

    >>> sketch = FrequentDirections(3, 2)
    >>> sketch.update(torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
    >>> sketch.diagonal
    tensor([4., 1., 0.])
    """

    def __init__(self, width: int, size: int, device: torch.device | str = "cpu") -> None:
        self.size = size
        self.diagonal = torch.zeros(width, device=device)
        """Of AᵀA, exact, shape (d,)."""
        self._buffer = torch.zeros(2 * size, width, device=device)
        self._filled = 0

    @property
    def rows(self) -> Tensor:
        """B, at most 2ℓ rows, shape (n, d)."""
        return self._buffer[: self._filled]

    def update(self, rows: Tensor) -> None:
        """Take in ``rows`` of shape (n, d).

        Raises:
            TrainingError: A row is not finite.
        """
        self.diagonal += rows.square().sum(0)
        while rows.shape[0]:
            if self._filled == self._buffer.shape[0]:
                self._shrink()
            part = rows[: self._buffer.shape[0] - self._filled]
            self._buffer[self._filled : self._filled + part.shape[0]] = part
            self._filled += part.shape[0]
            rows = rows[part.shape[0] :]

    def scaled(self, scale: float) -> FrequentDirections:
        """The sketch of ``scale · AᵀA``."""
        other = FrequentDirections(self.diagonal.numel(), self.size, self.diagonal.device)
        other.diagonal = self.diagonal * scale
        other._buffer, other._filled = self._buffer * scale**0.5, self._filled
        return other

    def to(self, device: torch.device | str) -> FrequentDirections:
        """The sketch on another device."""
        other = self.scaled(1.0)
        other.diagonal, other._buffer = other.diagonal.to(device), other._buffer.to(device)
        return other

    def _shrink(self) -> None:
        """B ← (Σ² − σ_ℓ² I)₊^½ Vᵀ, at most ℓ − 1 rows, through the Gram matrix instead of an SVD."""
        gram = (self._buffer @ self._buffer.T).double()
        if not torch.isfinite(gram).all():
            raise TrainingError(
                "the gradient memory is not finite",
                got="a row of a sketch of a layer's inputs or gradients with nan or infinite entries",
                hint="train in float32 or bf16 instead of fp16, or at a lower learning rate",
            )
        values, vectors = torch.linalg.eigh(gram)
        values, vectors = values.flip(0), vectors.flip(1)
        kept = values[: self.size - 1]
        reduced = (kept - values[self.size - 1].clamp_min(0.0)).clamp_min(0.0)
        turned = vectors[:, : self.size - 1] * (reduced / kept.clamp_min(1e-300)).sqrt()
        shrunk = turned.T.to(self._buffer.dtype) @ self._buffer
        self._buffer.zero_()
        self._buffer[: self.size - 1] = shrunk
        self._filled = self.size - 1
