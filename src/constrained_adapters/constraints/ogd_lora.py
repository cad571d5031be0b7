"""``ogd`` where each domain has a LoRA of its own: orthogonal to the finished domains' gradients of ΔW.

A stored gradient of old A and B would say nothing about new ones. The memories' sketches keep gradients G_n
of the adapted *matrices* for single sequences (:mod:`constrained_adapters.memory.gradient_sketch`), and
⟨G_n, ΔW⟩ with ΔW = s·B·A of the adapter in training has the gradient (s Bᵀ G_n, s G_n Aᵀ) in A and B. Steps
are kept orthogonal to these n directions of all layers together, made anew at the present A and B at each
step, so that to first order no ⟨G_n, ΔW⟩ changes (after OGD, Farajtabar et al. 2020, arXiv 1910.07104,
algorithm 1).

Deviations: the gradients are of the log-probability of labels drawn from the model, one sum per sequence
over its tokens, to the sketch's rank, where the paper stores those of single logits; and the step is
projected as well as the gradient, see :mod:`constrained_adapters.constraints.off_directions`.

Cost per step and matrix, with m = n·k stored pairs: m²·r + m·r·(d_in + d_out) multiply-adds, and one n × n
eigendecomposition; nothing of size n × p is made.

Axis letters: n sequences, k singular pairs of each, m = n·k, r rank of the adapter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from constrained_adapters.adapters.lora import AdapterPair
from constrained_adapters.constraints.off_directions import OffDirections


@final
class OGDLoRAConstraint(OffDirections):
    """Keeps steps of A and B off what the finished domains' sketches hold.

    Args:
        pairs: The (A, B) in training; parameter 2i is the A of pair i, 2i + 1 its B.
        left: For each finished domain, and of it for each module, the left factors of G_n, shape (n, d_out,
            k), as :class:`~constrained_adapters.memory.gradient_sketch.GradientSketch` holds them.
        right: The right ones, shape (n, k, d_in).
    """

    def __init__(
        self,
        pairs: Sequence[AdapterPair],
        left: Sequence[Mapping[str, Tensor]],
        right: Sequence[Mapping[str, Tensor]],
    ) -> None:
        super().__init__()
        self._pairs = list(pairs)
        self._parameters = [p for pair in pairs for p in (pair.a, pair.b)]
        # One column per sequence, with ones at its singular pairs.
        owners = []
        for domain in left:
            n, _, k = next(iter(domain.values())).shape
            owners.append(torch.eye(n, dtype=torch.float64).repeat_interleave(k, 0))
        self._owner = torch.block_diag(*owners).to(pairs[0].a.device) if owners else torch.zeros(0, 0)
        self._stored = [_Stored.of(pair, left, right) for pair in pairs] if owners else []
        self._thin: list[tuple[Tensor, Tensor]] = []

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All A and B."""
        return self._parameters

    @property
    def num_directions(self) -> int:
        """The sequences that are remembered."""
        return self._owner.shape[1]

    def gram(self, indices: tuple[int, ...]) -> Tensor:
        """From products of thin matrices, which are kept for :meth:`products` and :meth:`combination`."""
        self._thin = [
            (pair.b.float().T @ stored.left, stored.right @ pair.a.float().T)
            for pair, stored in zip(self._pairs, self._stored, strict=True)
        ]
        m = len(self._owner)
        total = torch.zeros(m, m, dtype=torch.float64, device=self._owner.device)
        for i in indices:
            stored, (from_b, from_a) = self._stored[i // 2], self._thin[i // 2]
            if i % 2 == 0:
                part = (from_b.double().T @ from_b.double()) * stored.right_gram
            else:
                part = (from_a.double() @ from_a.double().T) * stored.left_gram
            total += (self._pairs[i // 2].scaling ** 2 * part).to(total.device)
        return self._owner.T @ total @ self._owner

    def products(self, tensors: Mapping[int, Tensor]) -> Tensor:
        """⟨s Bᵀ G_n, x⟩ and ⟨s G_n Aᵀ, x⟩, summed over the parameters."""
        total = torch.zeros(len(self._owner), dtype=torch.float64, device=self._owner.device)
        for i, x in tensors.items():
            stored, (from_b, from_a) = self._stored[i // 2], self._thin[i // 2]
            if i % 2 == 0:
                part = ((x.float() @ stored.right.T) * from_b).sum(0)
            else:
                part = ((x.float().T @ stored.left) * from_a.T).sum(0)
            total += (self._pairs[i // 2].scaling * part).double().to(total.device)
        return self._owner.T @ total

    def combination(self, weights: Tensor, indices: tuple[int, ...]) -> Iterator[tuple[int, Tensor]]:
        """Of the directions at the A and B for which the last Gram matrix was made."""
        each = self._owner @ weights
        for i in indices:
            stored, (from_b, from_a) = self._stored[i // 2], self._thin[i // 2]
            scaled = (self._pairs[i // 2].scaling * each).to(from_b)
            yield i, (from_b * scaled) @ stored.right if i % 2 == 0 else (stored.left * scaled) @ from_a


@dataclass(frozen=True)
class _Stored:
    """All domains' pairs of one matrix: ``left`` (d_out, m), ``right`` (m, d_in), and their Gram matrices."""

    left: Tensor
    right: Tensor
    left_gram: Tensor
    right_gram: Tensor

    @classmethod
    def of(
        cls, pair: AdapterPair, left: Sequence[Mapping[str, Tensor]], right: Sequence[Mapping[str, Tensor]]
    ) -> _Stored:
        columns = torch.cat([domain[pair.module].transpose(0, 1).flatten(1) for domain in left], dim=1)
        rows = torch.cat([domain[pair.module].flatten(0, 1) for domain in right])
        columns, rows = columns.to(pair.b.device, torch.float32), rows.to(pair.a.device, torch.float32)
        return cls(columns, rows, (columns.T @ columns).double(), (rows @ rows.T).double())
