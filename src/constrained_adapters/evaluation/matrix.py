"""Metrics of a sequence of domains, as pure functions on the matrix R.

``R[i][j]`` is the score on domain j after training domain i. R has T + 1 rows and T columns: row 0
is the base before any training, so the diagonal of domain j (counted from 1) is ``R[j][j - 1]``
in Python. Functions never change their input, and accept any real score unless they say otherwise.

Cells that are None:

* A column that is None throughout is a domain for which the metric does not exist (running text
  has no exact match). It is left out of every mean; where nothing is left, the result is ``nan``.
* A single None that a metric needs is a hole in the measurement: :class:`UsageError` names the cell.
  Cells that a metric does not need may be None.

With one domain (T = 1) nothing came before or after it: backward transfer, forward transfer,
forgetting and drift are 0 by definition.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from constrained_adapters.errors import UsageError

Rows = Sequence[Sequence[float | None]]


def accuracy(r: Rows) -> float:
    """Mean score over all domains at the end of the sequence: ``ACC = 1/T Σ_j R[T, j]``.

    Args:
        r: (T + 1) × T scores; higher is better.

    Returns:
        A number in the range of the scores.

    Raises:
        UsageError: R has a wrong shape, or a cell of its last row is missing.

    Source: Lopez-Paz and Ranzato, GEM (arXiv 1706.08840), equation 2.

    >>> accuracy([[0.0, 0.1], [0.8, 0.2], [0.6, 0.9]])
    0.75
    """
    last = num_domains(r)
    return _mean(_cell(r, last, j) for j in _measured(r))


def backward_transfer(r: Rows) -> float:
    """How later domains changed the earlier ones: ``BWT = 1/(T-1) Σ_{j<T} (R[T, j] - R[j, j])``.

    Args:
        r: (T + 1) × T scores; higher is better.

    Returns:
        Negative where domains were forgotten, positive where they improved; 0 for T = 1.

    Raises:
        UsageError: R has a wrong shape, or a needed cell is missing.

    Source: GEM (arXiv 1706.08840), equation 3.

    >>> round(backward_transfer([[0.0, 0.1], [0.8, 0.2], [0.6, 0.9]]), 6)
    -0.2
    """
    last = num_domains(r)
    return _mean_over_earlier(r, lambda j: _cell(r, last, j) - _cell(r, j, j))


def forward_transfer(r: Rows) -> float:
    """What earlier domains gave to later ones: ``FWT = 1/(T-1) Σ_{j>1} (R[j-1, j] - R[0, j])``.

    Args:
        r: (T + 1) × T scores; higher is better.

    Returns:
        Positive where a domain was scored better just before it was taught than by the base;
        0 for T = 1.

    Raises:
        UsageError: R has a wrong shape, or a needed cell is missing.

    Source: GEM (arXiv 1706.08840), equation 4. Deviation: the paper's reference is a model with
    random weights; here it is the base model, which is what the user starts from.

    >>> round(forward_transfer([[0.0, 0.1], [0.8, 0.2], [0.6, 0.9]]), 6)
    0.1
    """
    size = num_domains(r)
    if size == 1:
        return 0.0
    return _mean(_cell(r, j - 1, j) - _cell(r, 0, j) for j in _measured(r) if j > 1)


def forgetting(r: Rows) -> float:
    """Fall from a domain's best score: ``F = 1/(T-1) Σ_{j<T} (max_{1≤i<T} R[i, j] - R[T, j])``.

    Args:
        r: (T + 1) × T scores; higher is better.

    Returns:
        0 or more where nothing was gained at the end; negative where the last domain improved the
        earlier ones; 0 for T = 1.

    Raises:
        UsageError: R has a wrong shape, or a needed cell is missing. Rows before domain j may be
            missing (they are passed over); those from its own row on may not.

    Source: Chaudhry et al., Riemannian Walk (ECCV 2018, arXiv 1801.10112), section 3. As there,
    rows before a domain's own count; row 0 does not, because the base was never taught.

    >>> forgetting([[0.9, 0.1, 0.0], [0.5, 0.2, 0.0], [0.75, 0.5, 0.0], [0.5, 0.25, 1.0]])
    0.25
    """
    last = num_domains(r)

    def fall(j: int) -> float:
        before = [value for i in range(1, j) if (value := r[i][j - 1]) is not None]
        return max([*before, *(_cell(r, i, j) for i in range(j, last))]) - _cell(r, last, j)

    return _mean_over_earlier(r, fall)


def drift_percents(losses: Rows) -> list[float | None]:
    """Relative change of each domain's loss since it was learnt: ``100 (L[T, j] - L[j, j]) / L[j, j]``.

    Args:
        losses: (T + 1) × T losses in nats per token, 0 or more; lower is better.

    Returns:
        T numbers in percent, -100 or more; the last domain's is 0, an unmeasured one's None. A loss
        that was 0 when learnt gives ``inf``, or 0 where it is still 0.

    Raises:
        UsageError: L has a wrong shape, or a needed cell is missing.

    >>> drift_percents([[4.0, 4.0], [2.0, 4.0], [2.5, 1.0]])
    [25.0, 0.0]
    """
    last = num_domains(losses)
    drifts: list[float | None] = [None] * last
    for j in _measured(losses):
        then, now = _cell(losses, j, j), _cell(losses, last, j)
        drifts[j - 1] = 100.0 * (now - then) / then if then else (math.inf if now else 0.0)
    return drifts


def drift_percent(losses: Rows) -> float:
    """Mean of :func:`drift_percents` over the domains before the last; 0 for T = 1.

    Args:
        losses: (T + 1) × T losses in nats per token, 0 or more; lower is better.

    Raises:
        UsageError: L has a wrong shape, or a needed cell is missing.

    >>> drift_percent([[4.0, 4.0, 4.0], [2.0, 4.0, 4.0], [2.2, 1.0, 4.0], [2.5, 1.25, 1.0]])
    25.0
    """
    drifts = drift_percents(losses)[:-1]
    return _mean(drift for drift in drifts if drift is not None) if drifts else 0.0


def learned(r: Rows) -> float:
    """Mean score of each domain right after it was taught: ``1/T Σ_j R[j, j]``.

    Args:
        r: (T + 1) × T scores.

    Returns:
        A number in the range of the scores.

    Raises:
        UsageError: R has a wrong shape, or a cell of the diagonal is missing.

    >>> learned([[0.0, 0.0], [0.5, 0.0], [0.25, 1.0]])
    0.75
    """
    num_domains(r)
    return _mean(_cell(r, j, j) for j in _measured(r))


def plasticity_percent(method: Rows, reference: Rows) -> float:
    """How much a method learns beside a reference: ``100 · learned(method) / learned(reference)``.

    The usual reference is plain LoRA taught each domain alone. Over 100 the method learns more.

    Args:
        method: (T + 1) × T scores, 0 or more; higher is better.
        reference: Scores of the reference on the same domains in the same order.

    Returns:
        Percent, 0 or more; ``nan`` where the reference learnt nothing (0).

    Raises:
        UsageError: The shapes differ, or a cell of a diagonal is missing.

    >>> plasticity_percent([[0.0, 0.0], [0.4, 0.0], [0.2, 0.5]], [[0.0, 0.0], [0.5, 0.0], [0.0, 0.5]])
    90.0
    """
    if num_domains(method) != num_domains(reference) or _measured(method) != _measured(reference):
        raise UsageError(
            "plasticity compares two methods on the same domains",
            got=f"domains measured: {_measured(method)} of {len(method[0])} and "
            f"{_measured(reference)} of {len(reference[0])}",
            expected="matrices of one shape with the same domains measured",
        )
    base = learned(reference)
    return 100.0 * learned(method) / base if base else math.nan


def intransigence(method: Rows, reference: Rows) -> float:
    """What a method could not learn: ``I = 1/T Σ_j (a*_j - R[j, j])``.

    ``a*_j`` is the score on domain j of a reference that learnt all domains at once. Chaudhry et al. take a
    reference on the domains up to j for each j; here it is one, on all of them, scored at the end.

    Args:
        method: (T + 1) × T scores; higher is better.
        reference: Of joint training, on the same domains in the same order.

    Returns:
        In the range of the scores' differences; below 0 the method learnt more than the reference.

    Raises:
        UsageError: The shapes differ, or a needed cell is missing.

    Source: Chaudhry et al., Riemannian Walk (ECCV 2018, arXiv 1801.10112), section 3.

    >>> round(intransigence([[0.0, 0.0], [0.5, 0.0], [0.2, 0.7]], [[0.0, 0.0], [0.8, 0.8], [0.8, 0.8]]), 6)
    0.2
    """
    last = num_domains(reference)
    if num_domains(method) != last or _measured(method) != _measured(reference):
        raise UsageError(
            "intransigence compares two methods on the same domains",
            got=f"domains measured: {_measured(method)} and {_measured(reference)}",
            expected="matrices of one shape with the same domains measured",
        )
    return _mean(_cell(reference, last, j) - _cell(method, j, j) for j in _measured(method))


def perplexity(nats: float) -> float:
    """``exp(nats)`` of a mean loss per token; 1 is certainty; ``inf`` past the range of floats.

    >>> perplexity(0.0)
    1.0
    """
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf


def num_domains(r: Rows) -> int:
    """Return T of a matrix of T + 1 rows and T columns.

    Raises:
        UsageError: The shape is another.

    >>> num_domains([[0.0, 0.0], [0.5, 0.0], [0.25, 1.0]])
    2
    """
    size = len(r) - 1
    widths = sorted({len(row) for row in r})
    if size < 1 or widths != [size]:
        raise UsageError(
            "R needs one row for the base and one per domain",
            got=f"{len(r)} rows of {', '.join(map(str, widths)) or 'no'} columns",
            expected=f"T + 1 rows of T columns, such as {max(size, 1) + 1} × {max(size, 1)}",
        )
    return size


def _measured(r: Rows) -> list[int]:
    """Domains (from 1) of which any cell was measured."""
    return [j for j in range(1, len(r)) if any(row[j - 1] is not None for row in r)]


def _cell(r: Rows, i: int, j: int) -> float:
    value = r[i][j - 1]
    if value is None:
        raise UsageError(
            "a score that the metric needs was not measured",
            got=f"R[{i}, {j}] is None",
            expected="a number, or a column that is None throughout",
            hint=f"score domain {j} after training domain {i}" if i else f"score domain {j} with the base",
        )
    return float(value)


def _mean_over_earlier(r: Rows, term: Callable[[int], float]) -> float:
    """Mean of ``term(j)`` over the measured domains before the last; 0 for T = 1."""
    size = num_domains(r)
    return 0.0 if size == 1 else _mean(term(j) for j in _measured(r) if j < size)


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return math.fsum(numbers) / len(numbers) if numbers else math.nan
