"""From signals to a level of risk, with the reason for each. Imports no torch.

What decides is what the model itself shows: in the trial the old loss rises, or facts stand against facts.
How far the texts are apart is told, and decides only where there is no trial: over ordered pairs of the
packaged domains it says next to nothing about what is forgotten (docs/guide/diagnose.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from constrained_adapters.diagnosis.settings import DiagnosisSettings

Level = Literal["low", "medium", "high"]
LEVELS: tuple[Level, ...] = ("low", "medium", "high")


@dataclass(frozen=True)
class Signals:
    """What was measured of an old and a new side.

    Args:
        kl_nats: KL(new ‖ old) of the token distributions.
        jaccard: Overlap of the vocabularies, 0 … 1.
        old_nats: The model's own loss on held-out old rows, before anything is trained, nats per token.
        new_nats: The same on new rows.
        gradient_cosine: Of the gradients of both losses by the adapted weights, −1 … 1.

    What only a model can say is None where no model was asked.

        trial_before_nats: Loss on the old rows once a trial has learnt the old side (where it was not known).
        trial_after_nats: The same after the trial has gone on with the new side; None without a trial.
    """

    kl_nats: float
    jaccard: float
    old_nats: float | None = None
    new_nats: float | None = None
    gradient_cosine: float | None = None
    trial_before_nats: float | None = None
    trial_after_nats: float | None = None

    @property
    def trial_increase(self) -> float | None:
        """Rise of the old loss in the trial, as a share of the loss before; None without a trial."""
        if self.trial_before_nats is None or self.trial_after_nats is None:
            return None
        return self.trial_after_nats / max(self.trial_before_nats, 0.05) - 1.0


@dataclass(frozen=True)
class Finding:
    """One reason.

    Args:
        signal: Its name.
        level: What it says by itself.
        decides: Whether the level of risk rests on it; else it is told only.
        text: In words, with its threshold.
    """

    signal: str
    level: Level
    decides: bool
    text: str


def assess(
    signals: Signals,
    *,
    num_new: int,
    num_contradictions: int,
    num_denied: int,
    num_asked: int,
    settings: DiagnosisSettings,
) -> list[Finding]:
    """All reasons, the deciding ones first.

    Args:
        signals: Of an old and a new side.
        num_new: New examples.
        num_contradictions: New examples that contradict old ones.
        num_denied: Answers that the model holds with confidence and the new data denies.
        num_asked: Of so many.
        settings: Thresholds.
    """
    rise, found = signals.trial_increase, []
    if rise is not None:
        level = _at_least(rise, settings.medium_increase, settings.high_increase)
        found.append(
            Finding(
                "trial",
                level,
                True,
                f"in a trial of {settings.trial_steps} steps the old loss went from "
                f"{signals.trial_before_nats:.2f} to {signals.trial_after_nats:.2f} nats ({rise:+.0%}; "
                f"medium from {settings.medium_increase:+.0%}, high from {settings.high_increase:+.0%})",
            )
        )
    if num_contradictions:
        share = num_contradictions / max(num_new, 1)
        found.append(
            Finding(
                "contradictions",
                "high" if share >= settings.high_contradictions else "medium",
                True,
                f"{num_contradictions} of {num_new} new examples contradict old ones ({share:.1%}; high from "
                f"{settings.high_contradictions:.0%})",
            )
        )
    if num_denied:
        found.append(
            Finding(
                "beliefs",
                "medium",
                True,
                f"on {num_denied} of {num_asked} questions the model is sure of another answer than the "
                f"data's (confidence from {settings.min_confidence:g})",
            )
        )
    return found + _distances(signals, settings, decide=rise is None)


def highest(findings: Sequence[Finding]) -> Level | None:
    """The highest level of those that decide; None where none does, so that nothing is known.

    >>> highest([Finding("kl", "high", False, ""), Finding("trial", "medium", True, "")])
    'medium'
    """
    return worst(each.level for each in findings if each.decides)


def worst(levels: Iterable[Level | None]) -> Level | None:
    """The highest of the levels that are known.

    >>> worst(["low", None, "medium"]), worst([None])
    ('medium', None)
    """
    return max((each for each in levels if each is not None), key=LEVELS.index, default=None)


def _distances(signals: Signals, settings: DiagnosisSettings, *, decide: bool) -> list[Finding]:
    """How far the sides are apart as texts, and as first steps."""
    far, apart = signals.kl_nats > settings.high_kl_nats, signals.jaccard < settings.low_jaccard
    decide = decide and signals.gradient_cosine is not None  # texts alone rank no forgetting
    found = [
        Finding(
            "token_kl",
            "high" if far else "low",
            decide,
            f"the token distributions are {signals.kl_nats:.2f} nats apart (high over "
            f"{settings.high_kl_nats:g})",
        ),
        Finding(
            "vocabulary",
            "medium" if apart else "low",
            decide,
            f"the vocabularies overlap by {signals.jaccard:.2f} (trouble under {settings.low_jaccard:g})",
        ),
    ]
    if signals.gradient_cosine is not None:
        against = signals.gradient_cosine < settings.conflict_cosine
        text = f"the gradients' cosine is {signals.gradient_cosine:+.2f} (conflict under "
        text += f"{settings.conflict_cosine:g})"
        found.append(Finding("gradients", "high" if against else "low", decide, text))
    if signals.old_nats is not None and signals.new_nats is not None:
        text = f"the model's own loss is {signals.old_nats:.2f} nats on the old "
        text += f"and {signals.new_nats:.2f} on the new data"
        found.append(Finding("loss", "low", False, text))
    return found


def _at_least(value: float, medium: float, high: float) -> Level:
    return "high" if value >= high else "medium" if value >= medium else "low"
