"""What stays open is dear: a step costs what it changes of a layer's outputs on inputs that reach an answer.

P = λ/2 Σ_W Σ_k ‖ΔW‖²_k / ‖W‖²_k for the adapter in training, with ‖M‖²_k = tr(M S_k Mᵀ) and S_k the input
factor of finished domain k at trace one: the weighted mean square of what M makes of that domain's inputs.
So P is λ/2 times the sum, over layers and domains, of the squared *relative* change of outputs; λ has no unit
and suits layers and models of any scale. With ΔW = s·B·A and S = Σ_k S_k: ∂P/∂A = w s² (BᵀB)(A S) and
∂P/∂B = w s² B (A S Aᵀ), where w = λ T / ‖W‖²_S: the mean over the T domains stands in for each one's ‖W‖²_k.

It stands beside the closed directions of :mod:`constrained_adapters.constraints.subspace`. Closing protects
what a domain cannot do without; closing the long rest as well would leave nothing to learn in (docs/log.md).
OWM (Zeng et al. 2019, arXiv 1810.01256) and SGP (Saha & Roy 2023, arXiv 2302.01386) also treat old inputs by
degree, by scaling gradients; here it is a penalty, on inputs weighed by what reaches an answer.

Cost per step: r·d_in² multiply-adds per adapted matrix (r·d_in·k with a sketch of k rows); state d_in² per
input.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import final

import torch
from torch import Tensor, nn

from constrained_adapters.adapters.lora import AdapterPair
from constrained_adapters.constraints.penalty import PenaltyConstraint
from constrained_adapters.memory.frequent_directions import FrequentDirections
from constrained_adapters.memory.statistics import Covariance


@final
class OutputChangeConstraint(PenaltyConstraint):
    """Penalises the relative change of each adapted layer's outputs.

    Args:
        pairs: The (A, B) in training.
        inputs: S by the pairs' modules, shape (d_in, d_in) or a sketch.
        outputs: ‖W‖²_S by module, see :func:`weighted_square`.
        num_domains: T, the memories that S sums up, the base's own included.
        weight: λ ≥ 0.
    """

    def __init__(
        self,
        pairs: Sequence[AdapterPair],
        inputs: Mapping[str, Covariance],
        outputs: Mapping[str, float],
        num_domains: int,
        weight: float,
    ) -> None:
        super().__init__()
        self._weight = weight
        moved: dict[tuple[int, torch.device], Covariance] = {}
        self._bound = []
        for pair in pairs:
            if pair.module in inputs:
                key = (id(inputs[pair.module]), pair.a.device)
                if key not in moved:
                    moved[key] = inputs[pair.module].to(pair.a.device)
                relative = weight * num_domains / max(outputs[pair.module], 1e-30)
                self._bound.append((pair, moved[key], relative * pair.scaling**2))

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All A and B."""
        return [p for pair, _, _ in self._bound for p in (pair.a, pair.b)]

    def terms(self) -> Iterator[tuple[nn.Parameter, Tensor, Tensor]]:
        """Two per matrix, both taken before either is changed; P is counted with A."""
        for pair, inputs, weight in self._bound:
            a, b = pair.a.detach().float(), pair.b.detach().float()
            seen, gram = weight * times(a, inputs), b.T @ b
            inner = seen @ a.T
            yield pair.a, gram @ seen, 0.5 * torch.sum(gram * inner)
            yield pair.b, b @ inner, inner.new_zeros(())

    def describe(self) -> dict[str, float]:
        """``penalty_weight``."""
        return {"penalty_weight": self._weight}


def times(rows: Tensor, inputs: Covariance) -> Tensor:
    """``rows S`` of rows (n, d); a sketch counts with its own rows and the rest of its diagonal."""
    if isinstance(inputs, FrequentDirections):
        held = inputs.rows
        rest = (inputs.diagonal - held.square().sum(0)).clamp_min(0.0)
        return (rows @ held.T) @ held + rows * rest
    return rows @ inputs


@torch.no_grad()
def weighted_square(weight: Tensor, inputs: Covariance) -> float:
    """``tr(W S Wᵀ)`` of W (d_out, d_in).

    >>> weighted_square(torch.tensor([[3.0, 1.0]]), torch.diag(torch.tensor([1.0, 0.0])))
    9.0
    """
    weight = weight.float()
    return float((times(weight, inputs) * weight).sum())
