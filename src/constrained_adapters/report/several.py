"""Several runs as one, so that the report compares their methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from constrained_adapters.errors import UsageError
from constrained_adapters.results import DiagnosisRecord, MethodResult, RunResult


def combined(results: Sequence[tuple[str, RunResult]]) -> RunResult:
    """Put the methods of several runs into one record, each under ``NAME (RUN)``.

    Args:
        results: Each with what tells it from the others, such as its folder's name.

    Raises:
        UsageError: The runs did not teach the same domains in the same order.
    """
    if len(results) == 1:
        return results[0][1]
    (first_label, first), *others = results
    domains = _domains(first)
    for label, result in others:
        if _domains(result) != domains:
            raise UsageError(
                "these runs teach other domains and cannot be compared",
                got=f"{label}: {' → '.join(_domains(result))}",
                expected=f"{' → '.join(domains)}, as in {first_label}",
                hint="one report each: crma report DIR",
            )
    labels = _distinct([label for label, _ in results])
    return RunResult(
        title=f"Comparison of {len(results)} runs: {', '.join(labels)}",
        created=max(result.created for _, result in results),
        base=_by_run(labels, [result.base for _, result in results]),
        environment=_by_run(labels, [result.environment for _, result in results]),
        settings=_by_run(labels, [result.settings for _, result in results]),
        methods=[
            _renamed(method, label)
            for label, (_, result) in zip(labels, results, strict=True)
            for method in result.methods
        ],
        diagnosis=_diagnosis([result for _, result in results]),
        ledger=[
            {"run": label, **entry}
            for label, (_, result) in zip(labels, results, strict=True)
            for entry in result.ledger
        ],
    )


def _domains(result: RunResult) -> list[str]:
    return result.methods[0].domains if result.methods else []


def _by_run(labels: Sequence[str], values: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One value where all runs have the same, else one per run."""
    return (
        values[0] if all(value == values[0] for value in values) else dict(zip(labels, values, strict=True))
    )


def _diagnosis(results: Sequence[RunResult]) -> DiagnosisRecord:
    """They teach the same domains: what was known of them is said once."""
    return next((each.diagnosis for each in results if each.diagnosis.domains), DiagnosisRecord())


def _renamed(method: MethodResult, label: str) -> MethodResult:
    return method.model_copy(update={"name": f"{method.name} ({label})"})


def _distinct(labels: Sequence[str]) -> list[str]:
    """The labels, numbered where two are the same."""
    twice = {label for label in labels if labels.count(label) > 1}
    return [f"{label} {number}" if label in twice else label for number, label in enumerate(labels, 1)]
