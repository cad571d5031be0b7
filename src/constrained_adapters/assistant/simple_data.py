"""Examples from whatever a user has at hand: pairs, dictionaries, conversations, or a file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from constrained_adapters.config.run import DomainConfig
from constrained_adapters.data.detect import detect_columns, make_examples
from constrained_adapters.data.examples import Example
from constrained_adapters.data.load import load_domain
from constrained_adapters.data.records import Record, shorten
from constrained_adapters.data.split import drop_duplicates
from constrained_adapters.errors import DataError


def read_examples(name: str, data: Any, *, max_examples: int | None, seed: int) -> tuple[list[Example], str]:
    """Read what a domain is to learn.

    Args:
        name: Of the domain.
        data: A list of (question, answer) pairs, of dictionaries (columns are detected as in a file), of
            conversations (lists of ``{"role", "content"}``) or of examples; or a file, a folder or
            ``packaged:NAME``, whose training part is taken.
        max_examples: Use at most this many.
        seed: Decides which.

    Returns:
        The examples, without duplicates, and what they were read from.

    Raises:
        DataError: There is nothing to learn in it.
    """
    if isinstance(data, str | os.PathLike):
        source = os.fspath(data)
        domain = load_domain(DomainConfig(name=name, data=source, max_train=max_examples), seed)
        return list(domain.train), source
    rows = list(data) if isinstance(data, Sequence) or hasattr(data, "__iter__") else []
    if not rows:
        raise DataError(
            f"there is nothing to learn for domain {name!r}",
            got=repr(data) if not rows else None,
            expected="a list of (question, answer) pairs or dictionaries, or a file's path",
        )
    if all(isinstance(row, Example) for row in rows):
        examples = rows
    else:
        records = [Record(_fields(row, at), "the list", at) for at, row in enumerate(rows, start=1)]
        examples = make_examples(records, detect_columns(records, DomainConfig(name=name, data="the list")))
    kept, _ = drop_duplicates(examples)
    return kept[:max_examples], "a list"


def _fields(row: Any, at: int) -> dict[str, Any]:
    if isinstance(row, Mapping):
        return dict(row)
    if isinstance(row, str):
        return {"text": row}
    if isinstance(row, Sequence) and row and all(isinstance(turn, Mapping) for turn in row):
        return {"messages": [dict(turn) for turn in row]}
    if isinstance(row, Sequence) and len(row) == 2 and all(isinstance(part, str) for part in row):
        return {"prompt": row[0], "answer": row[1]}
    raise DataError(
        "this is no example",
        got=f"{shorten(repr(row))} (row {at})",
        expected='("question", "answer"), {"prompt": …, "answer": …}, or a list of {"role", "content"}',
    )
