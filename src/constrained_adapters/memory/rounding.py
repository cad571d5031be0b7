"""Columns of numbers in 8 bits an entry, or in 16 where an allowed error asks for it.

Every 64 entries of a column share a scale, so that one loud entry (an input axis of massive activation) does
not take the precision from the others.

Axis letters: d width, k columns, b blocks of 64 entries.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 64
LEVELS = 127
"""The largest code; codes are symmetric."""


@dataclass(frozen=True)
class RoundedColumns:
    """Made by :func:`round_columns`; columns keep their order.

    Args:
        is_wide: 1 where a column has 16 bits, shape (k,), uint8.
        scales: Of the columns of 8 bits, shape (b, k₈), bfloat16.
        octets: Shape (d, k₈), int8.
        halves: Shape (d, k₁₆), float16.
    """

    is_wide: Tensor
    scales: Tensor
    octets: Tensor
    halves: Tensor

    def read(self) -> Tensor:
        """The columns, shape (d, k), float32."""
        width, wide = self.octets.shape[0], self.is_wide.bool()
        found = torch.empty(width, wide.numel(), device=wide.device)
        found[:, ~wide] = self.octets.float() * _spread(self.scales, width)
        found[:, wide] = self.halves.float()
        return found

    def to(self, device: torch.device | str) -> RoundedColumns:
        """The same on another device."""
        return RoundedColumns(*(part.to(device) for part in self._parts))

    def packed(self) -> Tensor:
        """All of it as bytes, shape (n,), uint8; :func:`packed_bytes` says how many."""
        return torch.cat([part.contiguous().flatten().view(torch.uint8) for part in self._parts])

    @classmethod
    def unpacked(cls, packed: Tensor, width: int, num_columns: int) -> RoundedColumns:
        """The inverse of :meth:`packed` for d = ``width`` and k = ``num_columns``.

        Raises:
            ValueError: There are too few or too many bytes.
        """
        is_wide = packed[:num_columns].clone()
        num_halves = int(is_wide.count_nonzero())
        num_octets = num_columns - num_halves
        if packed.numel() != packed_bytes(width, num_octets, num_halves):
            raise ValueError(f"{packed.numel()} bytes for {num_columns} columns of {width}")
        parts, start = [], num_columns
        for dtype, *shape in (
            (torch.bfloat16, _num_blocks(width), num_octets),
            (torch.int8, width, num_octets),
            (torch.float16, width, num_halves),
        ):
            size = dtype.itemsize * shape[0] * shape[1]
            # A copy, because a view as wider numbers must start at a multiple of their size.
            parts.append(packed[start : start + size].clone().view(dtype).view(shape))
            start += size
        return cls(is_wide, *parts)

    @property
    def _parts(self) -> tuple[Tensor, ...]:
        return self.is_wide, self.scales, self.octets, self.halves


def round_columns(columns: Tensor, allowed: Tensor | None = None) -> RoundedColumns:
    """Round each column (d, k) to 8 bits where its squared error is then within ``allowed`` (k,), else to 16.

    Args:
        columns: float32; entries of a column of 16 bits must fit float16.
        allowed: Default: any error.

    >>> columns = torch.tensor([[1.0, 1.0], [0.0, 0.3]])
    >>> round_columns(columns, torch.tensor([1e-4, 1e-9])).is_wide.tolist()
    [0, 1]
    """
    width, count = columns.shape
    padded = torch.nn.functional.pad(columns, (0, 0, 0, _num_blocks(width) * BLOCK - width))
    blocks = padded.view(_num_blocks(width), BLOCK, count)
    scales = (blocks.abs().amax(1) / LEVELS).to(torch.bfloat16)
    spread = _spread(scales, width)
    # Where a block is zero, so is its scale.
    codes = torch.where(spread == 0, 0.0, columns / spread).round().clamp(-LEVELS, LEVELS)
    wide = torch.zeros(count, dtype=torch.bool, device=columns.device)
    if allowed is not None:
        wide = ~((codes * spread - columns).square().sum(0) <= allowed)
    return RoundedColumns(
        wide.to(torch.uint8),
        scales[:, ~wide],
        codes[:, ~wide].to(torch.int8),
        columns[:, wide].to(torch.float16),
    )


def packed_bytes(width: int, num_octets: int, num_halves: int = 0) -> int:
    """Bytes of :meth:`RoundedColumns.packed` with so many columns of 8 and of 16 bits."""
    return (1 + 2 * _num_blocks(width) + width) * num_octets + (1 + 2 * width) * num_halves


def _spread(scales: Tensor, width: int) -> Tensor:
    return scales.float().repeat_interleave(BLOCK, dim=0)[:width]


def _num_blocks(width: int) -> int:
    return -(-width // BLOCK)
