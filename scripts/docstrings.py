"""A griffe extension for the documentation: plain-text habits of our docstrings, turned into Markdown.

Doctests become fenced code (Markdown would read their output as prose and links), roles such as
``:func:`name``` become code, and ``::`` before a literal block becomes a colon.
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
