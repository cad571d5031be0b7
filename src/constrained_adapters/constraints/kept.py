"""No step against the gradients of kept examples of the finished domains, in whatever parameters are trained.

* ``gem``: one old gradient per finished domain k, of the loss on all that is kept of it, at the present
  weights: the step's gradient becomes the nearest with ⟨g̃, g_k⟩ ≥ 0 for every k, with a margin (Lopez-Paz
  & Ranzato 2017, arXiv 1706.08840, algorithm 1 and equations 8 to 12; the authors' margin is 0.5).
* ``agem``: one old gradient, of a batch drawn anew at each step from what is kept of all of them (Chaudhry
  et al. 2019, arXiv 1812.00420, algorithm 2 and equation 11).

The programme is :mod:`constrained_adapters.constraints.cone`'s, once per optimizer step, on the accumulated
gradient of all parameters together. Deviations: the papers step by plain SGD; AdamW's momentum and scaling
come after the projection here, so that its step, other than the gradient, may go against an old one. The
gradient is projected after clipping. Dropout is off for the old gradients (the papers' networks have none).

Cost per step: a forward and a backward pass over the rows of each source; kept for the moment: t copies of
the trained parameters.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from constrained_adapters.constraints.cone import ConeConstraint
from constrained_adapters.constraints.example_gradients import Row, loss_gradient


@final
class KeptExamples:
    """A source of one old gradient: that of the mean loss per answer token of kept rows.

    Args:
        model: A causal LM; it is not kept alive.
        parameters: In training.
        rows: (token ids, labels), each of shape (s,).
        rows_per_step: How many are drawn anew at each call, from torch's global CPU generator, which
            Trainer's checkpoints hold; default: all are used.
        batch_size: Rows per pass.
        domain: Named in errors.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Sequence[nn.Parameter],
        rows: Sequence[Row],
        *,
        rows_per_step: int | None = None,
        batch_size: int = 8,
        domain: str = "",
    ) -> None:
        self._model: Callable[[], Any] = weakref.ref(model)
        self._parameters, self._rows = list(parameters), list(rows)
        self._rows_per_step, self._batch_size, self._domain = rows_per_step, batch_size, domain

    def __call__(self) -> list[Tensor]:
        """The gradient at the present weights, one tensor per parameter."""
        rows = self._rows
        if self._rows_per_step is not None and self._rows_per_step < len(rows):
            rows = [rows[index] for index in torch.randperm(len(rows))[: self._rows_per_step].tolist()]
        return loss_gradient(
            self._model(), self._parameters, rows, batch_size=self._batch_size, domain=self._domain
        )


@final
class KeptGradientConstraint(ConeConstraint):
    """GEM, with a source per finished domain, or A-GEM, with one for all.

    Args:
        parameters: In training.
        sources: Each gives an old gradient, one tensor per parameter, such as :class:`KeptExamples`.
        strength: Share of the change that is made, 0 … 1; the papers': 1.
        margin: γ ≥ 0, the least weight of each old gradient where the step's goes against any.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        sources: Sequence[Callable[[], Sequence[Tensor]]],
        *,
        strength: float = 1.0,
        margin: float = 0.0,
    ) -> None:
        super().__init__(strength, margin)
        self._parameters, self._sources = list(parameters), list(sources)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All that are trained."""
        return list(self._parameters)

    @property
    def num_old_gradients(self) -> int:
        """One per source."""
        return len(self._sources)

    def old_gradients(self) -> list[Sequence[Tensor]]:
        """Of each source."""
        return [source() for source in self._sources]

    def describe(self) -> dict[str, float]:
        """``num_old_gradients`` per step."""
        return {"num_old_gradients": float(len(self._sources))}
