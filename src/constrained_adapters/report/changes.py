"""Which words of a model's answer changed, for texts of any script."""

from __future__ import annotations

import difflib
import re
import unicodedata
from dataclasses import dataclass
from typing import Literal

from constrained_adapters.evaluation.words import split_words

MAX_TOKENS = 500
"""Beyond this the quadratic comparison is not worth its time: the text is shown as one change."""


@dataclass(frozen=True)
class Piece:
    """A stretch of text that stayed, was added, or was removed."""

    kind: Literal["same", "added", "removed"]
    text: str


def changed_words(before: str, after: str) -> list[Piece]:
    """Return ``after`` in pieces, with what was removed from ``before`` at the place where it stood.

    >>> [(p.kind, p.text) for p in changed_words("a red fox", "a grey fox")]
    [('same', 'a '), ('removed', 'red'), ('added', 'grey'), ('same', ' fox')]
    """
    if before == after:
        return [Piece("same", after)] if after else []
    old, new = split_words(before), split_words(after)
    if max(len(old), len(new)) > MAX_TOKENS:
        return [piece for piece in (Piece("removed", before), Piece("added", after)) if piece.text]
    pieces = []
    for tag, i1, i2, j1, j2 in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if tag == "equal":
            pieces.append(Piece("same", "".join(new[j1:j2])))
            continue
        if i2 > i1:
            pieces.append(Piece("removed", "".join(old[i1:i2])))
        if j2 > j1:
            pieces.append(Piece("added", "".join(new[j1:j2])))
    return pieces


def same_answer(first: str, second: str) -> bool:
    """Whether two answers agree but for white space, case and Unicode form."""

    def plain(text: str) -> str:
        return " ".join(unicodedata.normalize("NFKC", text).casefold().split())

    return plain(first) == plain(second)


def language_tag(text: str) -> str | None:
    """Return a BCP 47 tag that lets a browser choose fonts and a voice, or None for Latin text.

    Guessed from the script alone, so a script that several languages share gets ``und-…``.

    >>> language_tag("解方程"), language_tag("Право"), language_tag("law")
    ('zh', 'und-Cyrl', None)
    """
    for tag, pattern in _SCRIPTS:
        if pattern.search(text):
            return tag
    return None


_SCRIPTS = [
    ("ja", re.compile("[\u3040-\u30ff]")),
    ("ko", re.compile("[\uac00-\ud7af]")),
    ("zh", re.compile("[\u3400-\u9fff]")),
    ("und-Cyrl", re.compile("[\u0400-\u04ff]")),
    ("und-Arab", re.compile("[\u0600-\u06ff]")),
    ("und-Deva", re.compile("[\u0900-\u097f]")),
]
