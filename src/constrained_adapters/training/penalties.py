"""Penalties of a recipe: what binds a domain's steps, and what is kept of the finished domains for it."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, final

import torch
from torch import Tensor

from constrained_adapters.adapters.lora import adapter_pairs, lora_layers
from constrained_adapters.constraints.attach import Attachment, attach
from constrained_adapters.constraints.ewc import EWCConstraint
from constrained_adapters.constraints.ewc_lora import EWCLoRAConstraint
from constrained_adapters.constraints.olora import OLoRAConstraint
from constrained_adapters.constraints.penalty import PenaltyConstraint
from constrained_adapters.memory.diagonal import DiagonalMemory, LayerFisher, parameter_fisher
from constrained_adapters.memory.gather import gather_statistics
from constrained_adapters.memory.reservoir import pad_rows
from constrained_adapters.training.learner import Rows
from constrained_adapters.workspace import atomic_directory

IMPORTANCE = Path("importance", "importance.safetensors")


class Penalty(Protocol):
    """Adds the gradient of a penalty to the steps of the domain in training."""

    def bind(self, model: Any, domain: str, earlier: Sequence[str]) -> None:
        """Put the penalty in force for the trainable parameters of ``model``."""

    def release(self) -> None:
        """Take it off."""

    def remembers(self, domain: str) -> bool:
        """Whether there is nothing of this domain left to remember."""

    def remember(self, model: Any, domain: str, rows: Rows, *, seed: int) -> None:
        """Make and write the memory of a domain, at the present weights of ``model``."""

    def describe(self) -> dict[str, float]:
        """Fixed facts of the penalty in force."""


def note_in(model: Any) -> Callable[[Mapping[str, Tensor]], None]:
    """What writes each step's measurements into ``model.last_measurements`` without keeping it alive."""
    reference = weakref.ref(model)

    def note(measured: Mapping[str, Tensor]) -> None:
        there = reference()
        if there is not None:
            there.last_measurements = {name: float(value) for name, value in measured.items()}

    return note


class _Bound(ABC):
    """What all penalties share: one attachment to the optimizer's step. At weight 0 nothing is attached."""

    def __init__(self, weight: float) -> None:
        self._weight = weight
        self._attachment: Attachment | None = None

    def bind(self, model: Any, domain: str, earlier: Sequence[str]) -> None:
        """Put the penalty in force, where there is a finished domain and λ > 0."""
        if self._weight > 0.0 and earlier:
            self._attachment = attach(
                self._constraint(model, domain, earlier), domain=domain, on_step=note_in(model), owner=model
            )

    def release(self) -> None:
        """Take it off."""
        if self._attachment is not None:
            self._attachment.remove()
            self._attachment = None

    def describe(self) -> dict[str, float]:
        """Fixed facts of the penalty in force; empty where there is none."""
        return self._attachment.constraint.describe() if self._attachment else {}

    @abstractmethod
    def _constraint(self, model: Any, domain: str, earlier: Sequence[str]) -> PenaltyConstraint:
        """Build what binds the steps of ``domain``."""


@final
class OLoRAPenalty(_Bound):
    """Overlap of the new A with those of the earlier adapters, which are all that is remembered."""

    def remembers(self, domain: str) -> bool:
        """The adapter itself is the memory."""
        return True

    def remember(self, model: Any, domain: str, rows: Rows, *, seed: int) -> None:
        """Nothing."""

    def _constraint(self, model: Any, domain: str, earlier: Sequence[str]) -> PenaltyConstraint:
        pairs = list(adapter_pairs(model, domain))
        old = [{pair.module: pair.a for pair in adapter_pairs(model, name)} for name in earlier]
        stacked = [torch.cat([table[pair.module] for table in old]) for pair in pairs]
        return OLoRAConstraint([pair.a for pair in pairs], stacked, self._weight)


class _Importance(_Bound):
    """A penalty by the diagonal Fisher of all finished domains, kept in one file.

    Args:
        weight: λ.
        folder: Of the method's memories.
    """

    def __init__(self, weight: float, folder: Path) -> None:
        super().__init__(weight)
        self._path = folder / IMPORTANCE
        self._memory = DiagonalMemory.load(self._path) if self._path.is_file() else DiagonalMemory()

    def remembers(self, domain: str) -> bool:
        """Whether the Fisher of this domain is in the file, or none is wanted."""
        return self._weight == 0.0 or domain in self._memory.domains

    def remember(self, model: Any, domain: str, rows: Rows, *, seed: int) -> None:
        """Add the domain's Fisher at the present weights, and write the file anew."""
        generator = torch.Generator().manual_seed(seed)
        self._memory = self._measured(model, domain, rows, generator)
        with atomic_directory(self._path.parent) as folder:
            self._memory.write(folder / self._path.name)

    @abstractmethod
    def _measured(
        self, model: Any, domain: str, rows: Rows, generator: torch.Generator
    ) -> DiagonalMemory: ...


@final
class EWCPenalty(_Importance):
    """Of every trained weight of a plain model."""

    def _measured(self, model: Any, domain: str, rows: Rows, generator: torch.Generator) -> DiagonalMemory:
        weights = trained_weights(model)
        fisher = parameter_fisher(model, weights, rows, generator=generator, domain=domain)
        return self._memory.with_domain(domain, fisher, weights)

    def _constraint(self, model: Any, domain: str, earlier: Sequence[str]) -> PenaltyConstraint:
        memory = self._memory
        return EWCConstraint(
            trained_weights(model), memory.importance, memory.anchor, memory.constant, self._weight
        )


@final
class EWCLoRAPenalty(_Importance):
    """Of the full-size weight of each adapted layer."""

    def _measured(self, model: Any, domain: str, rows: Rows, generator: torch.Generator) -> DiagonalMemory:
        device, accumulator = model.get_input_embeddings().weight.device, LayerFisher()
        batches = (pad_rows(list(rows[i : i + 8]), device) for i in range(0, len(rows), 8))
        layers: dict[str, Any] = dict(lora_layers(model))
        gather_statistics(
            model.get_base_model(),
            layers,
            batches,
            generator=generator,
            domain=domain,
            accumulators=[accumulator],
        )
        return self._memory.with_domain(domain, accumulator.fisher(domain))

    def _constraint(self, model: Any, domain: str, earlier: Sequence[str]) -> PenaltyConstraint:
        return EWCLoRAConstraint(list(adapter_pairs(model, domain)), self._memory.importance, self._weight)


def trained_weights(model: Any) -> dict[str, torch.nn.Parameter]:
    """The parameters that are trained, by name; tied ones once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
