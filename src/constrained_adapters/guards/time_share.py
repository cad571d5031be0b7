"""When may a guard look again? So that it keeps its share of the time, however fast the model is."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import final

FEWEST_TOKENS = 8
"""Shorter answers say too little: a check that could not write as many is not made."""


@dataclass(frozen=True)
class Plan:
    """The next check.

    Args:
        step: Optimizer steps done when it is due; None: none is affordable.
        num_tokens: Longest answer.
    """

    step: int | None
    num_tokens: int


@final
@dataclass
class TimeShare:
    """Spreads checks evenly over what is left of a run, the last at its end, within a share of its time.

    With T the seconds that the whole run will have taken, w the share, g the seconds that the guard has
    taken and c(n) the cost of a check that writes n tokens, ⌊(w · T − g) / c(n)⌋ checks are left. Where
    that gives fewer than ``wanted``, answers are cut to half as many tokens, down to 8. No check
    is made while g + c would be over w times the seconds so far, so the share is kept at every moment, but
    for the very first answers, which are needed before training and count too.

    Args:
        share: w, over 0 and under 1.
        max_tokens: Longest answer.
        max_checks: Most checks of a run.
        wanted: Checks for which answers are cut.
        checks: Made so far, without the first answers.
        spent: g so far.
        train_seconds: Seconds of training itself so far, beside g.
        step_seconds: Of each of the last steps.
    """

    share: float
    max_tokens: int
    max_checks: int
    wanted: int = 4
    checks: int = 0
    spent: float = 0.0
    train_seconds: float = 0.0
    per_token: float = 0.0
    step_seconds: list[float] = field(default_factory=list)

    def note_step(self, seconds: float) -> None:
        """A step of training took so long."""
        self.train_seconds += seconds
        self.step_seconds = [*self.step_seconds[-19:], seconds]

    def note_check(self, seconds: float, num_tokens: int) -> None:
        """A check took so long; ``num_tokens`` passes of the model."""
        self.spent += seconds
        self.checks += self.per_token > 0.0
        each = seconds / max(num_tokens, 1)
        self.per_token = each if self.per_token == 0.0 else 0.5 * (self.per_token + each)

    def note_other(self, seconds: float) -> None:
        """Something else that the guard did, such as writing a checkpoint."""
        self.spent += seconds

    @property
    def taken(self) -> float:
        """The guard's share of the time so far, 0 … 1."""
        return self.spent / max(self.spent + self.train_seconds, 1e-9)

    def cost(self, num_tokens: int) -> float:
        """Seconds that a check is likely to take."""
        return self.per_token * num_tokens

    def is_affordable(self, num_tokens: int) -> bool:
        """Whether the share would be kept right after a check."""
        cost = self.cost(num_tokens)
        return self.spent + cost <= self.share * (self.train_seconds + self.spent + cost)

    def plan(self, step: int, num_steps: int, *, sooner: bool = False) -> Plan:
        """When to look next.

        Args:
            step: Optimizer steps done.
            num_steps: Of the run.
            sooner: Halve the wait: something is suspect.
        """
        left = num_steps - step
        if left <= 0 or not self.step_seconds or self.per_token == 0.0:
            return Plan(None, self.max_tokens)
        typical = sorted(self.step_seconds)[len(self.step_seconds) // 2]
        whole = self.train_seconds + left * typical
        # w of T, T itself with the guard's time: g + c ≤ w (whole + g + c).
        budget = self.share * whole / (1.0 - self.share) - self.spent
        tokens = self.max_tokens
        while tokens // 2 >= FEWEST_TOKENS and budget < self.wanted * self.cost(tokens):
            tokens //= 2
        number = min(int(budget / self.cost(tokens)), self.max_checks - self.checks, left)
        if number < 1:
            return Plan(None, tokens)
        wait = left / number / (2.0 if sooner else 1.0)
        return Plan(step + max(1, math.floor(wait)), tokens)
