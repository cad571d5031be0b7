"""Cross-entropy with label smoothing over the scored tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

from torch import Tensor, nn

from constrained_adapters.errors import ConfigError
from constrained_adapters.objectives.base import WEIGHT, Teachers
from constrained_adapters.objectives.rows import LabelledRow


@final
class CrossEntropy:
    """Σ_i w_i · [(1 − ε) · (−log p_i(y_i)) + ε/v · Σ_c (−log p_i(c))], w_i the rows' weights, 1 without any.

    Only scored positions reach this loss, so padding and prompts are never smoothed: taking the uniform part
    over ignored positions too, a known mistake, would teach the model to be unsure of what it is not
    asked for.

    Source: Szegedy et al. 2016 (arXiv 1512.00567), section 7. Cost: O(n · v), as without smoothing.

    Args:
        label_smoothing: ε, 0 … 1 (1 excluded).

    Raises:
        ConfigError: ε is out of range.
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        if not 0.0 <= label_smoothing < 1.0:
            raise ConfigError(
                "label smoothing is out of range",
                got=f"label_smoothing = {label_smoothing!r}",
                expected="0 or more, and under 1",
                hint="0.1",
            )
        self.label_smoothing = label_smoothing

    def prepare(self, rows: Sequence[LabelledRow], teachers: Teachers) -> list[LabelledRow]:
        """Nothing."""
        return list(rows)

    def loss(self, logits: Tensor, targets: Tensor, extras: Mapping[str, Tensor]) -> Tensor:
        """The sum over n positions of logits (n, v)."""
        if WEIGHT not in extras:
            return nn.functional.cross_entropy(
                logits, targets, reduction="sum", label_smoothing=self.label_smoothing
            )
        each = nn.functional.cross_entropy(
            logits, targets, reduction="none", label_smoothing=self.label_smoothing
        )
        return (each * extras[WEIGHT]).sum()
