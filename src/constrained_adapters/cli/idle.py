"""Options that were given and would not act: they are refused, not ignored."""

from __future__ import annotations

from collections.abc import Mapping

from constrained_adapters.errors import UsageError


def refuse_idle(options: Mapping[str, object], why: str) -> None:
    """Refuse the first of ``options`` that was given.

    Args:
        options: By name as typed, such as ``--method``; None and False stand for what was left out.
        why: What makes them idle, as the end of a sentence.

    Raises:
        UsageError: One was given.
    """
    for name, value in options.items():
        if value is not None and value is not False:
            raise UsageError(
                f"{name} has no effect {why}",
                got=name if value is True else f"{name} {value}",
                hint="leave it out",
            )
