"""Words of texts in any script, and how many two answers share. Imports no torch."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

_SINGLE = (
    "\u3040-\u30ff"  # Japanese kana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # Han
    "\U00020000-\U0003ffff"  # Han, further planes
    "\u0e00-\u0e7f\u0e80-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
)
_TOKEN = re.compile(rf"\s+|[{_SINGLE}]|[^\W{_SINGLE}]+|[^\w\s]|_")


def split_words(text: str) -> list[str]:
    """Split a text so that the parts joined are the text again.

    Scripts that write no spaces are split by character, all others by word; punctuation and
    white space stand alone.

    >>> split_words("二次方程 is x²!")
    ['二', '次', '方', '程', ' ', 'is', ' ', 'x²', '!']
    """
    return _TOKEN.findall(text)


def token_f1(answer: str, reference: str) -> float:
    """Return the harmonic mean of precision and recall of an answer's words, 0 … 1.

    With c words in common (each as often as it stands in both), ``2c / (words of the answer + words of the
    reference)``. Case, Unicode form (NFKC), white space and punctuation do not count; where a text has
    nothing else, its signs do.

    Source: Rajpurkar et al., SQuAD (arXiv 1606.05250), section 6.1. Deviations: English articles count, as
    other languages have none to leave out; texts without spaces are compared by character.

    >>> token_f1("The red fox.", "a red fox"), token_f1("x = 2 或 4", "x = 2 或 3")
    (0.6666666666666666, 0.75)
    """
    given, wanted = _counted(answer), _counted(reference)
    total = given.total() + wanted.total()
    return 2.0 * (given & wanted).total() / total if total else 1.0


def _counted(text: str) -> Counter[str]:
    words = [word for word in split_words(unicodedata.normalize("NFKC", text).casefold()) if word.strip()]
    spoken = [word for word in words if any(char.isalnum() for char in word)]
    return Counter(spoken or words)
