"""Docstring → Python module, from a frozen file: the running interpreter's docstrings would differ."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterable, Iterator
from importlib import resources

from constrained_adapters.data.examples import Example
from constrained_adapters.data.packaged.splits import cut, split_balanced

_FROZEN = "programming.jsonl.gz"


def build() -> dict[str, list[Example]]:
    """Return the splits; see :func:`constrained_adapters.data.packaged.load_packaged`."""
    packed = resources.files("constrained_adapters.data").joinpath("frozen", _FROZEN).read_bytes()
    return split_balanced(parse_docstrings(gzip.decompress(packed).decode().splitlines()), "programming")


def parse_docstrings(lines: Iterable[str]) -> Iterator[Example]:
    """Yield one example a line of JSON with ``module``, ``name`` and ``doc``; the module's name is masked."""
    rows = [json.loads(line) for line in lines]
    choices = tuple(sorted({row["module"] for row in rows}))
    for row in rows:
        # Also inside longer words: 'tarfile' in 'open_tarfile' would give it away as well.
        mask = re.compile(re.escape(row["module"]), re.IGNORECASE)
        name, text = mask.sub("[module]", row["name"]), mask.sub("[module]", row["doc"])
        prompt = f"Python docstring of {name}: {cut(text)}\nWhich module is it from?"
        yield Example(prompt=prompt, answer=row["module"], choices=choices)
