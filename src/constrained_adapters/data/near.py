"""Near duplicates: pairs of texts whose character 5-grams overlap by a Jaccard index of at least 0.8.

Each text is NFKC-normalised, case-folded and freed of everything but letters and digits; its
5-grams of characters (which serve every script, with spaces or without) form a set. The index of
two sets is |A ∩ B| / |A ∪ B|. At 0.8 about one 5-gram in nine of either text is not in the other:
one changed word in a paragraph of 50, or one changed letter in a line of 50 characters, is near;
two questions of one kind about different things are not.

Grams that stand in more than half of the texts (of a part of them, where parts are told apart) are not
counted: they are the task's wording ("Which topic is this news about? …"), and with it every short item would
be near every other.

Candidates come from :mod:`constrained_adapters.data.minhash`. Each is then checked exactly, so no pair is
reported that is not near.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from constrained_adapters.data.minhash import candidates

THRESHOLD = 0.8
GRAM_LENGTH = 5
_MIN_TEXTS_FOR_WORDING = 4
_NOT_WORD = re.compile(r"[\W_]+")
_FACTORS = np.array(
    [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93, 0xA0761D6478BD642F],
    dtype=np.uint64,
)
"""Odd 64-bit numbers, one a position of the gram; any would do."""
_AT_ONCE = 1 << 20
"""Characters whose grams are made together, which takes some 50 MB."""
Grams = NDArray[np.uint32]


def gram_sets(texts: Sequence[str], parts: Sequence[int] | None = None) -> list[Grams]:
    """Return the sorted hashes of each text's 5-grams, without those of the tasks' wording.

    A text that has none left (or is shorter than a gram) gets a single hash of its whole.
    Cost: about 50 µs for 1,000 characters, and 4 bytes a gram.

    Args:
        texts: Of one task, or of several, one part after the other.
        parts: How many texts each part has; the wording of any part is left out of all texts.
    """
    normal = [_NOT_WORD.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip() for text in texts]
    grams = [gram for chunk in _chunks(normal) for gram in _grams(chunk)]
    wording, start = [], 0
    for size in [len(texts)] if parts is None else parts:
        wording.append(_wording(grams[start : start + size]))
        start += size
    if any(each.size for each in wording):
        together = np.concatenate(grams)
        kept = ~np.isin(together, np.concatenate(wording))
        starts = np.cumsum([0, *(gram.size for gram in grams[:-1])])
        sizes = np.add.reduceat(kept, starts, dtype=np.intp)
        grams = np.split(together[kept], np.cumsum(sizes)[:-1])
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
    for item, others in enumerate(candidates(grams, grams)):
        for other in others[: others.index(item)]:  # ascending: each pair once
            mine, theirs = find(item), find(other)
            if mine != theirs and jaccard(grams[item], grams[other]) >= THRESHOLD:
                join(mine, theirs)
    return [find(item) for item in range(len(grams))]


def near_any(grams: Sequence[Grams], held: Sequence[Grams]) -> list[bool]:
    """For each of ``grams``, whether it is near any of ``held``."""
    return [bool(found) for found in near_pairs(grams, held)]


def near_pairs(grams: Sequence[Grams], held: Sequence[Grams]) -> list[list[int]]:
    """For each of ``grams``, the positions of those of ``held`` that it is near, in their order."""
    return [
        [other for other in others if jaccard(gram, held[other]) >= THRESHOLD]
        for gram, others in zip(grams, candidates(grams, held), strict=True)
    ]


def _chunks(texts: Sequence[str]) -> Iterator[list[str]]:
    """Neighbouring texts of about ``_AT_ONCE`` characters together."""
    chunk: list[str] = []
    size = 0
    for text in texts:
        chunk.append(text)
        size += len(text)
        if size >= _AT_ONCE:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _grams(texts: Sequence[str]) -> list[Grams]:
    """The sorted hashes of each text's 5-grams; of a shorter text, that of its whole."""
    codes = np.frombuffer("".join(texts).encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
    mixed = np.zeros(max(codes.size - GRAM_LENGTH + 1, 0), dtype=np.uint64)
    for at, factor in enumerate(_FACTORS):
        mixed += codes[at : at + mixed.size] * factor
    # Multiply and keep the high half: unsigned overflow is the modulus of this hash.
    mixed ^= mixed >> np.uint64(29)
    hashes = ((mixed * _FACTORS[0]) >> np.uint64(32)).astype(np.uint32)
    found, start = [], 0
    for text in texts:
        num_grams = len(text) - GRAM_LENGTH + 1
        found.append(np.unique(hashes[start : start + num_grams]) if num_grams > 0 else _hash(text))
        start += len(text)
    return found


def _wording(grams: Sequence[Grams]) -> Grams:
    """The grams that more than half of the texts share."""
    if len(grams) < _MIN_TEXTS_FOR_WORDING:
        return np.empty(0, dtype=np.uint32)
    values, counts = np.unique(np.concatenate(grams), return_counts=True)
    shared: Grams = values[counts > len(grams) / 2]
    return shared


def _hash(text: str) -> Grams:
    return np.array([zlib.crc32(text.encode())], dtype=np.uint32)
