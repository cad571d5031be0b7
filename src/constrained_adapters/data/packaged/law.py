"""Licence text → category, with near-copies of a text on one side of the split."""

from __future__ import annotations

import re
import zlib
from collections import Counter

from constrained_adapters.assets import asset_path
from constrained_adapters.data.examples import Example
from constrained_adapters.data.packaged.splits import MAX_WORDS, split_groups

LABELS = {
    "Commercial": "commercial",
    "Copyleft": "copyleft",
    "Copyleft Limited": "weak copyleft",
    "Free Restricted": "free with restrictions",
    "Permissive": "permissive",
    "Proprietary Free": "proprietary",
}
CHOICES = tuple(sorted(LABELS.values()))

_BEFORE, _AFTER = "Licence text: ", "\nWhat category of licence is this?"
_MIN_WORDS = 25
_MAX_PASSAGES = 2
_MAX_CHARS = 4000  # whole agreements run to 100 times that
_SHINGLE_WORDS = 5
_NUM_HASHES = 4
_NEAR = 0.5
_HEADER = re.compile(r"\A---\n(.*?)^---\n", re.DOTALL | re.MULTILINE)


def build() -> dict[str, list[Example]]:
    """Return the splits; see :func:`constrained_adapters.data.packaged.load_packaged`."""
    folder = asset_path("licensedcode-data") / "licensedcode/data/licenses"
    licences = {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.LICENSE"))}
    examples = {key: parse_licence(text) for key, text in licences.items()}
    splits = split_groups(group_related({key: found for key, found in examples.items() if found}), "law")
    # Grouping goes by the beginnings; boilerplate further down, which many families share, is met here.
    splits["validation"] = drop_near(splits["validation"], splits["test"])
    splits["train"] = drop_near(splits["train"], [*splits["validation"], *splits["test"]])
    return splits


def parse_licence(text: str) -> list[Example]:
    """Return the first passages of a licence file; none where it is deprecated, foreign or of no category."""
    header = _HEADER.match(text)
    if header is None:
        return []
    fields = dict(re.findall(r"^(\w+): (.*)$", header.group(1), re.MULTILINE))
    label = LABELS.get(fields.get("category", ""))
    if label is None or fields.get("is_deprecated") == "yes" or fields.get("language", "en") != "en":
        return []
    start = text[header.end() : header.end() + _MAX_CHARS]
    words = re.sub(r"[^\w\s]{4,}|https?://\S+", " ", start).split()
    passages = [words[start : start + MAX_WORDS] for start in range(0, MAX_WORDS * _MAX_PASSAGES, MAX_WORDS)]
    return [
        Example(
            prompt=f"{_BEFORE}{' '.join(passage)}{_AFTER}",
            answer=label,
            choices=CHOICES,
        )
        for passage in passages
        if len(passage) >= _MIN_WORDS
    ]


def group_related(licences: dict[str, list[Example]]) -> dict[str, list[Example]]:
    """Merge the examples of licences that belong together: of one family, or beginning nearly the same.

    The family is the first word of the key ('gpl' of 'gpl-2.0-plus'). Beginnings are compared by MinHash:
    two that share a fraction J of their word 5-grams meet with a chance of 1 − (1 − J)⁴.
    """
    parents: dict[str, str] = {}

    def root(node: str) -> str:
        while parents.setdefault(node, node) != node:
            parents[node] = parents[parents[node]]  # halve the path, or chains of near-copies get long
            node = parents[node]
        return node

    for key, examples in licences.items():
        beginning = [shingle.encode() for shingle in shingles(examples[0])]
        links = [f"family {re.split(r'[-_.0-9]', key)[0] or key}"]
        links += [
            f"hash {salt} {min(zlib.crc32(part, salt) for part in beginning)}" for salt in range(_NUM_HASHES)
        ]
        for link in links:
            parents[root(link)] = root(key)
    groups: dict[str, list[Example]] = {}
    for key, examples in licences.items():
        groups.setdefault(root(key), []).extend(examples)
    return groups


def drop_near(examples: list[Example], kept_apart: list[Example]) -> list[Example]:
    """Return the examples that share less than half of their word 5-grams with each of ``kept_apart``."""
    owners: dict[str, list[int]] = {}
    for index, example in enumerate(kept_apart):
        for shingle in shingles(example):
            owners.setdefault(shingle, []).append(index)

    def is_near(example: Example) -> bool:
        own = shingles(example)
        shared = Counter(index for shingle in own for index in owners.get(shingle, ()))
        return any(count >= _NEAR * len(own) for count in shared.values())

    return [example for example in examples if not is_near(example)]


def shingles(example: Example) -> set[str]:
    """Return the word 5-grams of an example's licence text."""
    text = (example.prompt or "").removeprefix(_BEFORE).removesuffix(_AFTER)
    words = re.findall(r"\w+", text.lower())
    return {" ".join(words[i : i + _SHINGLE_WORDS]) for i in range(max(1, len(words) - _SHINGLE_WORDS + 1))}
