"""Which adapters answer a request, and how that came about."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from constrained_adapters.serving.failures import RequestError
from constrained_adapters.serving.registry import AUTO, BASE
from constrained_adapters.serving.requests import GenerationBody


@dataclass(frozen=True)
class Choice:
    """The domains that answer.

    Args:
        weights: By public name; empty for the base.
        routing: What the router said, where it chose.
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    routing: Mapping[str, Any] | None = None

    def facts(self) -> dict[str, Any]:
        """What every response says."""
        facts: dict[str, Any] = {"adapters": dict(self.weights)}
        return facts if self.routing is None else {**facts, "routing": dict(self.routing)}

    def header(self) -> str:
        """``law=0.7,medicine=0.3`` or ``base``; names are percent-encoded, a header being ASCII."""
        return ",".join(f"{quote(name, safe='')}={weight:g}" for name, weight in self.weights.items()) or BASE


def asked_weights(request: GenerationBody) -> dict[str, float] | None:
    """The domains that a request names itself; None where the router is to choose.

    Raises:
        RequestError: ``model`` and ``adapters`` contradict each other.
    """
    if request.adapters is not None:
        if request.model != BASE:
            raise RequestError(
                "a request names either a domain or weights of several",
                got=f"model {request.model[:80]!r} and adapters {dict(request.adapters)}",
                expected=f"model {BASE!r}, to which adapters are added",
                hint=f'"model": "{BASE}"',
                param="adapters",
            )
        return {nfc(name): weight for name, weight in request.adapters.items() if name != BASE and weight}
    if request.model == AUTO:
        return None
    return {} if request.model == BASE else {nfc(request.model): 1.0}


def nfc(name: str) -> str:
    """A name as it is kept, whichever way its accents were typed."""
    return unicodedata.normalize("NFC", name)
