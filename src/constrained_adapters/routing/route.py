"""What a router says of one prompt."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

BASE = "base"
"""What answers where no domain fits; no domain can have this name."""


@dataclass(frozen=True)
class Route:
    """The router's decision on one prompt, with what it rests on.

    Args:
        domain: The likeliest domain; None where none fits, so that the base answers.
        weights: What answers: ``{domain: 1.0}``, a mix where one was asked for, or nothing for the base.
        probabilities: Of each domain and of ``"base"``; they add up to 1.
        distances: For each domain the squared distance of the prompt, as a multiple of the mean over the
            domain's own prompts.
        thresholds: For each domain the distance from which on it is not chosen.
        keywords: Words of the user's lists that decided, if any.
        reason: One sentence.
        words: Words of the prompt with their share in the decision for ``domain`` against the base, largest
            first; only where they were asked for.
    """

    domain: str | None
    weights: dict[str, float]
    probabilities: dict[str, float]
    distances: dict[str, float]
    thresholds: dict[str, float]
    keywords: tuple[str, ...] = ()
    reason: str = ""
    words: tuple[tuple[str, float], ...] = field(default=())

    @property
    def probability(self) -> float:
        """Of what was chosen."""
        return self.probabilities[self.domain or BASE]

    def facts(self) -> dict[str, Any]:
        """The decision as JSON can hold it, without the prompt's words."""
        return {
            "domain": self.domain or BASE,
            "weights": {name: round(weight, 4) for name, weight in self.weights.items()},
            "probabilities": {name: round(value, 4) for name, value in self.probabilities.items()},
            "reason": self.reason,
        }
