"""Diagnosis → kind of disorder, from the ICD-10-CM tabular list."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

from constrained_adapters.assets import asset_path
from constrained_adapters.data.examples import Example
from constrained_adapters.data.packaged.splits import cut, split_balanced

# Chapter -> answer. Chapters 20 (external causes) and 22 (three codes) hold no disorders.
LABELS = {
    "1": "infection",
    "2": "tumor",
    "3": "blood disorder",
    "4": "metabolic disorder",
    "5": "mental disorder",
    "6": "nerve disorder",
    "7": "eye disorder",
    "8": "ear disorder",
    "9": "heart and vessel disorder",
    "10": "lung disorder",
    "11": "digestive disorder",
    "12": "skin disorder",
    "13": "bone and muscle disorder",
    "14": "urinary and genital disorder",
    "15": "pregnancy disorder",
    "16": "newborn disorder",
    "17": "birth defect",
    "18": "symptom",
    "19": "injury",
    "21": "health status",
}
CHOICES = tuple(sorted(LABELS.values()))

# Words that tell sides and sub-codes of one diagnosis apart: 'left eye' and 'right eye' are one item.
_VARIANT = re.compile(
    r"\b(left|right|bilateral|unilateral|unspecified|other|specified|first|second|third|trimester)\b|[^a-z ]"
)


def build() -> dict[str, list[Example]]:
    """Return the splits; see :func:`constrained_adapters.data.packaged.load_packaged`."""
    (source,) = (asset_path("simple-icd-10-cm") / "simple_icd_10_cm/data").glob("icd10c-tabular-*.xml")
    return split_balanced(parse_tabular(source), "medicine")


def parse_tabular(source: Path) -> Iterator[Example]:
    """Yield one example for each diagnosis without sub-diagnoses; variants of one diagnosis come once."""
    seen: set[str] = set()
    for chapter in ElementTree.parse(source).getroot().iter("chapter"):
        label = LABELS.get(chapter.findtext("name", ""))
        if label is None:
            continue
        for diagnosis in chapter.iter("diag"):
            name = diagnosis.findtext("desc", "")
            key = " ".join(_VARIANT.sub(" ", name.lower()).split())
            if diagnosis.find("diag") is None and key and key not in seen:
                seen.add(key)
                prompt = f"Diagnosis: {cut(name)}\nWhat kind of disorder is this?"
                yield Example(prompt=prompt, answer=label, choices=CHOICES)
