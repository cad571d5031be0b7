"""The sentence at the top of the report, drawn from the numbers alone, whoever wins."""

from __future__ import annotations

from collections.abc import Sequence

from constrained_adapters.report.measures import (
    Plasticity,
    chance_margin_points,
    contestants,
    focus_method,
    plasticity,
    row_mean,
    summary,
)
from constrained_adapters.report.numbers import decimal, percent, ratio
from constrained_adapters.results import MethodResult, RunResult

DRIFT_TIE_POINTS = 0.05
"""Drifts that are equal at the precision shown are called equal."""


def verdict(result: RunResult) -> str:
    """Return one sentence: what was forgotten, what was learned, and what it cost in general ability.

    The sentence is about the ``crma`` method where there is one, else about the method that
    drifted least; each clause names the strongest other method, also where that one wins.
    """
    if not result.methods:
        return "No method was run, so there is nothing to compare."
    method = focus_method(result.methods)
    others = [other for other in contestants(result.methods) if other is not method]
    learned = plasticity(result.methods)
    if len(method.domains) < 2 or summary(method, "drift_percent") is None:
        sentence = _without_drift(method, others, learned)
    else:
        good_drift, forgot = _forgot(method, others)
        good_learned, learnt = _learned(method, others, learned)
        joiner = "and" if good_drift == good_learned else "but"
        subject = "" if forgot.startswith(f"{method.name} forgot") else f"{method.name} "
        sentence = f"{forgot}, {joiner} {subject}{learnt}" if learnt else forgot
    return f"{sentence}{_general(method)}."


def noise_note(result: RunResult) -> str:
    """Return what a reader should know before trusting a small difference."""
    note = "One run with one seed and one order of the domains."
    margin = chance_margin_points(result.methods[0]) if result.methods else None
    if margin is not None:
        items = sum(record.num_test for record in result.methods[0].records)
        note += (
            f" Average accuracies rest on {items:,} test items: differences under about "
            f"{decimal(margin, 1)} points may be chance (95 % interval)."
        )
    return note


def _forgot(method: MethodResult, others: Sequence[MethodResult]) -> tuple[bool, str]:
    own = summary(method, "drift_percent") or 0.0
    shown = percent(own, sign=True)
    rivals = [(drift, other) for other in others if (drift := summary(other, "drift_percent")) is not None]
    if not rivals:
        direction = (
            "rose by" if own >= DRIFT_TIE_POINTS else "fell by" if own <= -DRIFT_TIE_POINTS else "changed by"
        )
        return own < DRIFT_TIE_POINTS, (
            f"After {len(method.domains)} domains, {method.name}’s loss on the finished ones {direction} "
            f"{percent(abs(own))} on average since each was learned"
        )
    rival_drift, rival = min(rivals, key=lambda pair: pair[0])
    rival_shown = f"{percent(rival_drift, sign=True)} for {rival.name}{_keeps_data(rival, method)}"
    against = f"drift {shown} against {rival_shown}"
    if abs(own - rival_drift) < DRIFT_TIE_POINTS:
        return True, f"{method.name} and {rival.name} forgot equally little (drift {shown})"
    if own < rival_drift:
        return True, f"{method.name} forgot least ({against})"
    return False, f"{method.name} forgot more than {rival.name} ({against})"


def _learned(method: MethodResult, others: Sequence[MethodResult], measure: Plasticity) -> tuple[bool, str]:
    own = measure.values.get(method.name)
    if own is None:
        return True, ""
    rivals = [(value, other) for other in others if (value := measure.values.get(other.name)) is not None]
    if not rivals:
        base = row_mean(method, "exact_match", 0)
        start = f" (base {ratio(base)})" if base is not None else ""
        what = "each domain" if len(method.domains) > 1 else method.domains[0]
        mean = " on average" if len(method.domains) > 1 else ""
        if measure.short != "exact match":
            return True, f"cut the loss of {what} by {percent(own)}{mean}"
        return True, f"learned {what} to {percent(own)} exact match{mean}{start}"
    best, rival = max(rivals, key=lambda pair: pair[0])
    against = f"{percent(own)} {measure.short} against {percent(best)} for {rival.name}"
    if abs(own - best) < measure.margin:
        return True, f"learned about as much ({against})"
    return own > best, f"learned {'more' if own > best else 'less'} ({against})"


def _without_drift(method: MethodResult, others: Sequence[MethodResult], measure: Plasticity) -> str:
    reason = (
        "with a single domain there is nothing to forget yet"
        if len(method.domains) < 2
        else "its forgetting was not measured"
    )
    _, learnt = _learned(method, others, measure)
    if not learnt:
        return f"{method.name} was trained on {len(method.domains)} domains; {reason}"
    return f"{method.name} {learnt}; {reason}"


def _general(method: MethodResult) -> str:
    before, after = summary(method, "general_perplexity_base"), summary(method, "general_perplexity")
    if before is None or after is None or before <= 0:
        return ""
    change = percent(100 * (after / before - 1), sign=True)
    return f"; its perplexity on general text went from {decimal(before)} to {decimal(after)} ({change})"


def _keeps_data(rival: MethodResult, method: MethodResult) -> str:
    only_rival = (summary(rival, "keeps_old_data") or 0) > 0 and not (
        summary(method, "keeps_old_data") or 0
    ) > 0
    return ", which keeps old data" if only_rival else ""
