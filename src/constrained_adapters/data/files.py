"""Read the records of one file; every error names file and line.

Which columns mean what is decided in :mod:`constrained_adapters.data.detect`.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

from constrained_adapters.data.paragraphs import split_paragraphs
from constrained_adapters.data.records import Record, read_text, refuse_missing, shorten
from constrained_adapters.errors import DataError, MissingExtraError


def read_file(path: Path) -> list[Record]:
    """Read all records of one file; its suffix says its format (see ``READERS``).

    JSON is a list of objects; a ``.json`` that holds one object per line is read as JSON lines. CSV
    takes its first line as column names and its delimiter from there. Text becomes paragraphs, see
    :func:`split_paragraphs`.

    Raises:
        DataError: The file is missing, empty, broken, not UTF-8 or of an unknown format.
        MissingExtraError: It is Parquet, and pyarrow is not installed.
    """
    if not path.exists():
        refuse_missing(path)
    if path.is_dir():
        raise DataError("this is a folder, not a file", got=str(path), expected="a data file")
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            "the format of this data file is not known",
            got=str(path),
            expected=", ".join(sorted(READERS)),
            hint="rename or convert the file",
        )
    if path.stat().st_size == 0:
        raise DataError("the data file is empty", got=f"{path}, 0 bytes", expected="at least one example")
    records = reader(path)
    if not records:
        raise DataError("the data file holds no examples", got=str(path), expected="at least one example")
    return records


def _read_jsonl(path: Path) -> list[Record]:
    return list(_json_lines(path, read_text(path)))


def _json_lines(path: Path, text: str) -> Iterator[Record]:
    # Only "\n" ends a line: str.splitlines also breaks at U+2028, which may stand inside JSON strings.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                "this line is not JSON",
                got=f"{shorten(line)} ({path}, line {number}, column {error.colno})",
                expected=f"one JSON object; {error.msg}",
                hint="check quotes, commas and line breaks inside the object",
            ) from None
        yield _object_record(value, path, number, line)


def _object_record(value: Any, path: Path, line: int, shown: str) -> Record:
    if not isinstance(value, dict):
        raise DataError(
            "this line is not a JSON object",
            got=f"{type(value).__name__}: {shorten(shown)} ({path}, line {line})",
            expected='an object such as {"prompt": "…", "answer": "…"}',
        )
    return Record(value, str(path), line)


def _read_json(path: Path) -> list[Record]:
    text = read_text(path)
    try:
        whole = json.loads(text)
    except json.JSONDecodeError as error:
        if text.lstrip().startswith("{") and error.msg == "Extra data":
            return list(_json_lines(path, text))
        line = text.split("\n")[error.lineno - 1]
        raise DataError(
            "the file is not JSON",
            got=f"{shorten(line)} ({path}, line {error.lineno}, column {error.colno})",
            expected=f"a list of objects; {error.msg}",
        ) from None
    if not isinstance(whole, list):
        lists = (
            [name for name, value in whole.items() if isinstance(value, list)]
            if isinstance(whole, dict)
            else []
        )
        raise DataError(
            "the file is not a list",
            got=f"{type(whole).__name__} ({path})",
            expected="a list of objects, or one object per line",
            hint=f"jq '.{lists[0]}' {path} > {path.with_suffix('.list.json')}" if lists else None,
        )
    lines = _item_lines(text, text.index("["))
    return [
        _object_record(item, path, line, json.dumps(item, ensure_ascii=False))
        for item, line in zip(whole, lines, strict=True)
    ]


def _item_lines(text: str, start: int) -> list[int]:
    """The first line of every item of the JSON list that starts at ``start``."""
    decoder, between = json.JSONDecoder(), re.compile(r"[\s,]*")
    lines: list[int] = []
    line, counted, position = 1, 0, start + 1
    while True:
        position = between.match(text, position).end()  # type: ignore[union-attr]  # the pattern matches ""
        if text[position] == "]":
            return lines
        line, counted = line + text.count("\n", counted, position), position
        lines.append(line)
        position = decoder.raw_decode(text, position)[1]


def _read_csv(path: Path) -> list[Record]:
    text = read_text(path)
    delimiter = "\t" if path.suffix.lower() in {".tsv", ".tab"} else _sniff_delimiter(text)
    before = csv.field_size_limit(sys.maxsize)
    try:
        return list(_csv_rows(path, csv.reader(StringIO(text, newline=""), delimiter=delimiter, strict=True)))
    finally:
        csv.field_size_limit(before)


def _csv_rows(path: Path, rows: Any) -> Iterator[Record]:
    header: list[str] = []
    while True:
        line = rows.line_num + 1
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise DataError(
                "this row is not CSV",
                got=f"{error} ({path}, line {line})",
                expected="quotes that open and close",
            ) from None
        if row is None:
            return
        if not row:
            continue
        if not header:
            header = [name.strip() for name in row]
            if "" in header or len(set(header)) != len(header):
                raise DataError(
                    "the first line does not name the columns",
                    got=f"{shorten(', '.join(map(repr, header)))} ({path}, line {line})",
                    expected="a name for each column, each one once",
                )
        elif len(row) != len(header):
            raise DataError(
                "this row has the wrong number of columns",
                got=f"{len(row)}: {shorten(', '.join(row))} ({path}, line {line})",
                expected=f"{len(header)}: {', '.join(header)}",
                hint="put quotes around a field that holds the delimiter or a line break",
            )
        else:
            yield Record(dict(zip(header, row, strict=True)), str(path), line)


def _sniff_delimiter(text: str) -> str:
    # csv.Sniffer guesses from the fields and takes letters for delimiters; the header tells enough.
    header = text.lstrip("\r\n").split("\n", 1)[0]
    return max(",\t;|", key=lambda mark: len(next(csv.reader([header], delimiter=mark), [])))


def _read_parquet(path: Path) -> list[Record]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import read_table
    except ImportError:
        raise MissingExtraError.of("pyarrow", "data", "to read Parquet files") from None
    try:
        rows = read_table(path).to_pylist()
    except (ArrowException, OSError) as error:
        raise DataError(
            "the file cannot be read as Parquet",
            got=f"{shorten(str(error))} ({path})",
            expected="a Parquet file",
        ) from None
    return [Record(row, str(path), number) for number, row in enumerate(rows, start=1)]


def _read_plain(path: Path) -> list[Record]:
    return [Record({"text": text}, str(path), line) for text, line in split_paragraphs(read_text(path))]


READERS: dict[str, Callable[[Path], list[Record]]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".tab": _read_csv,
    ".parquet": _read_parquet,
    ".txt": _read_plain,
}
