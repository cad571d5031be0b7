"""When do a model's answers collapse? Several measures, each against a limit and the model's own start."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, final

from constrained_adapters.config.collapse import PreventCollapseConfig
from constrained_adapters.evaluation.diversity import Diversity, length_drift

State = Literal["healthy", "suspect", "collapsed"]

CLEARLY_WORSE = 0.2
"""A measure counts only past its start by this part of the way from the start to the worst possible."""

_BAD_WHEN_LOW = {"unique_trigram_ratio": "min_unique_trigram_ratio"}
_BAD_WHEN_HIGH = {
    "self_bleu": "max_self_bleu",
    "identical_ratio": "max_identical_ratio",
    "repetition_ratio": "max_repetition_ratio",
}
ENTROPY = "output_entropy_nats"


@dataclass(frozen=True)
class Reading:
    """What one check saw.

    Args:
        step: Optimizer steps done.
        diversity: Of the answers.
        output_entropy_nats: Mean over the generated positions.
        num_tokens: Where answers were cut.
    """

    step: int
    diversity: Diversity
    output_entropy_nats: float
    num_tokens: int

    def numbers(self) -> dict[str, float]:
        """All measures that there are, by name."""
        found = {**asdict(self.diversity), ENTROPY: self.output_entropy_nats}
        return {name: float(value) for name, value in found.items() if value is not None}


@dataclass(frozen=True)
class Limit:
    """Where a measure raises an alarm, and where it is lowered again.

    Args:
        alarm: At or past it the measure is raised.
        clear: Short of it a raised measure is lowered.
        low: Whether small values are the bad ones.
    """

    alarm: float
    clear: float
    low: bool

    def is_raised(self, value: float, before: bool) -> bool:
        """Whether the measure is raised now; ``before``: whether it was. What is not finite is raised."""
        if not math.isfinite(value):
            return True
        bound = self.clear if before else self.alarm
        return value < bound if self.low else value > bound


@dataclass(frozen=True)
class Verdict:
    """What a check says.

    Args:
        state: ``suspect``: a measure is raised, and it is too early to act.
        raised: Each raised measure with its limit in force.
    """

    state: State
    raised: Mapping[str, Limit]

    def reason(self, reading: Reading, start: Reading) -> str:
        """One line that says what is raised, beside the start."""
        now, was = reading.numbers(), start.numbers()
        parts = [
            f"{name} {now[name]:.3g} (limit {limit.alarm:.3g}, at the start {was.get(name, math.nan):.3g})"
            for name, limit in self.raised.items()
        ]
        return "; ".join(parts) or "no measure is raised"


@final
@dataclass
class CollapseDetector:
    """Says of each reading whether the answers have collapsed; remembers which measures are raised.

    An alarm at once where ``min_signals`` measures are raised; at the ``patience``-th check in a row where
    fewer are. A raised measure is lowered only where it comes back by ``hysteresis``.

    Args:
        config: Limits.
        raised: Measures that are raised now.
        streak: Checks in a row with any of them.
    """

    config: PreventCollapseConfig
    raised: set[str] = field(default_factory=set)
    streak: int = 0

    def limits(self, start: Reading) -> dict[str, Limit]:
        """The limits in force beside this start, which must be cut to the same length as the reading."""
        was, back = start.numbers(), self.config.hysteresis
        limits = {ENTROPY: _low(self.config.min_entropy_ratio * was[ENTROPY], back)}
        for name, setting in _BAD_WHEN_LOW.items():
            own = was.get(name, 1.0) * (1.0 - CLEARLY_WORSE)
            limits[name] = _low(min(getattr(self.config, setting), own), back)
        for name, setting in _BAD_WHEN_HIGH.items():
            own = was[name] + (1.0 - was[name]) * CLEARLY_WORSE
            alarm = max(getattr(self.config, setting), own)
            limits[name] = Limit(alarm, alarm - back * alarm, low=False)
        return limits

    def judge(self, reading: Reading, start: Reading) -> Verdict:
        """Take a reading in.

        Args:
            reading: Of now.
            start: Of the model before training, cut to as many tokens.
        """
        limits, now = self.limits(start), reading.numbers()
        self.raised = {
            name
            for name, value in now.items()
            if name in limits and limits[name].is_raised(value, name in self.raised)
        }
        self.streak = self.streak + 1 if self.raised else 0
        state: State = "healthy"
        if self.raised:
            sure = len(self.raised) >= self.config.min_signals or self.streak >= self.config.patience
            state = "collapsed" if sure else "suspect"
        return Verdict(state, {name: limits[name] for name in sorted(self.raised)})

    def reset(self) -> None:
        """Forget what was raised: the model has gone back."""
        self.raised, self.streak = set(), 0

    def numbers_of(self, reading: Reading, start: Reading) -> dict[str, Any]:
        """All measures of a reading, and how far the length of answers has drifted (|ln| of a ratio)."""
        drift = length_drift(reading.diversity.mean_words, start.diversity.mean_words)
        return {**reading.numbers(), "length_drift": drift}


def _low(alarm: float, back: float) -> Limit:
    return Limit(alarm, alarm + back * alarm, low=True)
