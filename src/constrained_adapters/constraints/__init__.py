"""What may a step not do? One file per answer; the types of ``constraint_type`` are listed here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from constrained_adapters.constraints.base import Constraint
from constrained_adapters.constraints.predicted import PredictedGradientConstraint
from constrained_adapters.constraints.subspace import SubspaceConstraint

SUBSPACE_TYPES: Mapping[str, Literal["sensitivity", "energy"]] = {
    "fisher": "sensitivity",
    "orthogonal": "energy",
}
"""Constraint type → which input factor of the memories spans the closed subspace."""

PREDICTED_TYPES = ("agem", "diagonal", "gem")
"""Constraint types that act on the gradient which the memories predict for the finished domains."""

__all__ = [
    "PREDICTED_TYPES",
    "SUBSPACE_TYPES",
    "Constraint",
    "PredictedGradientConstraint",
    "SubspaceConstraint",
]
