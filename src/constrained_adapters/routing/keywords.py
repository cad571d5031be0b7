"""The user's own words for a domain: a prompt that has one of them belongs to it."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path

from constrained_adapters.errors import WorkspaceError
from constrained_adapters.workspace import Workspace, atomic_write_json

KEYWORDS_FILE = "keywords.json"

# Scripts that are written without spaces: there a keyword stands anywhere, elsewhere it is a whole word.
_WITHOUT_SPACES = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)


def found_keywords(text: str, keywords: Mapping[str, Iterable[str]]) -> dict[str, tuple[str, ...]]:
    """The keywords of each domain that a text has; domains without one are left out.

    Case, width and composition of letters do not matter. A keyword is a whole word, or several; in scripts
    without spaces (Chinese, Japanese, Thai …) it may stand anywhere.

    >>> found_keywords("Kann ich KLAGEN?", {"law": ["klagen", "recht"], "数学": ["几何"]})
    {'law': ('klagen',)}
    """
    plain = _plain(text)
    found = {
        domain: tuple(word for word in words if _stands_in(_plain(word), plain))
        for domain, words in keywords.items()
    }
    return {domain: words for domain, words in found.items() if words}


def write_keywords(workspace: Workspace, domain: str, keywords: Iterable[str]) -> None:
    """Keep the keywords of a domain beside its adapter; an empty list removes them."""
    file = workspace.adapter(domain) / KEYWORDS_FILE
    words = [word.strip() for word in keywords if word.strip()]
    if words:
        atomic_write_json(file, words)
    else:
        file.unlink(missing_ok=True)


def read_keywords(folder: Path) -> tuple[str, ...]:
    """The keywords that lie in an adapter's folder.

    Raises:
        WorkspaceError: The file holds no list of words.
    """
    file = folder / KEYWORDS_FILE
    if not file.is_file():
        return ()
    try:
        words = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WorkspaceError("the keywords of a domain are damaged", got=f"{file}: {error}") from None
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise WorkspaceError(
            "the keywords of a domain are no list of words", got=str(file), expected='["court", "合同"]'
        )
    return tuple(words)


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def _stands_in(word: str, text: str) -> bool:
    if not word:
        return False
    if _WITHOUT_SPACES.search(word):
        return word in text
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text) is not None
