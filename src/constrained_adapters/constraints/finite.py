"""Broken numbers: which tensor holds one, and the weights as they were before the step that made it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

SNAPSHOT_BYTES = 512 * 2**20
"""Most weights that are copied before a step: adapters and small models; larger ones only stop the run."""


def first_not_finite(tensors: Sequence[Tensor]) -> int | None:
    """Index of the first tensor with a NaN or an infinity, or None.

    Cost: one pass over the tensors and one wait for the device.

    >>> first_not_finite([torch.ones(2), torch.tensor([1.0, float("nan")])])
    1
    """
    if not tensors:
        return None
    found = norms(tensors)
    if bool(torch.isfinite(torch.stack([norm.to(found[0].device) for norm in found])).all()):
        return None
    # A norm can overflow where no value does.
    return next((i for i, tensor in enumerate(tensors) if not bool(torch.isfinite(tensor).all())), None)


def norms(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The norm of each tensor, 0-dim, in float32, or in float64 where one of them is."""
    wide = any(tensor.dtype == torch.float64 for tensor in tensors)
    return list(torch._foreach_norm(list(tensors), 2, torch.float64 if wide else torch.float32))


class LastGood:
    """The values of some parameters before a step, as long as they fit into ``limit_bytes``.

    Cost: one copy of the parameters per step, and their bytes once more.
    """

    def __init__(self, limit_bytes: int = SNAPSHOT_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._parameters: list[nn.Parameter] = []
        self._copies: list[Tensor] = []

    @torch.no_grad()
    def take(self, parameters: Sequence[nn.Parameter]) -> None:
        """Copy the parameters, or nothing if they are too large together."""
        if sum(p.numel() * p.element_size() for p in parameters) > self._limit_bytes:
            self._parameters, self._copies = [], []
            return
        same = len(parameters) == len(self._parameters) and all(
            p is q for p, q in zip(parameters, self._parameters, strict=True)
        )
        if same and self._copies:
            torch._foreach_copy_(self._copies, [p.detach() for p in parameters])
            return
        self._parameters, self._copies = list(parameters), [p.detach().clone() for p in parameters]

    @torch.no_grad()
    def put_back(self) -> bool:
        """Give the parameters the copied values; False where there are none."""
        for parameter, copy in zip(self._parameters, self._copies, strict=True):
            parameter.copy_(copy)
        return bool(self._copies)
