"""Cut running text into examples of a size that fits a training sequence."""

from __future__ import annotations

import re
from collections.abc import Iterator

TARGET_BYTES = 800
"""About 200 tokens. UTF-8 bytes follow the token count across scripts better than characters do:
a Chinese character is three bytes and about one token, a Latin letter one byte and a quarter."""

_SENTENCE = re.compile(r".+?(?:[.!?…]+\s+|[。！？]+\s*|$)", re.DOTALL)


def split_paragraphs(text: str, target_bytes: int = TARGET_BYTES) -> list[tuple[str, int]]:
    r"""Split at blank lines, join short neighbours and cut long paragraphs at sentence ends.

    Args:
        text: A whole file.
        target_bytes: Neighbouring paragraphs are joined as long as they fit in this many UTF-8
            bytes; a longer one is cut, at a sentence's end where there is one.

    Returns:
        Pieces with the line, from 1, where their first paragraph begins. Without
        whitespace they are the text without whitespace; no piece is empty.

    >>> split_paragraphs("One.\n\nTwo.\n\n\nThree.", target_bytes=10)
    [('One.\n\nTwo.', 1), ('Three.', 6)]
    """
    pieces: list[tuple[str, int]] = []
    line = 1
    joined, joined_line = "", 1
    for paragraph in re.split(r"(\n[^\S\n]*\n\s*)", text.replace("\r\n", "\n")):
        start = line + paragraph[: len(paragraph) - len(paragraph.lstrip())].count("\n")
        line += paragraph.count("\n")
        for part in _cut(paragraph.strip(), target_bytes):
            if joined and _size(joined) + _size(part) + 2 <= target_bytes:
                joined = f"{joined}\n\n{part}"
                continue
            if joined:
                pieces.append((joined, joined_line))
            joined, joined_line = part, start
    if joined:
        pieces.append((joined, joined_line))
    return pieces


def _cut(paragraph: str, target_bytes: int) -> list[str]:
    if _size(paragraph) <= target_bytes:
        return [paragraph] if paragraph else []
    parts = [""]
    for piece in _pieces(paragraph, target_bytes):
        if _size((parts[-1] + piece).strip()) <= target_bytes:
            parts[-1] += piece
        else:
            parts.append(piece)
    return [part.strip() for part in parts if part.strip()]


def _pieces(paragraph: str, target_bytes: int) -> Iterator[str]:
    """Sentences; words of a sentence that is too long; stretches of a word that is too long."""
    for sentence in _SENTENCE.findall(paragraph):
        if _size(sentence.strip()) <= target_bytes:
            yield sentence
            continue
        for word in re.findall(r"\s*\S+\s*", sentence):
            rest = word
            while _size(rest.strip()) > target_bytes:
                fits = len(rest.encode()[:target_bytes].decode(errors="ignore"))
                yield rest[:fits]
                rest = rest[fits:]
            yield rest


def _size(text: str) -> int:
    return len(text.encode())
