"""Training under constraints: the memories of the finished domains and the constraint made of them."""

from __future__ import annotations

import warnings
import weakref
from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from constrained_adapters.adapters.lora import adapter_pairs, delta_weight, lora_layers
from constrained_adapters.constraints.attach import Attachment, attach
from constrained_adapters.errors import AdapterStateError, ModelError
from constrained_adapters.memory.base_text import write_base_text
from constrained_adapters.memory.kfac import KFACMemory
from constrained_adapters.memory.measure import measure_memory
from constrained_adapters.memory.reservoir import num_memory_examples, sample_rows
from constrained_adapters.model.adapter_set import AdapterSet
from constrained_adapters.model.binding import check_base, make_constraint
from constrained_adapters.models.fingerprint import fingerprint_model
from constrained_adapters.workspace import atomic_write_bytes

MEMORY_FILE = "gradient_memory.safetensors"
BASE_DOMAIN = "base"


class ConstrainedSet(AdapterSet, ABC):
    """An :class:`AdapterSet` that remembers finished domains and binds the steps of those in training."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.base_memory: KFACMemory | None = None
        self.last_measurements: dict[str, float] = {}
        self._constrained = False
        self._attachment: Attachment | None = None

    def enable_constrained_training(self, enabled: bool = True) -> None:
        """Put the memories of the finished domains, and of the base, in force for later steps.

        Any optimizer that steps a trainable adapter of this model then obeys: Trainer's,
        SFTTrainer's, or one made by hand, before or after this call. With
        ``constraint_strength=0``, ``use_gradient_constraint=False`` or ``constraint_type="none"``
        nothing is changed: training is plain LoRA, bit for bit.

        Raises:
            AdapterStateError: A finished adapter has no memory.
            ModelError: The base has changed since an adapter was trained: its weights, or its context length.

        Cost of switching on: one pass over the base's weights, for its fingerprint.
        """
        if enabled:
            self._check_base_is_unchanged()
        self._constrained = enabled
        self._active_changed()

    def _active_changed(self) -> None:
        if self._attachment is not None:
            self._attachment.remove()
            self._attachment = None
        trainable = self._trainable()
        if not (self._constrained and trainable and self.crma_config.effective_strength > 0.0):
            return
        memories = self._memories_for(trainable)
        pairs = [pair for name in trainable for pair in adapter_pairs(self, name)]
        constraint = make_constraint(pairs, memories, self.crma_config)
        constraint.after_step()
        self._attachment = attach(
            constraint, domain=", ".join(trainable), on_step=_note_in(weakref.ref(self)), owner=self
        )

    def _memories_for(self, trainable: list[str]) -> list[KFACMemory]:
        finished = [name for name in self._states if name not in trainable]
        without = [name for name in finished if self._states[name].memory is None and name in self._active]
        if without:
            raise AdapterStateError(
                f"adapter {without[0]!r} has no gradient memory, so nothing would protect it",
                got=f"training {trainable} beside {finished}",
                hint=f"update_gradient_memory({without[0]!r}) first, or enable_constrained_training(False)",
            )
        self._warn_of_forgotten(finished)
        if self.crma_config.protect_base and self.base_memory is None:
            self.base_memory = self.make_base_memory()
        kept = [self.base_memory, *(self._states[name].memory for name in finished)]
        return [memory for memory in kept if memory is not None]

    def _warn_of_forgotten(self, finished: list[str]) -> None:
        states = {name: self._states[name] for name in finished}
        for name, state in states.items():
            if state.memory is None and (state.frozen or state.reservoir.num_seen):
                warnings.warn(
                    f"adapter {name!r} has no gradient memory: what is trained now may hurt it once both are "
                    f"active; set_active_adapter({name!r}) and update_gradient_memory({name!r}) first",
                    stacklevel=5,
                )

    def constraint_facts(self) -> dict[str, float]:
        """Fixed facts of the constraint in force, such as ``closed_ratio``; empty where there is none."""
        return self._attachment.constraint.describe() if self._attachment else {}

    def gradient_memory(self, adapter_name: str) -> KFACMemory | None:
        """The memory of an adapter's domain, or None."""
        return self._state(adapter_name).memory

    def update_gradient_memory(
        self,
        adapter_name: str,
        rows: Sequence[tuple[Tensor, Tensor]] | None = None,
        *,
        batch_size: int = 8,
        max_examples: int | None = None,
    ) -> KFACMemory:
        """Make the memory of a trained domain, at the present weights, with the present active set.

        Args:
            adapter_name: The domain's adapter; it must be active.
            rows: (token ids, labels) to make it from; default: those sampled while it trained.
            batch_size: Rows per pass; the result does not depend on it.
            max_examples: Most rows used; default 32, or a twentieth of the rows seen if that is more,
                at most ``gradient_memory_size``.

        Returns:
            The memory; written beside the adapter too, if that has been saved.

        Raises:
            AdapterStateError: The adapter is not active, or nothing was seen in training.
        """
        adapter_name = self._known(adapter_name)
        state = self._states[adapter_name]
        if adapter_name not in self._active:
            raise AdapterStateError(
                f"adapter {adapter_name!r} is not active, so its domain's gradients cannot be measured",
                got=f"active: {self._active}",
                hint=f"set_active_adapter({adapter_name!r}) first",
            )
        seen = state.reservoir.num_seen
        if rows is None:
            rows = state.reservoir.rows
        if not rows:
            raise AdapterStateError(
                f"nothing was seen of the domain of adapter {adapter_name!r}",
                got="no training batch with labels passed through the model while it was active",
                hint="train it first, or pass rows=",
            )
        limit = max_examples or num_memory_examples(seen, self.crma_config.gradient_memory_size)
        seed = state.domain_id + 1
        if len(rows) > limit:  # not the first ones: a loader that does not shuffle shows one kind first
            rows = sample_rows(rows, limit, seed)
        state.memory = self._measure(adapter_name, rows, batch_size, seed=seed)
        if state.folder is not None and state.folder.is_dir():  # not where it has been moved away since
            atomic_write_bytes(state.folder / MEMORY_FILE, state.memory.to_bytes())
        self._active_changed()
        return state.memory

    def make_base_memory(
        self, *, num_texts: int | None = None, length_tokens: int = 64, seed: int = 0
    ) -> KFACMemory:
        """The memory of the base's own knowledge, from text that it writes itself with adapters off.

        Args:
            num_texts: How many texts; default: enough for four tokens per input direction, at least 32.
            length_tokens: Length of each.
            seed: Of the sampling.
        """
        with self.base_only():
            base = self._base
            width: int = base.config.get_text_config().hidden_size
            count = num_texts or max(32, -(-4 * width // length_tokens))
            rows = write_base_text(base, num_texts=count, length_tokens=length_tokens, seed=seed)
            return self._measure(BASE_DOMAIN, rows, 16, seed=seed)

    def _measure(
        self, domain: str, rows: Sequence[tuple[Tensor, Tensor]], batch_size: int, seed: int
    ) -> KFACMemory:
        if self._wrapped:
            modules: dict[str, Any] = dict(lora_layers(self))
        else:
            modules = {name: self.base_model.get_submodule(name) for name in self._targets}
        return measure_memory(
            self._base,
            modules,
            rows,
            domain=domain,
            base_fingerprint=self.base_fingerprint,
            strength=self.crma_config.effective_strength,
            batch_size=batch_size,
            seed=seed,
        )

    def predicted_increase_nats(self, adapter_name: str) -> dict[str, float]:
        """For each finished domain, the loss increase that its memory predicts for ``adapter_name``'s ΔW."""
        name = self._known(adapter_name)
        deltas = {pair.module: delta_weight(pair) for pair in adapter_pairs(self, name)}
        others = {n: s.memory for n, s in self._states.items() if n != name and s.memory is not None}
        if self.base_memory is not None:
            others = {BASE_DOMAIN: self.base_memory, **others}
        return {name: memory.predicted_increase_nats(deltas) for name, memory in others.items()}

    def load_memory(self, path: Path) -> KFACMemory:
        """Read a gradient memory and check that it belongs to this base."""
        memory = KFACMemory.load(path)
        self._check_fingerprint(memory.base_fingerprint, path)
        return memory

    def restore_memory(self, adapter_name: str, path: Path) -> None:
        """Give an adapter the memory that was written to ``path``."""
        self._state(adapter_name).memory = self.load_memory(path)
        self._active_changed()

    def _check_fingerprint(self, found: str | None, where: Path) -> None:
        check_base(found, self.base_fingerprint, where=str(where), base_name=self.crma_config.base_model_name)

    @property
    def _base(self) -> Any:
        """The base itself, with the adapters in its layers."""
        return self.get_base_model() if self._wrapped else self.base_model

    def _check_base_is_unchanged(self) -> None:
        """What memories and finished adapters rest on is the base as it was when they were made."""
        if not self.base_fingerprint:
            return
        now = fingerprint_model(self._base)
        if now == self.base_fingerprint:
            return
        used = [name for name, s in self._states.items() if s.frozen or s.memory or s.reservoir.num_seen]
        if used or self.base_memory is not None:
            raise ModelError(
                "the base's weights or settings have changed since its adapters were trained",
                got=f"base fingerprint {now}; trained before: {used or [BASE_DOMAIN]}",
                expected=f"{self.base_fingerprint} ({self.crma_config.base_model_name})",
                hint="extend the context, cast or change weights before the first adapter, or start anew",
            )
        self.base_fingerprint = now


def _note_in(model: weakref.ref[ConstrainedSet]) -> Callable[[Mapping[str, Tensor]], None]:
    """What writes a step's measurements into ``model`` without keeping it in memory."""

    def note(measured: Mapping[str, Tensor]) -> None:
        there = model()
        if there is not None:
            there.last_measurements = {key: float(value) for key, value in measured.items()}

    return note
