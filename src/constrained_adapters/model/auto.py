"""``"auto"``: a domain's ``constraint_strength`` and ``adapter_dim``, chosen from its own first gradient.

One pass over a few examples of the domain, at the present weights and before any step, gives the gradient G
of the domain's loss by each adapted matrix (:mod:`constrained_adapters.memory.probe`). A first step can gain
what of ‖G‖² lies in open directions: that weighs strength against plasticity. And of the open part the best
step of rank r gains the r largest squared singular values: that says which rank is enough. Both are
first-order: what later steps find is not seen.

Axis letters: m rows kept of a gradient, k closed directions.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from constrained_adapters.memory.probe import Bases, ProbeGradients, closed_share

AUTO_STRENGTHS = (0.99, 0.97, 0.95, 0.9, 0.8, 0.7)
"""What ``constraint_strength="auto"`` chooses from, strictest first."""
AUTO_RANKS = (4, 8, 16, 32, 64, 128)
"""What ``adapter_dim="auto"`` chooses from."""
LEAST_OPEN_SHARE = 0.1
"""Share of the gradient's squared norm that the chosen strength leaves open: a third of the norm, so that a
first step of given length still gains a third of what it would without a constraint (docs/methods.md)."""
RANK_SHARE = 0.9
"""Share of the gain at the largest rank that the chosen rank reaches."""
PROBE_ROWS = 32
"""Examples that are measured at most."""


@dataclass(frozen=True)
class Chosen:
    """What an adapter is made with.

    Args:
        rank: r.
        facts: What was chosen and measured, for the record: ``chosen_strength``, ``gradient_conflict`` (share
            of the gradient in closed directions), ``chosen_rank``, ``rank_share`` (of the gain at the
            largest rank); empty where nothing is automatic.
        reason: The same in words.
    """

    rank: int
    facts: dict[str, float] = field(default_factory=dict)
    reason: str = ""


def choose(
    gradients: ProbeGradients,
    bases_at: Callable[[float], Bases] | None,
    *,
    strength: float | Literal["auto"],
    rank: int | Literal["auto"],
    default_strength: float,
) -> Chosen:
    """Choose what is ``"auto"`` and say why.

    Args:
        gradients: Of the new domain.
        bases_at: Closed directions U by module at a strength; None where no memory closes any.
        strength: ``constraint_strength``.
        rank: ``adapter_dim``.
        default_strength: Taken where there is nothing to choose by.

    Warns:
        UserWarning: Even the lowest strength leaves less than ``LEAST_OPEN_SHARE`` of the gradient open.
    """
    facts: dict[str, float] = {}
    reasons: list[str] = []
    if strength == "auto":
        conflicts = {default_strength: 0.0}
        if bases_at is None:
            reasons.append(f"strength {default_strength}, the default: no memory closes anything yet")
        else:
            conflicts = choose_strength(lambda each: closed_share(gradients.matrices, bases_at(each)))
            reasons.append(_why_strength(conflicts))
        strength, conflict = list(conflicts.items())[-1]
        facts |= {"chosen_strength": strength, "gradient_conflict": conflict}
        if 1.0 - conflict < LEAST_OPEN_SHARE:
            warnings.warn(
                f"even strength {strength} closes {conflict:.1%} of this domain's gradient: "
                "expect it to learn little, or set constraint_strength lower by hand",
                stacklevel=4,
            )
    if rank == "auto":
        bases = bases_at(strength) if bases_at is not None else {}
        spectra = [open_spectrum(g, bases.get(name)) for name, g in gradients.matrices.items()]
        shares = choose_rank(spectra, gradients.max_rank)
        rank, share = list(shares.items())[-1]
        facts |= {"chosen_rank": float(rank), "rank_share": share}
        reasons.append(_why_rank(shares))
    return Chosen(rank, facts, "; ".join(reasons))


def choose_strength(
    conflict_at: Callable[[float], float], least_open: float = LEAST_OPEN_SHARE
) -> dict[float, float]:
    """The strictest of ``AUTO_STRENGTHS`` that leaves enough of the gradient open.

    Args:
        conflict_at: Closed share of the gradient at a strength, 0 … 1; asked strictest first, and no
            further than needed.
        least_open: Share that must stay open.

    Returns:
        The conflict at each strength that was asked; the last is chosen. Where even that leaves less than
        ``least_open``, none does.

    >>> choose_strength(lambda strength: strength, least_open=0.04)
    {0.99: 0.99, 0.97: 0.97, 0.95: 0.95}
    """
    asked: dict[float, float] = {}
    for strength in AUTO_STRENGTHS:
        asked[strength] = conflict_at(strength)
        if 1.0 - asked[strength] >= least_open:
            break
    return asked


def open_spectrum(gradient: Tensor, basis: Tensor | None, count: int = AUTO_RANKS[-1]) -> Tensor:
    """Squared singular values of ``G (I − U Uᵀ)``, largest first, at most ``count``, float64, on the CPU.

    Args:
        gradient: G, shape (m, d_in).
        basis: U, orthonormal columns, shape (d_in, k); None closes nothing.
        count: How many.

    Cost: eigenvalues of the smaller Gram matrix, at most ``memory.probe.MOST_ROWS`` wide: O(m² d_in + m³).
    """
    if basis is not None:
        basis = basis.to(gradient)
        gradient = gradient - (gradient @ basis) @ basis.T
    short = gradient if gradient.shape[0] <= gradient.shape[1] else gradient.T
    gram = (short @ short.T).double().cpu()
    values: Tensor = torch.linalg.eigvalsh(gram).flip(0).clamp_min(0.0)[:count]
    return values


def choose_rank(spectra: Sequence[Tensor], max_rank: int, share: float = RANK_SHARE) -> dict[int, float]:
    """The smallest of ``AUTO_RANKS`` whose best update gains nearly what one of rank 128 would.

    The best update of rank r against G gains, to first order, in proportion to ‖G‖ of rank r, squared: the
    sum of the r largest squared singular values; the layers' gains add up.

    Args:
        spectra: Of each layer's open gradient, as :func:`open_spectrum` gives them.
        max_rank: Ranks above it are left out; where all are, it is the only one.
        share: Part of the gain at rank 128 to reach, 0 … 1.

    Returns:
        The part of that gain at each rank that was asked; the last is chosen.

    >>> choose_rank([torch.tensor([4.0, 2.0, 1.0, 1.0, 1.0, 0.5, 0.5])], max_rank=64)
    {4: 0.8, 8: 1.0}
    """
    whole = sum(float(values[: AUTO_RANKS[-1]].sum()) for values in spectra)
    asked: dict[int, float] = {}
    for rank in [each for each in AUTO_RANKS if each <= max_rank] or [max_rank]:
        held = sum(float(values[:rank].sum()) for values in spectra)
        asked[rank] = held / whole if whole > 0.0 else 1.0
        if asked[rank] >= share:
            break
    return asked


def _why_strength(conflicts: Mapping[float, float]) -> str:
    *stricter, (strength, conflict) = conflicts.items()
    text = f"strength {strength}: {conflict:.1%} of the domain's gradient is closed"
    if stricter:
        text += f" ({', '.join(f'{share:.1%} at {each}' for each, share in reversed(stricter))})"
    return f"{text}, and {LEAST_OPEN_SHARE:.0%} should stay open"


def _why_rank(shares: Mapping[int, float]) -> str:
    *lower, (rank, share) = shares.items()
    text = f"rank {rank}: a first step gains {share:.0%} of what rank {AUTO_RANKS[-1]} would"
    return f"{text} (rank {lower[-1][0]}: {lower[-1][1]:.0%})" if lower else text
