"""Every error that a user of constrained-adapters can meet.

The tree, drawn once::

    ConstrainedAdaptersError            exit code 1: the work failed
    ├── UsageError                      exit code 2: what was asked for is wrong
    │   ├── ConfigError                 a setting: unknown key, wrong type, out of range
    │   ├── UnknownNameError            a name that is not in its list ('did you mean')
    │   ├── DataError                   a data file: missing, empty, broken line, wrong encoding
    │   └── AdapterStateError           calls in an order that cannot work
    ├── AssetError                      a packaged model or data set cannot be fetched or is damaged
    ├── ModelError                      a base model cannot be loaded, or is not the one expected
    ├── WorkspaceError                  a run's folder: locked, damaged, no space
    ├── TrainingError                   training cannot go on: non-finite values, no memory left
    └── MissingExtraError               an optional dependency is not installed

Each message has up to four lines: what happened; what was got, and where; what was expected;
what to try.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ConstrainedAdaptersError(Exception):
    """Base of all errors raised on purpose.

    Args:
        what: One sentence that says what happened.
        got: What was found, and where (file, line, field).
        expected: What would have been right.
        hint: What to try next.

    >>> print(ConstrainedAdaptersError("no such file", got="a.jsonl", hint="check the path"))
    no such file
      Got:      a.jsonl
      Try:      check the path
    """

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        got: str | None = None,
        expected: str | None = None,
        hint: str | None = None,
    ) -> None:
        self.what, self.got, self.expected, self.hint = what, got, expected, hint
        rows = [("Got:", got), ("Expected:", expected), ("Try:", hint)]
        super().__init__("\n".join([what, *(f"  {label:<9} {text}" for label, text in rows if text)]))


class UsageError(ConstrainedAdaptersError):
    """What was asked for is wrong; nothing was started."""

    exit_code = 2


class ConfigError(UsageError):
    """A setting is unknown, of the wrong type, out of range or without effect."""


class UnknownNameError(UsageError):
    """A name is not in the list it should come from.

    >>> print(UnknownNameError.of("constraint", "a-gem", ["agem", "gem"]))
    no constraint named 'a-gem'
      Got:      'a-gem'
      Expected: agem, gem
      Try:      agem
    """

    @classmethod
    def of(cls, kind: str, name: str, known: Iterable[str], *, where: str = "") -> UnknownNameError:
        """Build the error for ``name`` that is not one of ``known`` things of a ``kind``."""
        options = sorted(known)
        return cls(
            f"no {kind} named {name!r}",
            got=f"{name!r} ({where})" if where else repr(name),
            expected=", ".join(options) or "(there are none)",
            hint=nearest(name, options),
        )


class DataError(UsageError):
    """A data file is missing, empty, broken or in the wrong encoding."""


class AdapterStateError(UsageError):
    """Calls came in an order that cannot work, such as training a frozen adapter."""


class AssetError(ConstrainedAdaptersError):
    """A packaged model or data set cannot be fetched, or its checksum is wrong."""


class ModelError(ConstrainedAdaptersError):
    """A base model cannot be loaded, or is not the one that was expected."""


class WorkspaceError(ConstrainedAdaptersError):
    """A run's folder is locked, damaged or has no space left."""


class TrainingError(ConstrainedAdaptersError):
    """Training cannot go on: non-finite values, or no memory left."""


class MissingExtraError(ConstrainedAdaptersError):
    """An optional dependency is not installed.

    >>> print(MissingExtraError.of("pyarrow", "data", "to read Parquet files"))
    pyarrow is needed to read Parquet files
      Got:      pyarrow is not installed
      Try:      pip install 'constrained-adapters[data]'
    """

    @classmethod
    def of(cls, package: str, extra: str, why: str) -> MissingExtraError:
        """Build the error for a ``package`` that belongs to an ``extra``."""
        return cls(
            f"{package} is needed {why}",
            got=f"{package} is not installed",
            hint=f"pip install 'constrained-adapters[{extra}]'",
        )


def nearest(name: str, options: Iterable[str]) -> str | None:
    """Return the option most like ``name``, or None where nothing is near.

    >>> nearest("learning_rat", ["learning_rate", "rank"])
    'learning_rate'
    """
    found = difflib.get_close_matches(name, list(options), n=1, cutoff=0.6)
    return found[0] if found else None
