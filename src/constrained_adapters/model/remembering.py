"""What is remembered of the finished domains and of the base: made, kept, read, and held against changes."""

from __future__ import annotations

from abc import ABC
from pathlib import Path
from typing import Any

from constrained_adapters.adapters.lora import adapter_pairs, delta_weight, lora_layers
from constrained_adapters.constraints import SUBSPACE_TYPES
from constrained_adapters.errors import AdapterStateError, ModelError
from constrained_adapters.memory.base_text import base_texts
from constrained_adapters.memory.kfac import BASE_DOMAIN, KFACMemory
from constrained_adapters.memory.measure import measure_memory
from constrained_adapters.memory.probe import Rows
from constrained_adapters.memory.reservoir import num_memory_examples, sample_rows
from constrained_adapters.model.adapter_set import AdapterSet
from constrained_adapters.model.binding import check_base, refuse_several_processes
from constrained_adapters.models.fingerprint import fingerprint_model
from constrained_adapters.workspace import atomic_write_bytes

MEMORY_FILE = "gradient_memory.safetensors"


class RememberingSet(AdapterSet, ABC):
    """An :class:`AdapterSet` with a memory of each finished domain, and of the base."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.base_memory: KFACMemory | None = None

    def gradient_memory(self, adapter_name: str) -> KFACMemory | None:
        """The memory of an adapter's domain, or None."""
        return self._state(adapter_name).memory

    def update_gradient_memory(
        self,
        adapter_name: str,
        rows: Rows | None = None,
        *,
        batch_size: int = 8,
        max_examples: int | None = None,
    ) -> KFACMemory:
        """Make the memory of a trained domain, at the present weights, with the present active set.

        Args:
            adapter_name: The domain's adapter; it must be active.
            rows: (token ids, labels) to make it from; default: those sampled while it trained.
            batch_size: Rows per pass; the result does not depend on it.
            max_examples: Most rows used; default 32, or a thirtieth of the rows seen if that is more,
                at most ``gradient_memory_size``.

        Returns:
            The memory; written beside the adapter too, if that has been saved.

        Raises:
            AdapterStateError: The adapter is not active, or nothing was seen in training, or several
                processes train together and no rows are given: each has seen others.
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
            refuse_several_processes(adapter_name)
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
        self,
        rows: Rows | None = None,
        *,
        num_texts: int | None = None,
        length_tokens: int = 64,
        seed: int = 0,
    ) -> KFACMemory:
        """The memory of the base's own knowledge, with adapters off.

        Args:
            rows: (token ids, labels) of text like that which is to stay as it is, each of shape (s,); as many
                of them are drawn as are wanted. Default: the base writes the text itself.
            num_texts: How many texts; default: enough for eight tokens per input direction, at least 32.
            length_tokens: Length of each that the base writes.
            seed: Of the sampling.

        Raises:
            AdapterStateError: There is no row.
            TrainingError: The base, or its memory, is not finite.
        """
        width: int = self._base.config.get_text_config().hidden_size
        with self.base_only():
            texts = base_texts(
                self._base, width, rows, num_texts=num_texts, length_tokens=length_tokens, seed=seed
            )
            return self._measure(BASE_DOMAIN, texts, 8, seed=seed)

    def _measure(self, domain: str, rows: Rows, batch_size: int, seed: int) -> KFACMemory:
        return measure_memory(
            self._base,
            self._layers(),
            rows,
            domain=domain,
            base_fingerprint=self.base_fingerprint,
            kind=SUBSPACE_TYPES.get(self.crma_config.constraint_type, "energy"),
            strength=self.crma_config.effective_strength,
            batch_size=batch_size,
            seed=seed,
        )

    def predicted_increase_nats(self, adapter_name: str) -> dict[str, float]:
        """For each finished domain, the loss increase that its memory predicts for ``adapter_name``'s ΔW.

        Per loss token, by the memory's gradient sketch; by K-FAC where it has none, as in a merged memory.
        A sketch knows what the domain had still to learn, so its figure can be negative.
        """
        name = self._known(adapter_name)
        deltas = {pair.module: delta_weight(pair) for pair in adapter_pairs(self, name)}
        others = {n: s.memory for n, s in self._states.items() if n != name and s.memory is not None}
        if self.base_memory is not None:
            others = {BASE_DOMAIN: self.base_memory, **others}
        return {
            name: memory.predicted_increase_nats(deltas)
            if memory.sketch is None
            else memory.sketch.predicted_increase_nats(deltas, first_order=True)
            for name, memory in others.items()
        }

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

    def _layers(self) -> dict[str, Any]:
        """The adapted layers, or those that will be, by their name in the base."""
        if self._wrapped:
            return dict(lora_layers(self))
        return {name: self.base_model.get_submodule(name) for name in self._targets}

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
