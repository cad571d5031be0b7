"""The models that are served, by name; each answer keeps the version it began with until it ends."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from constrained_adapters.errors import nearest
from constrained_adapters.serving.failures import RequestError, UnknownModelError

BASE, AUTO = "base", "auto"
"""Names that no domain may have."""


@dataclass(frozen=True)
class Hold:
    """What one answer goes through.

    Args:
        names: Weights by public name, as the client is told.
        adapters: Weights by the model's own adapter names.
    """

    names: Mapping[str, float] = field(default_factory=dict)
    adapters: Mapping[str, float] = field(default_factory=dict)


class ModelRegistry:
    """Which adapters each public name stands for, and who still uses them. Safe for any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._published: dict[str, dict[str, float]] = {}
        self._holds: Counter[str] = Counter()
        self._known: set[str] = set()

    def names(self) -> list[str]:
        """Public names, in the order in which they were published."""
        with self._lock:
            return list(self._published)

    def publish(self, name: str, adapters: Mapping[str, float]) -> None:
        """Serve ``adapters`` under ``name`` from now on; whoever holds an older version keeps it."""
        with self._lock:
            self._published[name] = dict(adapters)
            self._known.update(adapters)

    def withdraw(self, name: str) -> None:
        """Serve ``name`` no more.

        Raises:
            UnknownModelError: It is not served.
        """
        with self._lock:
            if name not in self._published:
                raise self._unknown(name)
            del self._published[name]

    def hold(self, weights: Mapping[str, float]) -> Hold:
        """Resolve public names, and keep their present versions until :meth:`release`.

        Args:
            weights: By public name; those of 0 and the base itself add nothing.

        Raises:
            UnknownModelError: A name is not served.
            RequestError: A weight is too large to be meant.
        """
        adapters: Counter[str] = Counter()
        with self._lock:
            for name, weight in weights.items():
                if name not in self._published:
                    raise self._unknown(name)
                if abs(weight) > MAX_WEIGHT:
                    raise RequestError(
                        f"the weight of {name!r} is too large",
                        got=f"{weight:g}",
                        expected=f"at most {MAX_WEIGHT:g} in size",
                        param="adapters",
                    )
                for adapter, own in self._published[name].items():
                    adapters[adapter] += own * weight  # type: ignore[assignment]
            acting = {adapter: weight for adapter, weight in adapters.items() if weight}
            self._holds.update(acting.keys())
        return Hold({name: weight for name, weight in weights.items() if weight}, acting)

    def release(self, hold: Hold) -> None:
        """Give back what :meth:`hold` kept."""
        with self._lock:
            self._holds.subtract(hold.adapters.keys())

    def take_unused(self) -> list[str]:
        """Adapters that nobody is served or holds any more; they are forgotten here."""
        with self._lock:
            needed = {adapter for each in self._published.values() for adapter in each}
            unused = sorted(each for each in self._known - needed if self._holds[each] <= 0)
            self._known.difference_update(unused)
            for each in unused:
                del self._holds[each]
        return unused

    def check_new(self, name: str, *, replace: bool) -> None:
        """Check that ``name`` may be published.

        Raises:
            RequestError: It is reserved, or is served already and ``replace`` is not set.
        """
        if name in (BASE, AUTO):
            raise RequestError(f"{name!r} is a reserved name", got=name, param="lora_name")
        with self._lock:
            if name in self._published and not replace:
                raise RequestError(
                    f"{name!r} is loaded already",
                    got=name,
                    hint='"load_inplace": true replaces it; requests that run keep the old one',
                    param="lora_name",
                )

    def _unknown(self, name: str) -> UnknownModelError:
        return unknown_model(name, [BASE, AUTO, *self._published])


MAX_WEIGHT = 1000.0


def unknown_model(name: str, known: list[str]) -> UnknownModelError:
    """The error for a model that is not served, with the nearest name that is."""
    return UnknownModelError(
        f"The model {name[:80]!r} does not exist",
        got=repr(name[:80]),
        expected=", ".join(known),
        hint=nearest(name[:80], known),
        param="model",
        code="model_not_found",
    )
