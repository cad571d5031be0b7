"""What the HTTP front asks of an engine: the embedded one, or another server behind this one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Protocol

from constrained_adapters.serving.choice import Choice
from constrained_adapters.serving.requests import GenerationBody


class Engine(Protocol):
    """Writes answers with the adapters of a choice."""

    name: str
    """``local``, ``vllm`` …"""

    async def start(self) -> None:
        """Get ready."""

    async def stop(self) -> None:
        """Finish what runs, within the limit that was set."""

    async def is_ready(self) -> bool:
        """Whether requests would be answered."""

    def models(self) -> list[str]:
        """Names of the domains that are served."""

    def routes(self) -> bool:
        """Whether the model ``auto`` is served."""

    async def choose(self, request: GenerationBody) -> Choice:
        """The adapters that a request names, or that the router picks for it."""

    async def answer(self, request: GenerationBody, choice: Choice) -> dict[str, Any]:
        """The whole reply; a caller that is cancelled frees what the request held."""

    def stream(self, request: GenerationBody, choice: Choice) -> AsyncIterator[dict[str, Any]]:
        """The chunks of a reply, counts of tokens last; closing it frees what the request held."""

    async def load(self, name: str, folder: Path, *, replace: bool) -> None:
        """Serve the adapter in ``folder`` under ``name``; what runs keeps the version it began with."""

    async def unload(self, name: str) -> None:
        """Serve ``name`` no more; what runs is finished."""

    def gauges(self) -> dict[str, float]:
        """Present figures for ``/metrics``."""
