"""Thresholds and sizes of a diagnosis; imports no torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from constrained_adapters.config.base import Settings

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=1)]


class DiagnosisSettings(Settings):
    """From which value on a signal counts, and how much is measured.

    Attributes:
        medium_increase: Rise of the old loss in the trial, as a share, from which the risk is medium.
        high_increase: The same for high.
        high_contradictions: Share of new examples that contradict old ones from which the risk is high.
        high_kl_nats: Divergence of the token distributions from which the texts are far apart.
        low_jaccard: Overlap of the vocabularies under which the texts are far apart.
        conflict_cosine: Cosine of old and new gradients under which a step of one works against the other.
        min_confidence: From which confidence on the base's other answer is listed.
        small_data: Fewer training examples are better looked up than learnt.
        probe_examples: Examples of each side that gradients, losses and beliefs are measured on.
        trial_steps: Steps of the trial on each side; 0 leaves it out.
        trial_rate: Its learning rate.
        batch_size: Rows a step and a pass.
        max_length_tokens: Longer examples are cut.
        distribution_tokens: Most tokens of each side whose distributions are compared.
    """

    medium_increase: float = Field(default=0.05, ge=0.0)
    high_increase: float = Field(default=0.25, ge=0.0)
    high_contradictions: Share = 0.05
    high_kl_nats: float = Field(default=2.0, ge=0.0)
    low_jaccard: Share = 0.3
    conflict_cosine: float = Field(default=0.0, ge=-1.0, le=1.0)
    min_confidence: Share = 0.9
    small_data: Count = 100
    probe_examples: Count = 32
    trial_steps: int = Field(default=6, ge=0)
    trial_rate: float = Field(default=2e-3, gt=0.0)
    batch_size: Count = 8
    max_length_tokens: int = Field(default=256, ge=8)
    distribution_tokens: Count = 200_000
