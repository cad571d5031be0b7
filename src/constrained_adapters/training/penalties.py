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
from constrained_adapters.constraints.base import Constraint
from constrained_adapters.constraints.ewc import EWCConstraint
from constrained_adapters.constraints.ewc_lora import EWCLoRAConstraint
from constrained_adapters.constraints.frozen import FrozenWeightsConstraint
from constrained_adapters.constraints.olora import OLoRAConstraint
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


@final
class Penalties:
    """Several as one: each binds the same steps.

    Args:
        parts: Their figures must have different names.
    """

    def __init__(self, parts: Sequence[Penalty]) -> None:
        self._parts = tuple(parts)

    def bind(self, model: Any, domain: str, earlier: Sequence[str]) -> None:
        """Put all in force."""
        for part in self._parts:
            part.bind(model, domain, earlier)

    def release(self) -> None:
        """Take all off."""
        for part in self._parts:
            part.release()

    def remembers(self, domain: str) -> bool:
        """Whether each does."""
        return all(part.remembers(domain) for part in self._parts)

    def remember(self, model: Any, domain: str, rows: Rows, *, seed: int) -> None:
        """Each that does not yet."""
        for part in self._parts:
            if not part.remembers(domain):
                part.remember(model, domain, rows, seed=seed)

    def describe(self) -> dict[str, float]:
        """Fixed facts of all."""
        return {name: value for part in self._parts for name, value in part.describe().items()}


def note_in(model: Any, prefix: str = "") -> Callable[[Mapping[str, Tensor]], None]:
    """What adds each step's measurements to ``model.last_measurements`` without keeping it alive."""
    reference = weakref.ref(model)
    model.last_measurements = {}

    def note(measured: Mapping[str, Tensor]) -> None:
        there = reference()
        if there is not None:
            there.last_measurements |= {f"{prefix}{name}": float(value) for name, value in measured.items()}

    return note


class AttachedPenalty(ABC):
    """What all penalties share: one attachment to the optimizer's step. At weight 0 nothing is attached.

    Args:
        weight: λ.
        prefix: In front of the names of its figures, where several penalties bind the same steps.
    """

    def __init__(self, weight: float, *, prefix: str = "") -> None:
        self._weight, self._prefix = weight, prefix
        self._attachment: Attachment | None = None

    def bind(self, model: Any, domain: str, earlier: Sequence[str]) -> None:
        """Put the penalty in force, where there is a finished domain and λ > 0."""
        if self._weight > 0.0 and earlier:
            self._attachment = attach(
                self._constraint(model, domain, earlier),
                domain=domain,
                on_step=note_in(model, self._prefix),
                owner=model,
            )

    def release(self) -> None:
        """Take it off."""
        if self._attachment is not None:
            self._attachment.remove()
            self._attachment = None

    def describe(self) -> dict[str, float]:
        """Fixed facts of the penalty in force; empty where there is none."""
        facts = self._attachment.constraint.describe() if self._attachment else {}
        return {f"{self._prefix}{name}": value for name, value in facts.items()}

    @abstractmethod
    def _constraint(self, model: Any, domain: str, earlier: Sequence[str]) -> Constraint:
        """Build what binds the steps of ``domain``."""


@final
class OLoRAPenalty(AttachedPenalty):
    """Overlap of the new A with those of the earlier adapters, which are all that is remembered."""

    def remembers(self, domain: str) -> bool:
        """The adapter itself is the memory."""
        return True

    def remember(self, model: Any, domain: str, rows: Rows, *, seed: int) -> None:
        """Nothing."""

    def _constraint(self, model: Any, domain: str, earlier: Sequence[str]) -> Constraint:
        pairs = list(adapter_pairs(model, domain))
        old = [{pair.module: pair.a for pair in adapter_pairs(model, name)} for name in earlier]
        stacked = [torch.cat([table[pair.module] for table in old]) for pair in pairs]
        return OLoRAConstraint([pair.a for pair in pairs], stacked, self._weight)


class _Importance(AttachedPenalty):
    """A penalty by the diagonal Fisher of all finished domains, kept in one file.

    Args:
        weight: λ.
        folder: Of the method's memories.
        prefix: As above.
        decay: γ of online EWC: what older domains' Fisher is multiplied with; None sums all of them.
        always: Measure the Fisher at weight 0 too, for rates that go by it.
    """

    def __init__(
        self,
        weight: float,
        folder: Path,
        *,
        prefix: str = "",
        decay: float | None = None,
        always: bool = False,
    ) -> None:
        super().__init__(weight, prefix=prefix)
        self._decay, self._wanted = decay, always or weight > 0.0
        self._path = folder / IMPORTANCE
        self._kept: DiagonalMemory | None = None

    @property
    def _memory(self) -> DiagonalMemory:
        """Read when it is first asked for: the folder may be emptied after the penalty is made."""
        if self._kept is None:
            self._kept = DiagonalMemory.load(self._path) if self._path.is_file() else DiagonalMemory()
        return self._kept

    def remembers(self, domain: str) -> bool:
        """Whether the Fisher of this domain is in the file, or none is wanted."""
        return not self._wanted or domain in self._memory.domains

    def remember(self, model: Any, domain: str, rows: Rows, *, seed: int) -> None:
        """Add the domain's Fisher at the present weights, and write the file anew."""
        generator = torch.Generator().manual_seed(seed)
        self._kept = self._measured(model, domain, rows, generator)
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
        return self._memory.with_domain(domain, fisher, weights, decay=self._decay)

    def _constraint(self, model: Any, domain: str, earlier: Sequence[str]) -> Constraint:
        memory = self._memory
        return EWCConstraint(
            trained_weights(model), memory.importance, memory.anchor, memory.constant, self._weight
        )


@final
class FrozenPenalty(_Importance):
    """The most important elements of the trained weights of a plain model stay as they are.

    Args:
        share: Of all trained elements; 0.05 to 0.1 is usual.
        folder: Of the method's memories.
        prefix: As above.
        always: As above.
    """

    def __init__(self, share: float, folder: Path, *, prefix: str = "", always: bool = False) -> None:
        # Its own file: others may decay theirs.
        super().__init__(share, folder / "frozen", prefix=prefix, always=always)

    def _measured(self, model: Any, domain: str, rows: Rows, generator: torch.Generator) -> DiagonalMemory:
        fisher = parameter_fisher(model, trained_weights(model), rows, generator=generator, domain=domain)
        return self._memory.with_domain(domain, fisher)

    def _constraint(self, model: Any, domain: str, earlier: Sequence[str]) -> Constraint:
        return FrozenWeightsConstraint(trained_weights(model), self._memory.importance, self._weight)


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
        return self._memory.with_domain(domain, accumulator.fisher(domain), decay=self._decay)

    def _constraint(self, model: Any, domain: str, earlier: Sequence[str]) -> Constraint:
        return EWCLoRAConstraint(list(adapter_pairs(model, domain)), self._memory.importance, self._weight)


def trained_weights(model: Any) -> dict[str, torch.nn.Parameter]:
    """The parameters that are trained, by name; tied ones once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
