"""Predicted against measured forgetting: does a memory's forecast hold? Needs no torch.

A memory predicts how much one more domain raises a finished domain's loss; the R matrix says how much it
did. The two are paired and compared. The quadratic forecast leaves out the first-order term and everything
between layers, so its calibration is a result to report, not to assume.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from constrained_adapters.evaluation.matrix import Rows

BASE_NAMES = frozenset({"base", "general"})
"""Names under which a memory of the base's own knowledge predicts; measured on general text."""

FACTOR = 1.5
"""A forecast within this factor of what was measured counts as good."""


@dataclass(frozen=True)
class Pair:
    """The rise of one finished domain's loss while one more was learnt, in nats per token.

    Args:
        trained: The domain that was learnt.
        finished: Whose loss rose.
        predicted: By the finished domain's memory.
        measured: After minus before, on test items; None where it was not measured.
        interval: Of ``measured``, 95 % over the items; None where they were not kept.
    """

    trained: str
    finished: str
    predicted: float
    measured: float | None
    interval: tuple[float, float] | None = None

    @property
    def ratio(self) -> float | None:
        """Predicted over measured; None unless both rise, where it says something."""
        if self.measured is None or self.predicted <= 0.0 or self.measured <= 0.0:
            return None
        return self.predicted / self.measured

    @property
    def is_within(self) -> bool:
        """Whether predicted and measured have one sign and differ by at most :data:`FACTOR`, or are equal."""
        if self.measured is None:
            return False
        low, high = sorted((abs(self.predicted), abs(self.measured)))
        return self.predicted * self.measured >= 0.0 and high <= FACTOR * low

    @property
    def is_inside(self) -> bool | None:
        """Whether the forecast lies where other items of the same kind could have put the measurement."""
        return None if self.interval is None else self.interval[0] <= self.predicted <= self.interval[1]


@dataclass(frozen=True)
class Calibration:
    """How well all forecasts of a sequence held.

    Args:
        num_pairs: Pairs with a measurement.
        num_rising: Those in which both rise.
        ratio: Median of predicted / measured over these; ``nan`` without any.
        share_within: Share of all pairs within :data:`FACTOR`, 0 … 1; ``nan`` without any.
        num_bounded: Pairs whose measurement has an interval.
        share_inside: Share of these whose forecast lies in it; ``nan`` without any. A rise that is all noise
            cannot be foretold to a factor.
        rank_correlation: Spearman's ρ over all pairs, -1 … 1; ``nan`` where it is not defined.
    """

    num_pairs: int
    num_rising: int
    ratio: float
    share_within: float
    num_bounded: int
    share_inside: float
    rank_correlation: float


def measured_increases(
    losses: Rows, general_nats: Sequence[float | None], domains: Sequence[str], trained: int
) -> dict[str, float]:
    """How much each finished domain's mean loss rose while one domain was learnt: ``L[i, j] - L[i-1, j]``.

    Args:
        losses: (T + 1) × T losses in nats per token, row 0 the base; rows after ``trained`` may be absent.
        general_nats: Mean loss on general text after 0, 1 … domains, or nothing.
        domains: Names in order.
        trained: Which domain was learnt, counted from 1; those before it are finished.

    Returns:
        Nats per token by domain, and ``base`` for general text; what was not measured is left out.

    >>> measured_increases([[4.0, 4.0], [2.0, 4.0], [2.5, 1.0]], [3.0, 3.0, 3.25], ["law", "tax"], 2)
    {'base': 0.25, 'law': 0.5}
    """
    rises: dict[str, float] = {}
    if trained < len(general_nats):
        _add_rise(rises, "base", general_nats[trained - 1], general_nats[trained])
    if trained < len(losses):
        for j, name in enumerate(domains[: trained - 1]):
            _add_rise(rises, name, losses[trained - 1][j], losses[trained][j])
    return rises


def pairs(
    predicted: Mapping[str, Mapping[str, float]],
    measured: Mapping[str, Mapping[str, float]],
    intervals: Mapping[str, Mapping[str, tuple[float, float]]] | None = None,
) -> list[Pair]:
    """Put each forecast beside its measurement.

    Args:
        predicted: By domain learnt and finished domain (or ``base``), nats per token.
        measured: As :func:`measured_increases` gives for each domain learnt.
        intervals: Of these, where known.

    >>> pairs({"tax": {"law": 0.4}}, {"tax": {"law": 0.5, "base": 0.1}})
    [Pair(trained='tax', finished='law', predicted=0.4, measured=0.5, interval=None)]
    """
    found = []
    for trained, rises in predicted.items():
        known = measured.get(trained, {})
        for finished, value in rises.items():
            key = "base" if finished in BASE_NAMES and finished not in known else finished
            interval = (intervals or {}).get(trained, {}).get(key)
            found.append(Pair(trained, finished, value, known.get(key), interval))
    return found


def calibrate(pairs: Sequence[Pair]) -> Calibration:
    """Reduce pairs to one number per question; pairs without a (finite) measurement do not count.

    >>> calibrate([Pair("b", "a", 0.2, 0.1), Pair("c", "a", 0.3, 0.3), Pair("c", "b", 0.1, -0.1)])
    Calibration(num_pairs=3, num_rising=2, ratio=1.5, share_within=0.3333333333333333, num_bounded=0, \
share_inside=nan, rank_correlation=1.0)
    """
    known = [
        (pair, pair.measured)
        for pair in pairs
        if pair.measured is not None and math.isfinite(pair.measured) and math.isfinite(pair.predicted)
    ]
    inside = [inside for pair, _ in known if (inside := pair.is_inside) is not None]
    ratios = [ratio for pair, _ in known if (ratio := pair.ratio) is not None]
    return Calibration(
        num_pairs=len(known),
        num_rising=len(ratios),
        ratio=statistics.median(ratios) if ratios else math.nan,
        share_within=sum(pair.is_within for pair, _ in known) / len(known) if known else math.nan,
        num_bounded=len(inside),
        share_inside=sum(inside) / len(inside) if inside else math.nan,
        rank_correlation=spearman([pair.predicted for pair, _ in known], [value for _, value in known]),
    )


def spearman(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Spearman's rank correlation, equal values sharing their mean rank; ``nan`` if either is constant.

    >>> spearman([1.0, 2.0, 3.0], [10.0, 100.0, 1000.0])
    1.0
    """
    a, b = _ranks(xs), _ranks(ys)
    middle = (len(a) + 1) / 2
    covariance = math.fsum((x - middle) * (y - middle) for x, y in zip(a, b, strict=True))
    spread = math.fsum((x - middle) ** 2 for x in a) * math.fsum((y - middle) ** 2 for y in b)
    return covariance / math.sqrt(spread) if spread > 0.0 else math.nan


def _ranks(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    places: dict[float, list[int]] = {}
    for place, value in enumerate(ordered, start=1):
        places.setdefault(value, []).append(place)
    return [math.fsum(places[value]) / len(places[value]) for value in values]


def _add_rise(rises: dict[str, float], name: str, before: float | None, after: float | None) -> None:
    if before is not None and after is not None:
        rises[name] = after - before
