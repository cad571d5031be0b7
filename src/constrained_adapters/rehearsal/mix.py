"""New and kept rows in one order, fixed before training, so that a stopped run finds its place again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction

import torch

from constrained_adapters.data.tokens import TokenDataset, Tokens


def mix_rows(
    new: Sequence[Tokens], old: Sequence[Tokens], *, num_rows: int, ratio: float, seed: int
) -> TokenDataset:
    """All rows of a run in the order in which they are trained on; to be read without shuffling.

    Row i (from 0) is an old one if and only if ⌊(i + 1) · ratio⌋ > ⌊i · ratio⌋, in exact arithmetic: every
    batch holds its share of old rows up to one, and what one batch falls short the next makes up. New
    and old rows are each taken in passes, shuffled anew each time.

    Args:
        new: Rows of the domain in training, 1 or more.
        old: Kept rows, 1 or more.
        num_rows: Steps × batch size × accumulated batches.
        ratio: Share of old rows, 0 … 1.
        seed: Of the two orders; the global random state is not touched.

    >>> a, b = Tokens([1], [1]), Tokens([2], [2])
    >>> [row["input_ids"][0] for row in mix_rows([a], [b], num_rows=8, ratio=0.25, seed=0)]
    [1, 1, 1, 2, 1, 1, 1, 2]
    """
    share = Fraction(str(ratio))
    fresh, kept = _passes(new, 2 * seed), _passes(old, 2 * seed + 1)
    return TokenDataset(
        next(kept if int((i + 1) * share) > int(i * share) else fresh) for i in range(num_rows)
    )


def _passes(rows: Sequence[Tokens], seed: int) -> Iterator[Tokens]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        for index in torch.randperm(len(rows), generator=generator).tolist():
            yield rows[index]
