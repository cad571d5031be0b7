"""A griffe extension for the documentation: plain-text habits of our docstrings, turned into Markdown.

Doctests become fenced code (Markdown would read their output as prose and links), roles such as
``:func:`name``` become code, and ``::`` before a literal block becomes a colon. What a room's ``__init__``
lists again in ``__all__`` is shown once, where it is defined.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

DOCTEST = re.compile(r"^([ ]*)>>> .*(?:\n[ ]*\S.*)*", re.MULTILINE)
ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):`~?([^`]+)`")


def to_markdown(text: str) -> str:
    """Return a docstring's text with its doctests fenced and its roles as code."""
    fenced = DOCTEST.sub(r"\1```pycon\n\g<0>\n\1```", text)
    return re.sub(r"::$", ":", ROLE.sub(r"`\1`", fenced), flags=re.MULTILINE)


class Docstrings(griffe.Extension):
    """Applies :func:`to_markdown` to every docstring as it is collected."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of ``obj``, if it has one."""
        if obj.docstring:
            obj.docstring.value = to_markdown(obj.docstring.value)

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Forget ``__all__`` in every room of ``pkg``."""
        rooms = [pkg]
        while rooms:
            room = rooms.pop()
            room.exports = None
            rooms.extend(module for module in room.modules.values() if not module.is_alias)
