"""``olora``: the A of the adapter in training is pushed orthogonal to those of the finished domains.

P = λ Σ_layers Σ_{i<t} ‖A_i A_tᵀ‖₁, the sum of the absolute entries of each r × r product, as in the authors'
code (O-LoRA, Wang et al. 2023, arXiv 2310.14152), so ∂P/∂A_t = λ Σ_i sign(A_i A_tᵀ)ᵀ A_i; the earlier A are
fixed. Deviations: their code's second penalty, on the size of the new A and B, is left out; and the gradient
is added after clipping, see :mod:`constrained_adapters.constraints.penalty`.

Cost per step: 4·r²·d_in multiply-adds per matrix and finished domain; kept: the old adapters themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import final

import torch
from torch import Tensor, nn

from constrained_adapters.constraints.penalty import PenaltyConstraint


@final
class OLoRAConstraint(PenaltyConstraint):
    """Penalises overlap of row spaces.

    Args:
        matrices: The A in training, each (r, d_in).
        earlier: For each of them the A of the finished domains, stacked: (k, d_in), k ≥ 0.
        weight: λ ≥ 0.
    """

    def __init__(self, matrices: Sequence[nn.Parameter], earlier: Sequence[Tensor], weight: float) -> None:
        super().__init__()
        self._pairs = [
            (a, old.detach().to(a.device, torch.float32)) for a, old in zip(matrices, earlier, strict=True)
        ]
        self._weight = weight

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The A."""
        return [a for a, _ in self._pairs]

    def terms(self) -> Iterator[tuple[nn.Parameter, Tensor, Tensor]]:
        """One per matrix."""
        for a, old in self._pairs:
            overlap = old @ a.detach().float().T
            yield a, self._weight * (overlap.sign().T @ old), self._weight * overlap.abs().sum()

    def describe(self) -> dict[str, float]:
        """``penalty_weight``, and ``earlier_rows``: the mean number of rows to be orthogonal to."""
        rows = sum(old.shape[0] for _, old in self._pairs)
        return {"penalty_weight": self._weight, "earlier_rows": rows / max(len(self._pairs), 1)}
