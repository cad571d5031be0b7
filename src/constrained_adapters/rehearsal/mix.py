"""New and kept rows in one order, fixed before training, so that a stopped run finds its place again."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch

from constrained_adapters.data.tokens import TokenDataset, Tokens
from constrained_adapters.errors import ConfigError

NEW = -1
"""The place of a row of the domain in training."""


@dataclass(frozen=True)
class Source:
    """Rows that are mixed in, and their share of all rows.

    Args:
        name: Such as ``replay``, ``general text``, ``golden set``; for errors.
        rows: 1 or more.
        ratio: Share of the run's rows, 0 … 1.
    """

    name: str
    rows: Sequence[Tokens]
    ratio: float


def mix_sources(
    new: Sequence[Tokens], sources: Sequence[Source], *, num_rows: int, seed: int
) -> TokenDataset:
    """All rows of a run in the order in which they are trained on; to be read without shuffling.

    Of the first i rows, at least ⌊i · r⌋ and fewer than i · r + k come from a source of ratio r, where k is
    the number of sources, and of all rows exactly ⌊num_rows · r⌋, in exact arithmetic. With one source row
    i (from 0) comes from it if and only if ⌊(i + 1) · r⌋ > ⌊i · r⌋. New rows fill the rest. The rows of each
    are taken in passes, shuffled anew each time.

    Args:
        new: Rows of the domain in training, 1 or more.
        sources: What is mixed in; ratios of 1 or less in all.
        num_rows: Steps × batch size × accumulated batches.
        seed: Of all orders; the global random state is not touched.

    Raises:
        ConfigError: A ratio is out of range, the ratios exceed 1, or a source has no rows.

    >>> a, replay = Tokens([1], [1]), Source("replay", [Tokens([2], [2])], 0.25)
    >>> [row["input_ids"][0] for row in mix_sources([a], [replay], num_rows=8, seed=0)]
    [1, 1, 1, 2, 1, 1, 1, 2]
    """
    _check(sources)
    shares = [Fraction(str(source.ratio)) for source in sources]
    streams = [_passes(source.rows, 2 * seed + 1 + (k << 33)) for k, source in enumerate(sources)]
    fresh = _passes(new, 2 * seed)
    return TokenDataset(
        next(fresh if place == NEW else streams[place]) for place in _places(num_rows, shares)
    )


def _check(sources: Sequence[Source]) -> None:
    for source in sources:
        if not 0.0 <= source.ratio <= 1.0:
            raise ConfigError(
                f"the ratio of {source.name} is out of range", got=repr(source.ratio), expected="0 … 1"
            )
        if not source.rows:
            raise ConfigError(f"there is nothing to mix in as {source.name}", expected="at least one row")
    if sum(Fraction(str(source.ratio)) for source in sources) > 1:
        raise ConfigError(
            "more is mixed in than there is room for",
            got=" + ".join(f"{source.ratio} ({source.name})" for source in sources),
            expected="1 or less in all",
        )


def _places(num_rows: int, shares: Sequence[Fraction]) -> list[int]:
    """Which source each row comes from, ``NEW`` for none.

    The j-th row of a source is due at row ⌈j / r⌉ (from 1). Going backwards, each place is given to the row
    that is due last of those not yet placed; so every row stands where it is due, or a little before
    where several are due at once. It always fits: up to row i no more than Σ ⌊i · r⌋ ≤ i are due.
    """
    dues = sorted(
        (-math.ceil(j / share), k)
        for k, share in enumerate(shares)
        for j in range(1, int(num_rows * share) + 1)
    )
    places, following = [NEW] * num_rows, 0
    waiting: list[tuple[int, int]] = []
    for row in range(num_rows, 0, -1):
        while following < len(dues) and -dues[following][0] >= row:
            heapq.heappush(waiting, dues[following])
            following += 1
        if waiting:
            places[row - 1] = heapq.heappop(waiting)[1]
    assert not waiting and following == len(dues)
    return places


def _passes(rows: Sequence[Tokens], seed: int) -> Iterator[Tokens]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        for index in torch.randperm(len(rows), generator=generator).tolist():
            yield rows[index]
