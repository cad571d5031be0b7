"""MinHash with locality-sensitive hashing: which sets of hashes may be alike, without comparing all pairs.

For a random permutation of all hashes, two sets have the same least element with a probability that is
their Jaccard index. ``BANDS`` bands of ``ROWS`` such least elements propose a pair at index s with
probability ``1 − (1 − s^ROWS)^BANDS``: a pair at 0.8 is missed with probability 4e-4.

Source: Broder 1997; Leskovec, Rajaraman and Ullman, *Mining of Massive Datasets*, chapter 3; by datasketch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from datasketch import MinHash, MinHashLSH
from numpy.typing import NDArray

BANDS, ROWS = 20, 5
Hashes = NDArray[np.uint32]


def candidates(sets: Sequence[Hashes], held: Sequence[Hashes]) -> list[list[int]]:
    """For each of ``sets``, the ascending positions of those of ``held`` that share a band with it."""
    index = MinHashLSH(num_perm=BANDS * ROWS, params=(BANDS, ROWS))
    known = _signatures(held)
    for position, signature in enumerate(known):
        index.insert(position, signature)
    return [sorted(index.query(each)) for each in (known if sets is held else _signatures(sets))]


def _signatures(sets: Sequence[Hashes]) -> list[MinHash]:
    # They are hashes already: no hash function, and the permutations are made once and shared.
    found: list[MinHash] = MinHash.bulk(
        (each.tolist() for each in sets), num_perm=BANDS * ROWS, seed=1, hashfunc=int, scheme="affine32"
    )
    return found
