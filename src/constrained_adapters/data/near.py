"""Near duplicates: pairs of texts whose character 5-grams overlap by a Jaccard index of at least 0.8.

Each text is NFKC-normalised, case-folded and freed of everything but letters and digits; its
5-grams of characters (which serve every script, with spaces or without) form a set. The index of
two sets is |A ∩ B| / |A ∪ B|. At 0.8 about one 5-gram in nine of either text is not in the other:
one changed word in a paragraph of 50, or one changed letter in a line of 50 characters, is near;
two questions of one kind about different things are not.

Grams that stand in more than half of the texts are not counted: they are the task's wording
("Which topic is this news about? …"), and with it every short item would be near every other.

MinHash with locality-sensitive hashing (Broder 1997; Leskovec, Rajaraman and Ullman, *Mining of
Massive Datasets*, chapter 3) finds candidates: 20 bands of 5 hash values miss a pair at 0.8 with
probability (1 − 0.8⁵)²⁰ ≈ 4e-4. Each candidate is then checked exactly, so no pair is reported
that is not near.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from datasketch import MinHash, MinHashLSH
from numpy.typing import NDArray

THRESHOLD = 0.8
GRAM_LENGTH = 5
_BANDS, _ROWS = 20, 5
_MIN_TEXTS_FOR_WORDING = 4
_NOT_WORD = re.compile(r"[\W_]+")
_FACTORS = np.array(
    [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93, 0xA0761D6478BD642F],
    dtype=np.uint64,
)
"""Odd 64-bit numbers, one a position of the gram; any would do."""
Grams = NDArray[np.uint32]


def gram_sets(texts: Sequence[str]) -> list[Grams]:
    """Return the sorted hashes of each text's 5-grams, without those of the task's wording.

    A text that has none left (or is shorter than a gram) gets a single hash of its whole.
    Cost: about 50 µs for 1,000 characters, and 4 bytes a gram.
    """
    normal = [_NOT_WORD.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip() for text in texts]
    grams = [_grams(text) for text in normal]
    if len(texts) >= _MIN_TEXTS_FOR_WORDING:
        values, counts = np.unique(np.concatenate(grams), return_counts=True)
        wording = values[counts > len(texts) / 2]
        grams = [np.setdiff1d(gram, wording, assume_unique=True) for gram in grams]
    return [gram if gram.size else _hash(text) for gram, text in zip(grams, normal, strict=True)]


def jaccard(first: Grams, second: Grams) -> float:
    """|A ∩ B| / |A ∪ B| of two sets of gram hashes, 0 … 1."""
    shared = np.intersect1d(first, second, assume_unique=True).size
    return float(shared / (first.size + second.size - shared))


def near_groups(grams: Sequence[Grams], linked: Iterable[tuple[int, int]] = ()) -> list[int]:
    """Group texts that are near one another, directly or through others.

    Args:
        grams: From :func:`gram_sets`.
        linked: Pairs of positions that belong together for another reason.

    Returns:
        For each text the position of the first text of its group.
    """
    root = list(range(len(grams)))

    def find(item: int) -> int:
        while root[item] != item:
            root[item] = root[root[item]]
            item = root[item]
        return item

    def join(one: int, other: int) -> None:
        root[max(one, other)] = min(one, other)

    for one, other in linked:
        join(find(one), find(other))
    index = MinHashLSH(num_perm=_BANDS * _ROWS, params=(_BANDS, _ROWS))
    for item, signature in enumerate(_signatures(grams)):
        for other in sorted(index.query(signature)):
            mine, theirs = find(item), find(other)
            if mine != theirs and jaccard(grams[item], grams[other]) >= THRESHOLD:
                join(mine, theirs)
        index.insert(item, signature)
    return [find(item) for item in range(len(grams))]


def near_any(grams: Sequence[Grams], held: Sequence[Grams]) -> list[bool]:
    """For each of ``grams``, whether it is near any of ``held``."""
    return [bool(found) for found in near_pairs(grams, held)]


def near_pairs(grams: Sequence[Grams], held: Sequence[Grams]) -> list[list[int]]:
    """For each of ``grams``, the positions of those of ``held`` that it is near, in their order."""
    index = MinHashLSH(num_perm=_BANDS * _ROWS, params=(_BANDS, _ROWS))
    for position, signature in enumerate(_signatures(held)):
        index.insert(position, signature)
    return [
        sorted(other for other in index.query(signature) if jaccard(gram, held[other]) >= THRESHOLD)
        for gram, signature in zip(grams, _signatures(grams), strict=True)
    ]


def _grams(text: str) -> Grams:
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
    if codes.size < GRAM_LENGTH:
        return _hash(text)
    windows = np.lib.stride_tricks.sliding_window_view(codes, GRAM_LENGTH)
    # Multiply and keep the high half: unsigned overflow is the modulus of this hash.
    mixed = (windows * _FACTORS).sum(axis=1, dtype=np.uint64)
    mixed ^= mixed >> np.uint64(29)
    return np.unique(((mixed * _FACTORS[0]) >> np.uint64(32)).astype(np.uint32))


def _hash(text: str) -> Grams:
    return np.array([zlib.crc32(text.encode())], dtype=np.uint32)


def _signatures(grams: Sequence[Grams]) -> Iterator[MinHash]:
    permutations = None
    for gram in grams:
        # Grams are hashes already; the permutations are made once and shared.
        signature = MinHash(
            num_perm=_BANDS * _ROWS, seed=1, hashfunc=int, permutations=permutations, scheme="affine32"
        )
        permutations = signature.permutations
        signature.update_batch(gram.tolist())
        yield signature
