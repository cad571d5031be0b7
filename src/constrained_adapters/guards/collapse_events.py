"""What the collapse guard writes down, as plain values for a record and as lines for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

Event = dict[str, Any]


def new_event(
    step: int,
    action: Literal["suspected", "rolled_back", "stopped", "finished"],
    reason: str,
    numbers: Mapping[str, float],
) -> Event:
    """An event: ``step`` (optimizer steps done), ``guard``, ``action``, ``reason`` and ``numbers``."""
    return {"step": step, "guard": "collapse", "action": action, "reason": reason, "numbers": dict(numbers)}


def event_line(event: Mapping[str, Any]) -> str:
    """An event for people."""
    to_step = event.get("to_step")
    changed = ", ".join(name.replace("_", " ") for name in event.get("remedies", ())) or "nothing changed"
    done = {
        "suspected": "answers become alike",
        "rolled_back": f"answers have collapsed; back to step {to_step} with {changed}",
        "stopped": f"answers have collapsed again; training ends with the model of step {to_step}",
        "finished": "the end",
    }[event["action"]]
    return f"step {event['step']}: {done} ({event['reason']})"


def report(events: Sequence[Mapping[str, Any]]) -> str:
    """All events, a line each, and what to try where training was stopped."""
    lines = [event_line(event) for event in events]
    if any(event["action"] == "stopped" for event in events):
        lines.append("Try: a lower learning rate, more varied data, or fewer steps")
    return "\n".join(["collapse guard:", *lines]) if lines else "collapse guard: nothing happened"
