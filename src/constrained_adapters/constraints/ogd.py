"""``ogd``: no step along the stored gradients of the finished domains' examples, where weights stay the same.

Orthogonal gradient descent (Farajtabar et al. 2020, arXiv 1910.07104, algorithm 1): for examples of each
finished domain the gradient of the model's *output* is stored, here of the right token's logit (their
OGD-GTL), at the weights with which the domain ended; every later step is orthogonal to them all, so that to
first order those logits do not move.

Deviations: an example is a sequence, so its output is the mean logit over its answer tokens; and the step is
projected as well as the gradient, see :mod:`constrained_adapters.constraints.off_directions`. Where each
domain has a LoRA of its own, :mod:`constrained_adapters.constraints.ogd_lora`.

Cost per step: 4·n·p multiply-adds for n directions and p weights, and a copy of the weights from before the
step until after it; kept: n·p numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import final

import torch
from torch import Tensor, nn

from constrained_adapters.constraints.off_directions import OffDirections


@final
class OGDConstraint(OffDirections):
    """Keeps steps off stored directions.

    Args:
        weights: The trained parameters by name.
        directions: For each of them its part of the n directions, one row each; see
            :class:`~constrained_adapters.memory.directions.StoredDirections`. Empty where no domain is
            finished.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], directions: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._weights = list(weights.values())
        self._rows = [
            directions[name].to(p.device, torch.float32).flatten(1)
            if directions
            else p.new_zeros(0, p.numel())
            for name, p in weights.items()
        ]
        self._grams: dict[tuple[int, ...], Tensor] = {}

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The trained weights."""
        return self._weights

    @property
    def num_directions(self) -> int:
        """As many as are stored."""
        return len(self._rows[0]) if self._rows else 0

    def gram(self, indices: tuple[int, ...]) -> Tensor:
        """Identity where all parameters move, up to rounding; made once for each set of them."""
        if indices not in self._grams:
            device = self._rows[0].device
            parts = [(self._rows[i] @ self._rows[i].T).double().to(device) for i in indices]
            self._grams = {indices: torch.stack(parts).sum(0)}
        return self._grams[indices]

    def products(self, tensors: Mapping[int, Tensor]) -> Tensor:
        """Of the stored rows with each tensor."""
        device = self._rows[0].device
        parts = [(self._rows[i] @ x.float().flatten()).double().to(device) for i, x in tensors.items()]
        return torch.stack(parts).sum(0)

    def combination(self, weights: Tensor, indices: tuple[int, ...]) -> Iterator[tuple[int, Tensor]]:
        """Of the stored rows."""
        for i in indices:
            rows = self._rows[i]
            yield i, (weights.to(rows) @ rows).view_as(self._weights[i])
