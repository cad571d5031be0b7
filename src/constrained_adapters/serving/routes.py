"""The router of a run, as the engines call it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from constrained_adapters.serving.choice import Choice

if TYPE_CHECKING:
    from constrained_adapters.workspace import Workspace

Route = Callable[[list[int], str], Choice]
"""Picks the domains for a prompt: its token ids, and the last turn of the user as text."""


def run_router(workspace: Workspace, base: Any, say: Callable[[str], None]) -> Route | None:
    return None
