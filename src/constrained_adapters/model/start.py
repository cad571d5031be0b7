"""Where a new adapter starts: in the open directions in which its domain's inputs vary most.

A random A looks mostly where the domain has no inputs, the more so the more directions are closed. Here
the rows of A are the top eigenvectors of (I − U Uᵀ) C (I − U Uᵀ), with C the covariance of the new domain's
inputs and U the closed directions. EVA (Paischer et al. 2024, arXiv 2410.07170) starts A in the top
directions of C; the difference is U.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from constrained_adapters.adapters.lora import AdapterPair
from constrained_adapters.memory.factors import outside_directions
from constrained_adapters.memory.statistics import Covariance


@torch.no_grad()
def start_in_open_inputs(
    pairs: Sequence[AdapterPair], covariances: Mapping[str, Covariance], bases: Mapping[str, Tensor]
) -> None:
    """Set each A (r, d_in) to orthonormal rows; where there are fewer directions, the rest stay as drawn.

    Args:
        pairs: Untrained adapters, whose A keeps the scale 1 of its rows (A ~ N(0, 1/d_in) has it too).
        covariances: Of each module's inputs; modules that read one input share one object.
        bases: Closed directions U (d_in, k) by module, orthonormal; a missing one closes nothing.
    """
    known: dict[tuple[int, int], Tensor] = {}
    for pair in pairs:
        covariance = covariances[pair.module]
        basis = bases.get(pair.module)
        if basis is None:
            basis = pair.a.new_zeros(pair.a.shape[1], 0, dtype=torch.float32)
        key = (id(covariance), id(bases.get(pair.module)))
        if key not in known:
            known[key] = outside_directions(covariance, basis.to(pair.a.device))[1]
        rows = known[key][:, : pair.a.shape[0]].T
        pair.a[: rows.shape[0]].copy_(rows)
