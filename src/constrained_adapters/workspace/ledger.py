"""The append-only list of what happened to a method's folder."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from constrained_adapters.errors import WorkspaceError
from constrained_adapters.workspace.atomic import disk_errors, sync


class Ledger:
    """The append-only list of what happened in a workspace: one JSON object a line.

    A line that a crash cut off at the end is not read, and removed by the next :meth:`append`.
    Fields that this version does not know are handed on as they are.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, entry: Mapping[str, Any]) -> None:
        """Add an entry, with the ``date`` (UTC, ISO 8601) where it has none; on disk when this returns.

        Raises:
            WorkspaceError: No space left, or the file is damaged before its last line.
        """
        dated = {"date": datetime.now(UTC).isoformat(timespec="seconds"), **entry}
        line = json.dumps(dated, ensure_ascii=False, allow_nan=False) + "\n"
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            whole = self._content()
            with self.path.open("ab") as file:
                # A torn tail goes; so will what a full disk lets through of this line.
                file.truncate(len(whole))
                file.write((b"\n" if whole and not whole.endswith(b"\n") else b"") + line.encode())
                file.flush()
                os.fsync(file.fileno())
            sync(self.path.parent)

    def entries(self) -> list[dict[str, Any]]:
        """Return all entries, oldest first; an empty list where there is no ledger yet.

        Raises:
            WorkspaceError: A line before the last is damaged.
        """
        return [json.loads(line) for line in self._content().splitlines()]

    def standing(self) -> dict[str, dict[str, Any]]:
        """The entry of each domain that is learnt, in the order in which they were learnt.

        A later entry with the domain's name in its list ``removed`` takes it back: the domain was undone.

        Raises:
            WorkspaceError: A line before the last is damaged.
        """
        found: dict[str, dict[str, Any]] = {}
        for entry in self.entries():
            for name in entry.get("removed", ()):
                found.pop(name, None)
            if "domain" in entry:
                found[str(entry["domain"])] = entry
        return found

    def _content(self) -> bytes:
        """The file without a torn last line."""
        content = self.path.read_bytes() if self.path.exists() else b""
        lines = content.splitlines(keepends=True)
        for number, line in enumerate(lines, 1):
            try:
                whole = isinstance(json.loads(line), dict)
            except ValueError:
                whole = False
            if not whole:
                if number == len(lines):
                    return content[: len(content) - len(line)]
                raise WorkspaceError(
                    "the ledger is damaged",
                    got=f"{line[:60]!r} ({self.path}, line {number})",
                    expected="one JSON object a line",
                    hint="repair or remove this line",
                )
        return content
