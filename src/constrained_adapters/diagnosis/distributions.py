"""How far apart two texts are as bags of tokens: divergence of distributions, overlap of vocabularies.

Axis letters: v tokens that occur in either text.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from constrained_adapters.errors import DataError

PSEUDO_COUNT = 0.5
"""Added to each count (Krichevsky and Trofimov 1981): no token has probability 0."""


def token_kl_nats(new: Sequence[int], old: Sequence[int], *, pseudo_count: float = PSEUDO_COUNT) -> float:
    """``KL(new ‖ old) = Σ_w p(w) ln(p(w) / q(w))`` of the unigram distributions of tokens, in nats.

    The estimator is additive smoothing over the v tokens that occur in either text:
    ``p(w) = (n_w + a) / (n + a·v)``. Texts that are short against v read as nearer than they are, since the
    added counts are the same on both sides; texts of different lengths as farther: see :func:`same_length`.

    Args:
        new: Token ids of the text that is coming.
        old: Token ids of the text that stands.
        pseudo_count: a, above 0.

    Returns:
        0 for equal counts, and never less.

    Raises:
        DataError: A text has no token.

    >>> token_kl_nats([1, 2], [1, 2])
    0.0
    >>> round(token_kl_nats([1, 1, 1, 2], [1, 2, 2, 2]), 4)
    0.3389
    """
    counts = _counts(new, old) + pseudo_count
    p, q = counts / counts.sum(axis=1, keepdims=True)
    return max(float((p * np.log(p / q)).sum()), 0.0)


def vocabulary_jaccard(new: Sequence[int], old: Sequence[int]) -> float:
    """``|A ∩ B| / |A ∪ B|`` of the sets of tokens that occur, 0 … 1.

    A longer text has more rare tokens: compare texts of :func:`same_length`.

    Raises:
        DataError: A text has no token.

    >>> vocabulary_jaccard([1, 2, 2], [2, 3])
    0.3333333333333333
    """
    present = _counts(new, old) > 0
    return float(present.all(axis=0).mean())


def same_length(
    new: Sequence[Sequence[int]], old: Sequence[Sequence[int]], *, most: int
) -> tuple[list[int], list[int]]:
    """Whole rows of each side in their order, joined and cut to the length of the shorter side.

    Args:
        new: Rows of token ids.
        old: Rows of token ids.
        most: Most tokens that are taken of a side.
    """
    length = min(most, sum(map(len, new)), sum(map(len, old)))
    return _joined(new, length), _joined(old, length)


def _joined(rows: Sequence[Sequence[int]], length: int) -> list[int]:
    joined: list[int] = []
    for row in rows:
        if len(joined) >= length:
            break
        joined += row
    return joined[:length]


def _counts(new: Sequence[int], old: Sequence[int]) -> NDArray[np.float64]:
    """How often each of the v tokens occurs, (2, v)."""
    if not len(new) or not len(old):
        raise DataError(
            "there is no text to compare",
            got=f"{len(new)} tokens of new and {len(old)} of old text",
            expected="1 or more of each",
        )
    ids = np.concatenate([np.asarray(new, dtype=np.int64), np.asarray(old, dtype=np.int64)])
    tokens, places = np.unique(ids, return_inverse=True)
    return np.stack(
        [
            np.bincount(part, minlength=len(tokens)).astype(np.float64)
            for part in np.split(places.reshape(-1), [len(new)])
        ]
    )
