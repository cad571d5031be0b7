"""How numbers are written: one place, so that a table, a figure and a sentence never disagree.

The minus is U+2212 and units follow a no-break space. A value that is missing or not finite is
an en dash everywhere.
"""

from __future__ import annotations

import math

MISSING = "–"
_NBSP = "\u00a0"


def finite(value: float | None) -> float | None:
    """Return ``value``, or None where it is missing, NaN or infinite."""
    return value if value is not None and math.isfinite(value) else None


def decimal(value: float | None, digits: int = 2, *, sign: bool = False) -> str:
    """Write a plain number; large ones get fewer digits and thousands are grouped.

    >>> decimal(-0.1234), decimal(12345.6), decimal(None), decimal(0.5, sign=True)
    ('−0.12', '12,346', '–', '+0.50')
    """
    number = finite(value)
    if number is None:
        return MISSING
    if abs(number) >= 10_000:
        digits = 0
    number = round(number, digits) + 0.0  # + 0.0 turns −0.0 into 0.0
    return f"{number:{'+' if sign and number else ''},.{digits}f}".replace("-", "\u2212")


def percent(value: float | None, digits: int = 1, *, sign: bool = False) -> str:
    """Write a number that is already in percent.

    >>> percent(1.44, sign=True).replace(chr(160), " ")
    '+1.4 %'
    """
    return MISSING if finite(value) is None else f"{decimal(value, digits, sign=sign)}{_NBSP}%"


def ratio(value: float | None, digits: int = 1) -> str:
    """Write a share of 0 … 1 in percent.

    >>> ratio(0.8125).replace(chr(160), " ")
    '81.2 %'
    """
    number = finite(value)
    return MISSING if number is None else percent(100 * number, digits)


def seconds(value: float | None) -> str:
    """Write a duration with the two units that matter.

    >>> [seconds(s).replace(chr(160), " ") for s in (0.042, 9.87, 151, 3720)]
    ['42 ms', '9.9 s', '2 min 31 s', '1 h 02 min']
    """
    number = finite(value)
    if number is None:
        return MISSING
    if number < 1:
        return f"{1000 * number:.0f}{_NBSP}ms"
    if number < 59.95:
        return f"{number:.1f}{_NBSP}s"
    whole = round(number)
    if whole < 3600:
        return f"{whole // 60}{_NBSP}min{_NBSP}{whole % 60:02d}{_NBSP}s"
    minutes = round(number / 60)
    return f"{minutes // 60:,}{_NBSP}h{_NBSP}{minutes % 60:02d}{_NBSP}min"


def size(value: float | None) -> str:
    """Write a number of bytes in decimal units.

    >>> [size(b).replace(chr(160), " ") for b in (0, 999, 3_540_000, 2.5e9)]
    ['0 B', '999 B', '3.5 MB', '2.5 GB']
    """
    number = finite(value)
    if number is None:
        return MISSING
    for unit in ("B", "kB", "MB", "GB"):
        if abs(number) < 999.5:
            return f"{number:.0f}{_NBSP}{unit}" if unit == "B" else f"{number:.1f}{_NBSP}{unit}"
        number /= 1000
    return f"{number:,.1f}{_NBSP}TB"
