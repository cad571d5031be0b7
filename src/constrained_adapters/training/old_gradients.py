"""Bounds by gradients of the finished domains: taken anew from kept examples, or stored as a domain ends."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from constrained_adapters.adapters.lora import adapter_pairs, lora_layers
from constrained_adapters.constraints.base import Constraint
from constrained_adapters.constraints.example_gradients import logit_gradients
from constrained_adapters.constraints.kept import KeptExamples, KeptGradientConstraint
from constrained_adapters.constraints.ogd import OGDConstraint
from constrained_adapters.constraints.ogd_lora import OGDLoRAConstraint
from constrained_adapters.data.tokens import Tokens, tensor_rows
from constrained_adapters.errors import WorkspaceError
from constrained_adapters.memory.directions import CAPACITY, StoredDirections
from constrained_adapters.memory.gather import gather_statistics
from constrained_adapters.memory.gradient_sketch import SketchAccumulator
from constrained_adapters.memory.reservoir import pad_rows
from constrained_adapters.training.learner import Rows
from constrained_adapters.training.penalties import AttachedPenalty, trained_weights
from constrained_adapters.workspace import atomic_directory, atomic_write_bytes

KeptRows = Callable[[], Mapping[str, Sequence[Tokens]]]
"""Gives the kept rows of each finished domain."""


Factors = tuple[dict[str, Tensor], dict[str, Tensor]]
"""Left and right factors of a domain's gradients, by module."""


class _KeptPenalty(AttachedPenalty):
    """By examples that are kept anyway: nothing else is remembered.

    Args:
        kept: Gives them.
        prefix: In front of the names of its figures.
    """

    def __init__(self, kept: KeptRows, *, prefix: str = "") -> None:
        super().__init__(1.0, prefix=prefix)
        self._kept = kept

    def remembers(self, domain: str) -> bool:
        """The buffer does."""
        return True

    def remember(self, model: Any, domain: str, rows: Rows, *, seed: int) -> None:
        """Nothing."""

    def _rows(self) -> dict[str, Rows]:
        return {domain: tensor_rows(rows) for domain, rows in self._kept().items()}


@final
class GEMPenalty(_KeptPenalty):
    """No step against the gradient of any finished domain.

    Args:
        kept: Gives the kept rows.
        margin: γ ≥ 0.
        rows_per_step: Drawn anew for each domain and step; None takes all of them.
        prefix: As above.
    """

    def __init__(
        self, kept: KeptRows, *, margin: float, rows_per_step: int | None = None, prefix: str = ""
    ) -> None:
        super().__init__(kept, prefix=prefix)
        self._margin, self._rows_per_step = margin, rows_per_step

    def _constraint(self, model: Any, domain: str, earlier: Sequence[str]) -> Constraint:
        parameters = list(trained_weights(model).values())
        sources = [
            KeptExamples(model, parameters, rows, rows_per_step=self._rows_per_step, domain=name)
            for name, rows in self._rows().items()
            if rows
        ]
        return KeptGradientConstraint(parameters, sources, margin=self._margin)


@final
class AGEMPenalty(_KeptPenalty):
    """No step against the gradient of a batch of all finished domains' rows.

    Args:
        kept: Gives the kept rows.
        rows_per_step: Drawn anew for each step.
        prefix: As above.
    """

    def __init__(self, kept: KeptRows, *, rows_per_step: int, prefix: str = "") -> None:
        super().__init__(kept, prefix=prefix)
        self._rows_per_step = rows_per_step

    def _constraint(self, model: Any, domain: str, earlier: Sequence[str]) -> Constraint:
        parameters = list(trained_weights(model).values())
        rows = [row for rows in self._rows().values() for row in rows]
        source = KeptExamples(model, parameters, rows, rows_per_step=self._rows_per_step)
        return KeptGradientConstraint(parameters, [source] if rows else [])


class _StoredPenalty(AttachedPenalty):
    """By gradients that are stored as a domain ends, in one file that is read when it is first asked for."""

    def __init__(self, path: Path, *, prefix: str = "") -> None:
        super().__init__(1.0, prefix=prefix)
        self._path = path

    def remembers(self, domain: str) -> bool:
        """Whether the file has this domain."""
        return domain in self._domains()

    @abstractmethod
    def _domains(self) -> Sequence[str]: ...


@final
class OGDPenalty(_StoredPenalty):
    """Of weights that are trained on: orthogonal to the gradients of single answers' logits.

    Args:
        folder: Of the method's memories.
        capacity: Directions of each domain.
        prefix: As above.
    """

    def __init__(self, folder: Path, *, capacity: int = CAPACITY, prefix: str = "") -> None:
        super().__init__(folder / "directions" / "directions.safetensors", prefix=prefix)
        self._capacity = capacity
        self._read: StoredDirections | None = None

    @property
    def _stored(self) -> StoredDirections:
        if self._read is None:
            self._read = StoredDirections.load(self._path) if self._path.is_file() else StoredDirections()
        return self._read

    def remember(self, model: Any, domain: str, rows: Rows, *, seed: int) -> None:
        """Add what is new in the gradients of these rows, and write the file anew."""
        gradients = logit_gradients(model, trained_weights(model), rows, domain=domain)
        self._read = self._stored.with_domain(domain, gradients, capacity=self._capacity)
        with atomic_directory(self._path.parent) as folder:
            self._read.write(folder / self._path.name)

    def _domains(self) -> Sequence[str]:
        return self._stored.domains

    def _constraint(self, model: Any, domain: str, earlier: Sequence[str]) -> Constraint:
        return OGDConstraint(trained_weights(model), self._stored.directions)


@final
class OGDLoRAPenalty(_StoredPenalty):
    """Of a LoRA a domain: orthogonal to thin gradients of the adapted matrices, as sketches keep them.

    Args:
        folder: Of the method's memories.
        prefix: As above.
    """

    def __init__(self, folder: Path, *, prefix: str = "") -> None:
        super().__init__(folder / "gradients.safetensors", prefix=prefix)
        self._read: dict[str, Factors] | None = None

    @property
    def _stored(self) -> dict[str, Factors]:
        """Of each domain."""
        if self._read is None:
            self._read = _load_factors(self._path) if self._path.is_file() else {}
        return self._read

    def remember(self, model: Any, domain: str, rows: Rows, *, seed: int) -> None:
        """Sketch the gradients of these rows, and write the file anew."""
        device = model.get_input_embeddings().weight.device
        layers: dict[str, Any] = dict(lora_layers(model))
        sketch = SketchAccumulator(domain=domain)
        gather_statistics(
            model.get_base_model(),
            layers,
            (pad_rows(list(rows[i : i + 8]), device) for i in range(0, len(rows), 8)),
            generator=torch.Generator().manual_seed(seed),
            domain=domain,
            accumulators=[sketch],
        )
        made = sketch.finish()
        self._read = {**self._stored, domain: (made.left, made.right)}
        atomic_write_bytes(self._path, _factors_to_bytes(self._read))

    def _domains(self) -> Sequence[str]:
        return list(self._stored)

    def _constraint(self, model: Any, domain: str, earlier: Sequence[str]) -> Constraint:
        left, right = zip(*self._stored.values(), strict=True)
        return OGDLoRAConstraint(list(adapter_pairs(model, domain)), left, right)


def _factors_to_bytes(stored: Mapping[str, Factors]) -> bytes:
    tensors = {
        f"{place}.{side}.{module}": each.contiguous()
        for place, sides in enumerate(stored.values())
        for side, factors in zip(("left", "right"), sides, strict=True)
        for module, each in factors.items()
    }
    return save(tensors, metadata={"constrained_adapters": json.dumps(list(stored))})


def _load_factors(path: Path) -> dict[str, Factors]:
    """Read what :func:`_factors_to_bytes` wrote.

    Raises:
        WorkspaceError: The file is damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            domains: list[str] = json.loads(file.metadata()["constrained_adapters"])
            stored: dict[str, Factors] = {name: ({}, {}) for name in domains}
            for key in file.keys():  # noqa: SIM118 - no mapping
                place, side, module = key.split(".", 2)
                stored[domains[int(place)]][side == "right"][module] = file.get_tensor(key)
        return stored
    except Exception as error:
        raise WorkspaceError(
            "the stored gradients cannot be read",
            got=f"{path}: {type(error).__name__}: {error}",
            hint="begin anew with --fresh",
        ) from None
