"""What a domain and a method may be called."""

from __future__ import annotations

import unicodedata
from typing import Annotated

from pydantic import AfterValidator

RESERVED_NAMES = frozenset({"base", "auto", "general", "default"})


def check_domain_name(name: str) -> str:
    """Return a domain's name, NFC-normalised, or say why it cannot be one.

    Letters and digits of any script, ``_``, ``-`` and inner spaces are allowed: the name is a
    folder, an adapter and later a model's name on the server.

    >>> check_domain_name("数学")
    '数学'
    >>> check_domain_name("../x")
    Traceback (most recent call last):
    ...
    ValueError: '../x' cannot be a domain's name: use letters, digits, '_', '-' and inner spaces

    Raises:
        ValueError: The name cannot be a domain's.
    """
    normal = check_name(name, "domain")
    if normal.lower() in RESERVED_NAMES or hasattr(dict, normal):
        raise ValueError(f"{name!r} is a reserved name: choose another, such as '{normal}_domain'")
    return normal


def check_name(name: str, kind: str = "method") -> str:
    """Return what can name a folder, NFC-normalised; a method may have a name that no domain may, and ``+``.

    Raises:
        ValueError: It has characters that a folder's name should not have.
    """
    normal = unicodedata.normalize("NFC", name)
    signs = "_-+ " if kind == "method" else "_- "
    allowed = all(
        char.isalnum() or char in signs or unicodedata.category(char).startswith("M") for char in normal
    )
    if (
        not normal
        or not allowed
        or normal != normal.strip()
        or normal[0] in "-_+"
        or len(normal.encode()) > 100
    ):
        or_plus = ", '+'" if "+" in signs else ""
        raise ValueError(
            f"{name!r} cannot be a {kind}'s name: use letters, digits, '_', '-'{or_plus} and inner spaces"
        )
    return normal


DomainName = Annotated[str, AfterValidator(check_domain_name)]
