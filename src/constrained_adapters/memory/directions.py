"""Orthonormal directions of finished domains in the space of the trained weights, for OGD.

Each gradient that is given loses its components along the directions that are there, and what is left of
it, at length one, is a direction more (Gram-Schmidt, twice against rounding; OGD, Farajtabar et al. 2020,
arXiv 1910.07104, algorithm 1). What lies in the span already adds nothing.

Bytes kept: four per direction and trained weight, so this is for few weights or few directions.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from constrained_adapters.errors import ConfigError, WorkspaceError

FORMAT_VERSION = 1
CAPACITY = 200
"""Directions per domain, as in the paper."""
MAX_BYTES = 4 * 2**30
LEAST_NEW = 1e-4
"""The share of a gradient's norm that must be new, well above float32's rounding."""


@dataclass(frozen=True)
class StoredDirections:
    """Directions of all finished domains.

    Args:
        domains: In order.
        directions: For each weight's name its part of the n directions, one row each, float32. The rows
            are orthonormal over all names together.
    """

    domains: tuple[str, ...] = ()
    directions: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return next((len(each) for each in self.directions.values()), 0)

    def with_domain(
        self,
        domain: str,
        gradients: Iterable[Mapping[str, Tensor]],
        *,
        capacity: int = CAPACITY,
        max_bytes: int = MAX_BYTES,
    ) -> StoredDirections:
        """With up to ``capacity`` directions of one more finished domain.

        Args:
            domain: Its name.
            gradients: Of its examples, by name of the weight; taken until the capacity is used up.
            capacity: Most gradients taken.
            max_bytes: Most that all directions together may take.

        Raises:
            ConfigError: They would take more.

        Cost: 4·n·p multiply-adds per gradient of p numbers.
        """
        rows: dict[str, Tensor] = {}
        count = before = len(self)
        for gradient in itertools.islice(gradients, capacity):
            if not rows:
                _check_size(before + capacity, gradient, max_bytes, domain)
                rows = {
                    name: g.new_zeros(before + capacity, g.numel(), dtype=torch.float32)
                    for name, g in gradient.items()
                }
                for name, old in self.directions.items():
                    rows[name][:before] = old.flatten(1)
            if self._add(rows, count, gradient):
                count += 1
        if not rows:
            return StoredDirections((*self.domains, domain), self.directions)
        shapes = {name: g.shape for name, g in gradient.items()}
        directions = {name: r[:count].view(-1, *shapes[name]).cpu().clone() for name, r in rows.items()}
        return StoredDirections((*self.domains, domain), directions)

    @staticmethod
    def _add(rows: dict[str, Tensor], count: int, gradient: Mapping[str, Tensor]) -> bool:
        """Write what is new in a gradient into row ``count``; False where nothing is."""
        own = {name: g.float().flatten() for name, g in gradient.items()}
        whole = _norm(own)
        for _ in range(2):
            along = torch.stack([rows[name][:count] @ g for name, g in own.items()]).sum(0)
            own = {name: g - along @ rows[name][:count] for name, g in own.items()}
        left = _norm(own)
        if not left > LEAST_NEW * whole:  # nor where it is not finite
            return False
        for name, g in own.items():
            rows[name][count] = g / left
        return True

    def write(self, path: Path) -> None:
        """Write one safetensors file; not atomic by itself."""
        facts = {"format_version": FORMAT_VERSION, "domains": self.domains}
        tensors = {name: each.contiguous() for name, each in self.directions.items()}
        save_file(tensors, path, metadata={"constrained_adapters": json.dumps(facts)})

    @classmethod
    def load(cls, path: Path) -> StoredDirections:
        """Read what :meth:`write` wrote.

        Raises:
            WorkspaceError: The file is damaged or is of another version.
        """
        try:
            with safe_open(path, "pt") as file:
                facts = json.loads(file.metadata()["constrained_adapters"])
                assert facts["format_version"] == FORMAT_VERSION, facts["format_version"]
                directions = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                return cls(tuple(facts["domains"]), directions)
        except Exception as error:
            raise WorkspaceError(
                "the stored directions cannot be read",
                got=f"{path}: {type(error).__name__}: {error}",
                hint="begin anew with --fresh",
            ) from None


def _norm(parts: Mapping[str, Tensor]) -> float:
    return float(torch.stack([part.norm() for part in parts.values()]).norm())


def _check_size(count: int, gradient: Mapping[str, Tensor], max_bytes: int, domain: str) -> None:
    num_weights = sum(g.numel() for g in gradient.values())
    if 4 * count * num_weights > max_bytes:
        raise ConfigError(
            f"the directions to be stored up to domain {domain!r} are too large",
            got=f"{count} directions of {num_weights:,} weights: {4 * count * num_weights / 2**30:.1f} GiB",
            expected=f"at most {max_bytes / 2**30:.1f} GiB",
            hint="a smaller capacity, or fewer trained weights: bitfit, or bottleneck adapters",
        )
