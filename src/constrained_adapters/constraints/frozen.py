"""``freeze_important``: the weights that matter most to the finished domains stay exactly as they are.

Of all trained weights the share q with the largest importance S_i = Σ_k F_i^k, the diagonal Fisher of the
finished domains (:mod:`constrained_adapters.memory.diagonal`), is frozen element by element; all others are
free. The hard limit of EWC (Kirkpatrick et al. 2017, arXiv 1612.00796): λ is infinite for those weights and
zero for the rest. Pruning by masks does the same with magnitudes (PackNet, Mallya & Lazebnik 2018, arXiv
1711.05769, section 3); here no weight is reserved for a domain, and what was frozen once may be free again
when other weights have become more important.

Their gradient is zeroed before the step, and their values are put back after it, because AdamW's momentum and
weight decay move a weight without a gradient.

Cost per step: two indexed writes per matrix; state: an index (8 bytes) and a value of each frozen weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor, nn

from constrained_adapters.constraints.base import Constraint
from constrained_adapters.constraints.finite import norms


@final
class FrozenWeightsConstraint(Constraint):
    """Freezes the most important elements of the trained weights at their present values.

    Args:
        weights: The trained parameters by name.
        importance: S ≥ 0 by name, shaped as the weights.
        share: q in 0 … 1 of all elements together. Ties with the last one that is frozen are frozen too,
            and an importance of zero never is.
    """

    projects = True

    def __init__(
        self, weights: Mapping[str, nn.Parameter], importance: Mapping[str, Tensor], share: float
    ) -> None:
        total = sum(p.numel() for p in weights.values())
        least = kth_largest([importance[name] for name in weights], int(share * total))
        self._all = list(weights.values())
        self._held: list[tuple[nn.Parameter, Tensor, Tensor]] = []
        for name, p in weights.items():
            index = (importance[name].reshape(-1) >= least).nonzero().squeeze(1).to(p.device)
            if len(index):
                self._held.append((p, index, p.detach().reshape(-1)[index]))
        self._frozen_ratio = sum(len(index) for _, index, _ in self._held) / total
        self._removed = torch.zeros(())

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The weights of which something is frozen."""
        return [p for p, _, _ in self._held]

    @torch.no_grad()
    def before_step(self) -> None:
        """Zero the frozen elements' gradients."""
        gradients = [p.grad for p in self._all if p.grad is not None]
        if not gradients:
            self._removed = torch.zeros(())
            return
        whole = torch.stack(norms(gradients)).square().sum()
        removed = torch.zeros_like(whole)
        for p, index, _ in self._held:
            if p.grad is not None:
                flat = p.grad.reshape(-1)  # a copy where the gradient is not contiguous
                removed += flat[index].float().square().sum()
                p.grad = flat.index_fill(0, index, 0.0).view_as(p.grad)
        self._removed = (removed / whole.clamp_min(1e-30)).sqrt()

    @torch.no_grad()
    def after_step(self) -> None:
        """Put the frozen elements back."""
        for p, index, values in self._held:
            p.view(-1).index_copy_(0, index, values)

    def measurements(self) -> dict[str, Tensor]:
        """``removed_ratio``: norm of the frozen elements' gradient over the norm of the whole, 0 … 1."""
        return {"removed_ratio": self._removed}

    def describe(self) -> dict[str, float]:
        """``frozen_ratio``: share of the trained weights that is frozen, 0 … 1."""
        return {"frozen_ratio": self._frozen_ratio}


def kth_largest(tensors: list[Tensor], k: int) -> float:
    """The k-th largest of all elements that are above zero; infinity for k = 0.

    Where fewer than k are above zero, the smallest of those. The bits of positive floats are ordered as
    the floats are, so the value is found by halving an interval of bit patterns.

    Args:
        tensors: Float32, no element below zero.
        k: Counted from 1.

    Cost: 31 passes over the tensors, and no copy of them.

    >>> kth_largest([torch.tensor([1.0, 4.0]), torch.tensor([2.0, 0.0])], 2)
    2.0
    """
    if k == 0:
        return float("inf")
    bits = [tensor.detach().float().contiguous().view(torch.int32) for tensor in tensors]
    low, high = 1, 0x7F800000  # the smallest positive float, infinity
    # Invariant: at least k elements are ≥ low, or low is the smallest there can be; fewer than k are ≥ high.
    while high - low > 1:
        middle = (low + high) // 2
        if sum(int((each >= middle).sum()) for each in bits) >= k:
            low = middle
        else:
            high = middle
    return float(torch.tensor([low], dtype=torch.int32).view(torch.float32))
