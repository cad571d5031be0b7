"""No step of a trained weight matrix inside the subspace of inputs that must be spared.

Where the weights themselves are trained (no adapter), W must not be projected, since what the model
knows is in it; only its *step* is: with orthonormal U (d_in × k),
``W ← W₀ + (W − W₀)(I − U Uᵀ)``, W₀ being W before the step, so ``(W − W₀) a = 0`` for every protected
input a (GPM, Saha et al. 2021, arXiv 2103.09762, equations 5 and 6).

Deviation: the paper projects the gradient; here the step too, because AdamW's scaling, momentum and
weight decay leave a subspace (as in OSFT, Nayak et al. 2025, arXiv 2504.07097).

Cost per step: 2·d_out·d_in·k multiply-adds per matrix, twice, and from before the step until after it
a copy of each bound matrix; state d_in·k per input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from constrained_adapters.constraints.base import Constraint
from constrained_adapters.constraints.finite import norms


class WeightStepConstraint(Constraint):
    """Keeps the rows of each matrix's step orthogonal to a basis.

    Args:
        matrices: Trained weights, shape (d_out, d_in), or (d_in, d_out) where ``transposed`` names them.
        bases: For each name of ``matrices`` an orthonormal basis, shape (d_in, k); a missing or
            empty one leaves its matrix free.
        free: Trained parameters that stay free; they count in ``removed_ratio``.
        transposed: Names of the matrices that are kept transposed, as GPT-2's Conv1D does.
    """

    projects = True

    def __init__(
        self,
        matrices: Mapping[str, nn.Parameter],
        bases: Mapping[str, Tensor],
        free: Sequence[nn.Parameter] = (),
        transposed: Sequence[str] = (),
    ) -> None:
        self._bound = [
            (matrix, bases[name].to(matrix.device, torch.float32), name in transposed)
            for name, matrix in matrices.items()
            if name in bases and bases[name].shape[1] > 0
        ]
        self._all = [*matrices.values(), *free]
        self._widths = [m.shape[0 if name in transposed else 1] for name, m in matrices.items()]
        self._before: dict[int, Tensor] = {}
        self._removed = torch.zeros(())

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The bound matrices."""
        return [matrix for matrix, _, _ in self._bound]

    @torch.no_grad()
    def before_step(self) -> None:
        """Project each gradient off its basis and keep a copy of each matrix."""
        gradients = [p.grad for p in self._all if p.grad is not None]
        self._before = {}
        if not gradients:
            self._removed = torch.zeros(())
            return
        whole = torch.stack(norms(gradients)).square().sum()
        removed = torch.zeros_like(whole)
        for index, (matrix, basis, transposed) in enumerate(self._bound):
            if matrix.grad is not None:
                gradient = matrix.grad.T if transposed else matrix.grad
                inside = gradient.float() @ basis
                gradient.sub_((inside @ basis.T).to(gradient.dtype))
                removed += inside.square().sum()
                self._before[index] = matrix.detach().clone()
        self._removed = (removed / whole.clamp_min(1e-30)).sqrt()

    @torch.no_grad()
    def after_step(self) -> None:
        """Project each matrix's step; a step that :meth:`before_step` did not see is left alone."""
        for index, before in self._before.items():
            matrix, basis, transposed = self._bound[index]
            step = matrix.float() - before.float()
            rows = step.T if transposed else step
            rows.sub_((rows @ basis) @ basis.T)
            matrix.copy_((before.float() + step).to(matrix.dtype))
        self._before = {}

    def measurements(self) -> dict[str, Tensor]:
        """``removed_ratio`` of the last step."""
        return {"removed_ratio": self._removed}

    def describe(self) -> dict[str, float]:
        """``closed_ratio``: mean of k / d_in over the matrices; ``closed_directions``: mean k."""
        closed = sum(basis.shape[1] for _, basis, _ in self._bound)
        return {
            "closed_ratio": closed / max(sum(self._widths), 1),
            "closed_directions": closed / max(len(self._widths), 1),
        }
