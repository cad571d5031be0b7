"""A uniform sample of the token rows seen in training, in main memory only, never on disk.

Reservoir sampling: Vitter 1985, algorithm R.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

Row = TypeVar("Row")


class Reservoir:
    """Up to ``capacity`` rows, each seen row kept with the same probability.

    Args:
        capacity: Most rows kept.
        seed: Of its own generator: the global random state is not touched.
    """

    def __init__(self, capacity: int, seed: int = 0) -> None:
        self.capacity, self.num_seen = capacity, 0
        self._rows: list[tuple[Tensor, Tensor]] = []
        self._generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self._rows)

    def offer(self, input_ids: Tensor, labels: Tensor, attention_mask: Tensor | None) -> None:
        """Show a batch: tensors of shape (b, s); padding is dropped by ``attention_mask``.

        A mask of another shape, (b, 1, s, s), says who sees whom: it does not tell padding.
        """
        if attention_mask is None or attention_mask.shape != input_ids.shape:
            attention_mask = torch.ones_like(input_ids)
        for ids, label, keep in zip(input_ids.cpu(), labels.cpu(), attention_mask.bool().cpu(), strict=True):
            self.num_seen += 1
            row = (ids[keep].to(torch.int32), label[keep].to(torch.int32))
            if len(self._rows) < self.capacity:
                self._rows.append(row)
                continue
            place = int(torch.randint(self.num_seen, (1,), generator=self._generator))
            if place < self.capacity:
                self._rows[place] = row

    @property
    def rows(self) -> list[tuple[Tensor, Tensor]]:
        """The kept rows of (token ids, labels), each of shape (s,)."""
        return list(self._rows)


LEAST_EXAMPLES = 32
"""Twice as many take a few tenths of a point off the drift, and twice the time (docs/log.md)."""
LEAST_SINGLE = 64
"""Of a Fisher or of single gradients, which vary more from example to example than inputs do."""


def num_memory_examples(num_seen: int, capacity: int, *, least: int = LEAST_EXAMPLES) -> int:
    """How many examples a memory is made from: ``least``, or a thirtieth of those seen if that is more.

    So it takes about a twentieth of the time of a training of 1,000 rows or more.
    """
    return min(capacity, max(least, num_seen // 30))


def sample_rows(rows: Sequence[Row], count: int, seed: int) -> list[Row]:
    """A seeded sample without replacement; the global random state is not touched."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    return [rows[int(index)] for index in order[:count]]


def pad_rows(rows: list[tuple[Tensor, Tensor]], device: torch.device | str) -> dict[str, Tensor]:
    """Pad rows of token ids and labels on the right to one batch."""
    width = max(ids.numel() for ids, _ in rows)
    batch = {
        "input_ids": torch.zeros(len(rows), width, dtype=torch.long),
        "labels": torch.full((len(rows), width), -100),
        "attention_mask": torch.zeros(len(rows), width, dtype=torch.long),
    }
    for index, (ids, label) in enumerate(rows):
        batch["input_ids"][index, : ids.numel()] = ids
        batch["labels"][index, : ids.numel()] = label
        batch["attention_mask"][index, : ids.numel()] = 1
    return {key: value.to(device) for key, value in batch.items()}
