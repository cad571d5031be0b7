"""What guards did while a method was trained, as rows of a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from constrained_adapters.report.timelines import short
from constrained_adapters.results import MethodResult

_KNOWN = ("step", "guard", "action", "reason")


class Events(NamedTuple):
    """Headings, and one row per event in the order in which they happened."""

    headings: list[str]
    rows: list[list[str]]


def guard_events(method: MethodResult) -> Events:
    """Return every guard's event of every domain: what it saw, and what it did."""
    rows = []
    for record in method.records:
        for event in record.events:
            figures = {**_numbers(event), **(event.get("numbers") or {})}
            said = "; ".join(f"{_words(name)} {_value(value)}" for name, value in figures.items())
            action = _words(str(event.get("action", "")))
            known = [_value(event.get("step", "")), str(event.get("guard", "")), action]
            rows.append([record.name, *known, str(event.get("reason", "")), said])
    return Events(["Domain", "Step", "Guard", "Action", "Reason", "Figures"], rows)


def _numbers(event: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in event.items() if key not in {*_KNOWN, "numbers"}}


def _words(name: str) -> str:
    return name.replace("_", " ")


def _value(value: Any) -> str:
    if isinstance(value, float):
        return short(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_value(inner)}" for key, inner in value.items())
    return str(value)
