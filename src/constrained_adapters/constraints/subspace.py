"""No step inside the subspace of inputs that finished domains depend on.

With ΔW = s·B·A and orthonormal U (d_in × k) spanning what is protected, A is kept in the
complement: ``A U = 0``, so ``ΔW a = 0`` for every protected input a, whatever B learns
(GPM, Saha et al. 2021, arXiv 2103.09762; InfLoRA, Liang & Li 2024, arXiv 2404.00228, fixes A
instead of training it in the complement).

Deviations: U is chosen per domain by share of plain input energy (type ``orthogonal``, as in GPM: the
inputs that occur), or of inputs weighed by how far the final states move with the layer's output (type
``fisher``: the inputs that reach an answer); the base's own text is the first domain; and the step is
projected as well as the gradient, because AdamW's scaling, momentum and weight decay leave a
subspace.

Cost per step: 2·r·d_in·k multiply-adds per adapted matrix, twice; state d_in·k per input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from constrained_adapters.constraints.base import Constraint
from constrained_adapters.constraints.finite import norms


class SubspaceConstraint(Constraint):
    """Keeps the rows of each A orthogonal to a basis.

    Args:
        matrices: The A of each adapted layer, shape (r, d_in).
        bases: For each name of ``matrices`` an orthonormal basis, shape (d_in, k); a missing or
            empty one leaves its matrix free.
        free: Trained parameters that stay free (the B); they count in ``removed_ratio``.
    """

    projects = True

    def __init__(
        self,
        matrices: Mapping[str, nn.Parameter],
        bases: Mapping[str, Tensor],
        free: Sequence[nn.Parameter] = (),
    ) -> None:
        self._bound = [
            (matrix, bases[name].to(matrix.device, torch.float32))
            for name, matrix in matrices.items()
            if name in bases and bases[name].shape[1] > 0
        ]
        self._all = [*matrices.values(), *free]
        self._widths = [matrix.shape[1] for matrix in matrices.values()]
        self._removed = torch.zeros(())

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The bound A."""
        return [matrix for matrix, _ in self._bound]

    @torch.no_grad()
    def before_step(self) -> None:
        """Project each gradient of A off its basis."""
        removed: list[Tensor] = []
        gradients = [p.grad for p in self._all if p.grad is not None]
        if not gradients:
            self._removed = torch.zeros(())
            return
        whole = torch.stack(norms(gradients)).square().sum()
        for matrix, basis in self._bound:
            if matrix.grad is not None:
                inside = matrix.grad.float() @ basis
                matrix.grad.sub_((inside @ basis.T).to(matrix.grad.dtype))
                removed.append(inside)
        total = (
            torch.stack(torch._foreach_norm(removed)).square().sum() if removed else torch.zeros_like(whole)
        )
        self._removed = (total / whole.clamp_min(1e-30)).sqrt()

    @torch.no_grad()
    def after_step(self) -> None:
        """Project each A itself, so that the optimizer's own scaling cannot leave the complement."""
        for matrix, basis in self._bound:
            matrix.sub_(((matrix.float() @ basis) @ basis.T).to(matrix.dtype))

    def measurements(self) -> dict[str, Tensor]:
        """``removed_ratio`` of the last step."""
        return {"removed_ratio": self._removed}

    def describe(self) -> dict[str, float]:
        """``closed_ratio``: mean of k / d_in over the adapted matrices; ``closed_directions``: mean k."""
        closed = sum(basis.shape[1] for _, basis in self._bound)
        return {
            "closed_ratio": closed / max(sum(self._widths), 1),
            "closed_directions": closed / max(len(self._widths), 1),
        }
