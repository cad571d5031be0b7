"""A row of a data file with its place, and what every reader does alike. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from constrained_adapters.errors import DataError, nearest


@dataclass(frozen=True)
class Record:
    """One row of a data file.

    Args:
        fields: Column name to value, as read.
        path: The file (or hub data set) it stands in.
        line: Its first line in the file, from 1; its row, from 1, where the format has no lines.
    """

    fields: dict[str, Any]
    path: str
    line: int

    @property
    def place(self) -> str:
        """File and line, as errors name them."""
        return f"{self.path}, line {self.line}"


def refuse_missing(path: Path) -> NoReturn:
    """Say that a path does not exist, and the nearest name that does.

    Raises:
        DataError: Always.
    """
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    if folder != path.parent:
        raise DataError("no such folder", got=str(path.parent), expected=f"a folder in {folder}")
    raise DataError(
        "no such data file",
        got=str(path),
        expected="a file, a folder of files, 'packaged:NAME' or a hub data set",
        hint=nearest_path(path),
    )


def nearest_path(path: Path) -> str | None:
    """Return the path in the same folder whose name is most like this one, or None."""
    names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = nearest(path.name, names)
    return str(path.parent / near) if near else None


def read_text(path: Path) -> str:
    """Return a file's text, UTF-8 with or without a byte order mark.

    Raises:
        DataError: The bytes are not UTF-8; says where and how to convert.
    """
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        utf16 = raw[:2] in (b"\xff\xfe", b"\xfe\xff")
        start = error.start + (3 if raw.startswith(b"\xef\xbb\xbf") else 0)
        line = raw[:start].count(b"\n") + 1
        encoding = "UTF-16" if utf16 else "WINDOWS-1252"
        also = "" if utf16 else " (or -f CP1251, GB18030 …: the encoding it was written in)"
        raise DataError(
            "the data file is not UTF-8",
            got=f"byte 0x{raw[start]:02x} at offset {start} ({path}, line {line})",
            expected="UTF-8 text",
            hint=f"iconv -f {encoding} -t UTF-8 {path} > {path.with_suffix('.utf8' + path.suffix)}{also}",
        ) from None


def shorten(text: str, length: int = 80) -> str:
    r"""Return ``text`` on one line of at most ``length`` characters.

    >>> shorten("one  two\nthree four", 12)
    'one two thr…'
    """
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"
