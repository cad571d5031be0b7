"""Which rows of a finished domain are kept first: any, those with the highest loss, or the most diverse.

Each answer is an order of all rows, so that a buffer which has to shrink keeps the beginning of what it
has, whatever came later.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from constrained_adapters.data.tokens import Tokens
from constrained_adapters.errors import ConfigError
from constrained_adapters.memory.reservoir import sample_rows

Selection = Literal["reservoir", "highest_loss", "diverse"]
LONGEST_NGRAM = 2


def order_rows(
    rows: Sequence[Tokens],
    selection: Selection,
    *,
    count: int,
    seed: int,
    losses: Sequence[float] | None = None,
    embeddings: Tensor | None = None,
) -> list[Tokens]:
    """The ``count`` rows that are kept first, in that order.

    Args:
        rows: Of one domain.
        selection: ``reservoir``: a uniform sample in a random order, whose first m rows are a uniform sample
            of size m, as a reservoir (Vitter 1985) would hold. ``highest_loss``: what the model finds hardest
            comes first. ``diverse``: see :func:`farthest_first`.
        count: Most rows.
        seed: Of the random order; the global random state is not touched.
        losses: Mean nats per label of each row, for ``highest_loss``; see
            :func:`~constrained_adapters.evaluation.row_losses.row_losses`.
        embeddings: (number of rows, d), for ``diverse``; :func:`ngram_embeddings` where none are given.

    Raises:
        ConfigError: Losses or embeddings are wanted, and there is not one for each row.
    """
    if selection == "reservoir":
        return sample_rows(rows, count, seed)
    if selection == "highest_loss":
        if losses is None or len(losses) != len(rows):
            raise ConfigError(
                "rows cannot be chosen by their loss without it",
                got=f"{0 if losses is None else len(losses)} losses for {len(rows)} rows",
                expected="one for each row",
            )
        return [rows[i] for i in sorted(range(len(rows)), key=lambda i: -losses[i])[:count]]
    points = torch.from_numpy(ngram_embeddings(rows)) if embeddings is None else embeddings
    if len(points) != len(rows):
        raise ConfigError(
            "rows cannot be chosen for their diversity",
            got=f"{len(points)} embeddings for {len(rows)} rows",
            expected="one for each row",
        )
    return [rows[i] for i in farthest_first(points, count)]


def farthest_first(points: Tensor, count: int) -> list[int]:
    """Greedy k-center: begin nearest to the mean, then always take the point farthest from all taken.

    The largest distance of any point to its nearest taken one is at most twice what the best choice of as
    many would reach (Gonzalez 1985), for every beginning of the order.

    Args:
        points: (N, d).
        count: Most indices, 0 or more.

    Cost: O(N · count · d) in time, O(N) beside the points.
    """
    points = points.double()
    if not len(points):
        return []
    taken: list[int] = []
    nearest = (points - points.mean(0)).norm(dim=-1).neg()
    for _ in range(min(count, len(points))):
        at = int(nearest.argmax())
        distance = (points - points[at]).norm(dim=-1)
        nearest = distance if not taken else torch.minimum(nearest, distance)
        taken.append(at)
        nearest[taken] = -1.0  # equal rows come last, each once
    return taken


def ngram_embeddings(rows: Sequence[Tokens], width: int = 256) -> NDArray[np.float64]:
    """Hashed counts of token n-grams, at length 1: which words stand where, without a model.

    Each n-gram (n = 1, 2) adds ±1 to one of ``width`` numbers, place and sign by a hash of its token
    ids (Weinberger et al. 2009, arXiv 0902.2206): in the mean, scalar products are those of the counts.

    Returns:
        (number of rows, width); the same on every machine.
    """
    made = np.zeros((len(rows), width))
    for row, target in zip(rows, made, strict=True):
        ids = np.asarray(row.input_ids, dtype=np.uint64)
        hashes = np.zeros(len(ids), dtype=np.uint64)
        for length in range(1, min(LONGEST_NGRAM, len(ids)) + 1):
            hashes = _mixed(hashes[: len(ids) - length + 1] + ids[length - 1 :] + np.uint64(1))
            signs = np.where(hashes >> np.uint64(63), 1.0, -1.0)
            np.add.at(target, (hashes % np.uint64(width)).astype(np.intp), signs)
    norms = np.linalg.norm(made, axis=-1, keepdims=True)
    return made / np.where(norms > 0.0, norms, 1.0)


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finisher of MurmurHash3: every bit of a value decides every bit of its hash."""
    for shift, factor in ((33, 0xFF51AFD7ED558CCD), (33, 0xC4CEB9FE1A85EC53)):
        values = (values ^ (values >> np.uint64(shift))) * np.uint64(factor)
    return values ^ (values >> np.uint64(33))
