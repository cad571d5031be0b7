"""``ewc_lora``: an adapter's update is small where the full-size weight mattered to the finished domains.

P = λ/2 Σ_W vec(ΔW)ᵀ F_W vec(ΔW) with ΔW = s·B·A of the adapter in training and the diagonal F_W = Σ_k F_W^k
of the whole d_out × d_in weight (EWC-LoRA, Zheng et al. 2026, arXiv 2602.17559). It is the *product* that is
penalised: F of A and of B by themselves would depend on how the product happens to be split. With
H = λ F ∘ ΔW: ∂P/∂A = s Bᵀ H and ∂P/∂B = s H Aᵀ.

Deviation: each domain has a pair of its own, and all of them are summed in one model, instead of one pair
that is carried on; so ΔW is the change since the last finished domain. F is per loss token, see
:mod:`constrained_adapters.memory.diagonal`.

Cost per step: 3·r·d_out·d_in multiply-adds per matrix; kept: d_out·d_in numbers per matrix in all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import final

import torch
from torch import Tensor, nn

from constrained_adapters.adapters.lora import AdapterPair
from constrained_adapters.constraints.penalty import PenaltyConstraint


@final
class EWCLoRAConstraint(PenaltyConstraint):
    """Penalises the update of each adapted matrix.

    Args:
        pairs: The (A, B) in training.
        importance: F_W by the pairs' modules, each (d_out, d_in).
        weight: λ ≥ 0.
    """

    def __init__(self, pairs: Sequence[AdapterPair], importance: Mapping[str, Tensor], weight: float) -> None:
        super().__init__()
        self._bound = [(pair, importance[pair.module].to(pair.a.device, torch.float32)) for pair in pairs]
        self._weight = weight

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All A and B."""
        return [p for pair, _ in self._bound for p in (pair.a, pair.b)]

    def terms(self) -> Iterator[tuple[nn.Parameter, Tensor, Tensor]]:
        """Two per matrix, both taken before either is changed; P is counted with A."""
        for pair, importance in self._bound:
            a, b = pair.a.detach().float(), pair.b.detach().float()
            update = pair.scaling * (b @ a)
            held = self._weight * importance * update
            yield pair.a, pair.scaling * (b.T @ held), 0.5 * torch.sum(held * update)
            yield pair.b, pair.scaling * (held @ a.T), held.new_zeros(())

    def describe(self) -> dict[str, float]:
        """``penalty_weight``."""
        return {"penalty_weight": self._weight}
