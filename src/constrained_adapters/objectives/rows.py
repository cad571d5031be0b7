"""Rows of tokens that say which positions are scored, with columns of numbers for these positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from constrained_adapters.data.tokens import IGNORED, Tokens, collate


@dataclass(frozen=True)
class LabelledRow:
    """One row of s tokens, n of them scored.

    Args:
        input_ids: Token ids, (s).
        labels: The same ids where they are learnt, ``IGNORED`` elsewhere, (s); losses are divided by their
            number (the first token's does not count: nothing predicts it).
        scored: Ascending positions from 1, (n): those of the labels, and any others that an objective adds.
        extras: Columns by name, each (n, …).
    """

    input_ids: list[int]
    labels: list[int]
    scored: list[int]
    extras: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, tokens: Tokens) -> LabelledRow:
        """A row whose scored positions are those of its labels."""
        return cls(tokens.input_ids, tokens.labels, label_positions(tokens.labels))

    def keeping(self, keep: Sequence[bool]) -> LabelledRow:
        """The row with only those scored positions, and their labels, for which ``keep`` (n) is true."""
        dropped = {at for at, kept in zip(self.scored, keep, strict=True) if not kept}
        mask = np.asarray(keep, dtype=np.bool_)
        return LabelledRow(
            self.input_ids,
            [IGNORED if at in dropped else label for at, label in enumerate(self.labels)],
            [at for at in self.scored if at not in dropped],
            {name: column[mask] for name, column in self.extras.items()},
        )

    def with_columns(self, columns: Mapping[str, NDArray[Any]]) -> LabelledRow:
        """The row with further columns, each (n, …)."""
        return LabelledRow(self.input_ids, self.labels, self.scored, {**self.extras, **columns})


def label_positions(labels: Sequence[int]) -> list[int]:
    """Positions, from 1, whose label is not ``IGNORED``."""
    return [at for at, label in enumerate(labels) if at > 0 and label != IGNORED]


class LabelledDataset(Dataset[dict[str, Any]]):
    """Prepared rows for a Trainer or a data loader, and what was found while preparing them.

    Args:
        rows: In the order of training.
        facts: Figures for the record.
    """

    def __init__(self, rows: Sequence[LabelledRow], facts: Mapping[str, float]) -> None:
        self.rows, self.facts = tuple(rows), dict(facts)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        return {
            "input_ids": row.input_ids,
            "labels": row.labels,
            "scored": row.scored,
            "extras": row.extras,
        }


def collate_labelled(features: Sequence[dict[str, Any]], pad_token_id: int) -> dict[str, Any]:
    """Pad rows on the right to one batch.

    Returns:
        As :func:`~constrained_adapters.data.tokens.collate`; ``scored`` (b, s) of bool; ``extras``, each
        column (b, s, …), 0 where nothing is scored.
    """
    batch: dict[str, Any] = {**collate(features, pad_token_id)}
    scored = torch.zeros(batch["labels"].shape, dtype=torch.bool)
    for place, feature in enumerate(features):
        scored[place, feature["scored"]] = True
    batch["scored"] = scored
    batch["extras"] = {
        name: _spread([torch.from_numpy(feature["extras"][name]) for feature in features], scored)
        for name in features[0]["extras"]
    }
    return batch


def _spread(columns: Sequence[Tensor], scored: Tensor) -> Tensor:
    joined = torch.cat(list(columns))
    spread = joined.new_zeros((*scored.shape, *joined.shape[1:]))
    spread[scored] = joined
    return spread
