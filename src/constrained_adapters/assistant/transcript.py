"""What was said in a conversation, as a Markdown file."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from constrained_adapters.assistant.conversation import Turn
from constrained_adapters.errors import WorkspaceError


def default_transcript() -> Path:
    """A file in the working folder that is named for the hour."""
    return Path(f"crma-chat-{datetime.now():%Y-%m-%d-%H%M%S}.md")


def write_transcript(turns: Sequence[Turn], file: Path, *, title: str) -> Path:
    """Write a conversation down; a file that is there already is kept, and another name is taken.

    Returns:
        The file that was written.

    Raises:
        WorkspaceError: It cannot be written there.
    """
    parts = [f"# {title}\n"]
    for turn in turns:
        cut = "" if turn.whole else " …"
        parts.append(f"\n**You:** {turn.question}\n\n**{turn.choice}:** {turn.answer}{cut}\n")
    number, target = 1, file
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        while target.exists():
            number += 1
            target = file.with_stem(f"{file.stem}-{number}")
        with target.open("x", encoding="utf-8") as opened:
            opened.write("".join(parts))
    except OSError as error:
        raise WorkspaceError(
            "the transcript cannot be written",
            got=f"{target}: {error.strerror or error}",
            hint="--transcript FILE in a folder that can be written",
        ) from None
    return target
