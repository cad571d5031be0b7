"""CRMAModel: the adapters of one base, the active set, weights, memories, the constraint, merging."""

from constrained_adapters.model.crma import CRMAModel

__all__ = ["CRMAModel"]
