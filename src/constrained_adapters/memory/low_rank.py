"""Weight gradients as products of two thin matrices, straight from a sequence's tokens.

The gradient of a linear layer on one sequence is G = Σ_t g_t a_tᵀ. Neither its top singular pairs nor a
low-rank mean over many sequences needs the d_out × d_in matrix.

Axis letters: b batch, s sequence, k pairs, p block of the iteration, m rank of a product, n tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

OVERSAMPLING = 8
NUM_ITERATIONS = 8


@dataclass(frozen=True)
class LowRank:
    """``left @ right``.

    Args:
        left: Shape (d_out, m).
        right: Shape (m, d_in).
    """

    left: Tensor
    right: Tensor

    def dense(self) -> Tensor:
        """The matrix itself, shape (d_out, d_in)."""
        return self.left @ self.right


def top_pairs(gradients: Tensor, inputs: Tensor, rank: int, input_gram: Tensor | None = None) -> LowRank:
    """The top singular pairs of each ``G_b = gradients_bᵀ @ inputs_b``.

    Subspace iteration on the tokens' two Gram matrices, which GᵀG is a product of, and one Rayleigh-Ritz
    step (Halko, Martinsson & Tropp 2011, arXiv 0909.4061, algorithms 4.4 and 5.1); exact where G's rank is
    at most ``rank + 8``.

    Args:
        gradients: g_t, shape (b, s, d_out); zero where there is padding.
        inputs: a_t, shape (b, s, d_in); zero where there is padding.
        rank: k.
        input_gram: ``inputs @ inputsᵀ``, where it is at hand.

    Returns:
        ``left`` (b, d_out, k), orthonormal columns, and ``right`` (b, k, d_in), which holds the singular
        values; zeros where G's rank is lower.

    Cost: O(s² (d_in + d_out)) per sequence; nothing of size d_out × d_in.
    """
    s, block = inputs.shape[1], min(rank + OVERSAMPLING, *inputs.shape[1:], gradients.shape[2])
    input_gram = inputs @ inputs.mT if input_gram is None else input_gram
    output_gram = gradients @ gradients.mT
    # A fixed start whose rows do not depend on how many tokens a batch is padded to.
    places, columns = torch.arange(1, s + 1), torch.arange(1, block + 1) * 0.618034
    found = torch.outer(places, columns).cos().to(inputs).expand(inputs.shape[0], -1, -1)
    for _ in range(NUM_ITERATIONS):
        found = torch.linalg.qr(input_gram @ (output_gram @ found)).Q
    left = torch.linalg.qr(gradients.mT @ found).Q
    right = (gradients @ left).mT @ inputs
    turn = torch.linalg.eigh((right @ right.mT).double())[1].flip(2)[:, :, :rank].to(inputs.dtype)
    left, right = left @ turn, turn.mT @ right
    missing = rank - left.shape[2]
    if missing > 0:
        left = torch.nn.functional.pad(left, (0, missing))
        right = torch.nn.functional.pad(right, (0, 0, 0, missing))
    return LowRank(left, right)


class LinearSketch:
    """Two random projections of a sum ``Σ_t g_t a_tᵀ``, from which its low-rank part is read at the end.

    Tropp, Yurtsever, Udell & Cevher 2017, arXiv 1609.00048, algorithms 1 and 4. It is linear in the terms,
    so neither their order nor their portions matter.

    Args:
        d_out: Rows of the sum.
        d_in: Its columns.
        rank: m that will be read.
        device: Where the terms are.
        seed: Of the projections.
    """

    def __init__(self, d_out: int, d_in: int, rank: int, device: torch.device | str, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        narrow = min(2 * rank + 1, d_out, d_in)
        wide = min(2 * narrow + 1, d_out)
        self.rank = min(rank, narrow)
        self._from_right = torch.randn(d_in, narrow, generator=generator).to(device)
        self._from_left = torch.randn(d_out, wide, generator=generator).to(device)
        self._range = torch.zeros(d_out, narrow, device=device)
        self._rows = torch.zeros(wide, d_in, device=device)

    def add(self, gradients: Tensor, inputs: Tensor) -> None:
        """Take in terms: ``gradients`` (n, d_out) and ``inputs`` (n, d_in)."""
        self._range += gradients.T @ (inputs @ self._from_right)
        self._rows += (gradients @ self._from_left).T @ inputs

    def read(self) -> LowRank:
        """The sum to rank m: ``left`` (d_out, m), ``right`` (m, d_in)."""
        basis = torch.linalg.qr(self._range).Q.double()
        seen = self._from_left.T.double() @ basis
        core = torch.linalg.pinv(seen) @ self._rows.double()
        u, values, v = torch.linalg.svd(core, full_matrices=False)
        left, right = basis @ u[:, : self.rank], values[: self.rank, None] * v[: self.rank]
        return LowRank(left.float(), right.float())
