"""A pass through the base and its adapters: the active set, a mixed batch, or the base alone."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModelForCausalLM

from constrained_adapters.adapters.acting import ActingAdapters
from constrained_adapters.adapters.mixed import BASE_NAME, MixedBatch, RowAdapters
from constrained_adapters.errors import AdapterStateError, ConfigError, UnknownNameError
from constrained_adapters.memory.kfac import KFACMemory
from constrained_adapters.memory.reservoir import Reservoir
from constrained_adapters.model.auto import Chosen


@dataclass
class AdapterState:
    """What is known of one adapter beside its weights."""

    domain_id: int
    frozen: bool = False
    weight: float = 1.0
    folder: Path | None = None
    memory: KFACMemory | None = None
    reservoir: Reservoir = field(default_factory=lambda: Reservoir(1000))
    chosen: Chosen | None = None
    """What it was made with; None where it was made elsewhere."""


class AdapterPasses(PeftModelForCausalLM):
    """What :class:`~constrained_adapters.model.adapter_set.AdapterSet` computes, once it has its adapters."""

    base_model: Any
    """PEFT's ``LoraModel``; the base itself while there is no adapter."""
    _states: dict[str, AdapterState]
    _active: list[str]
    _wrapped: bool
    _acting: ActingAdapters

    def _trainable(self) -> list[str]:
        return [name for name in self._active if not self._states[name].frozen]

    def _acting_layers(self) -> list[Any]:
        return [adapted.layer for adapted in self._acting.layers.values()]

    def _apply_layers(self) -> None:
        raise NotImplementedError

    def forward(self, *args: Any, adapter_names: Sequence[RowAdapters] | None = None, **kwargs: Any) -> Any:
        """As the base's; in training the rows pass the active adapter's sample on their way.

        Args:
            *args: Passed on.
            adapter_names: One entry per row, instead of the active set: see :meth:`mixed_batch`.
            **kwargs: Passed on.

        Raises:
            ConfigError: ``adapter_names`` has not one entry per row, or a weight that is no finite number.
            UnknownNameError: It names no adapter.
            AdapterStateError: The model is in training mode.
        """
        if adapter_names is not None:
            self._check_count(adapter_names, args, kwargs)
            with self.mixed_batch(adapter_names):
                return self.forward(*args, **kwargs)
        if self.training and torch.is_grad_enabled():
            if self._acting.mixed is not None:
                raise AdapterStateError(
                    "a mixed batch cannot be trained",
                    got="adapter_names while the model is in training mode",
                    hint="model.eval() first; to train, set_active_adapters(…)",
                )
            self._sample_rows(args, kwargs)
        if not self._wrapped:
            return self.base_model(*args, **kwargs)
        return super().forward(*args, **kwargs)  # type: ignore[no-untyped-call]

    def _sample_rows(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        trainable = self._trainable()
        if not trainable:
            frozen = [name for name in self._active if self._states[name].frozen]
            raise AdapterStateError(
                f"adapter {frozen[0]!r} is frozen and cannot be trained"
                if frozen
                else "no adapter is active",
                got=f"active: {self._active}; adapters: {self.adapter_names}",
                hint="create_adapter(NAME) and set_active_adapter(NAME), or model.eval() to only run it",
            )
        ids = kwargs.get("input_ids", args[0] if args else None)
        labels = kwargs.get("labels")
        if ids is not None and labels is not None:
            for name in trainable:
                self._states[name].reservoir.offer(ids, labels, kwargs.get("attention_mask"))

    def generate(self, *args: Any, adapter_names: Sequence[RowAdapters] | None = None, **kwargs: Any) -> Any:
        """As ``transformers``' ``generate``, with the active adapters.

        Args:
            *args: Passed on.
            adapter_names: One entry per prompt, instead of the active set: see :meth:`mixed_batch`.
            **kwargs: Passed on.

        Raises:
            ConfigError: ``adapter_names`` has not one entry per prompt, or a weight that is no finite number.
            UnknownNameError: It names no adapter.
        """
        if adapter_names is not None:
            self._check_count(adapter_names, args, kwargs)
            with self.mixed_batch(adapter_names):
                return self.generate(*args, **kwargs)
        if not self._wrapped:
            return self.base_model.generate(*args, **kwargs)
        return super().generate(*args, **kwargs)  # type: ignore[no-untyped-call]

    @contextmanager
    def mixed_batch(self, rows: Sequence[RowAdapters]) -> Iterator[MixedBatch]:
        """Within this context each row of a batch goes through its own adapters, all rows at once.

        Args:
            rows: One entry per row: an adapter's name (weight 1), weights by name, or ``"__base__"``. The
                active set and its weights do not matter. A batch of k times as many rows belongs to them in
                blocks of k, as beams do.

        Yields:
            The batch: its ``set_rows`` says anew what the rows of the following passes go through, such as
            between two decoding steps when rows join and leave.

        Raises:
            ConfigError: There is no entry, or a weight is not a finite number.
            UnknownNameError: A name is no adapter.
        """
        batch = MixedBatch(rows, known=self._mixable)
        with self._acting.mixing(batch):
            yield batch

    def _mixable(self, name: str) -> str:
        normal = unicodedata.normalize("NFC", name)
        if normal not in self._states:
            raise UnknownNameError.of("adapter", name, [*self._states, BASE_NAME], where="adapter_names")
        if not self._acting.mixable(normal):
            raise ConfigError(
                f"adapter {name!r} cannot act on single rows",
                got="DoRA or another variant, a bias, or an adapted embedding",
                expected="plain LoRA on linear layers",
                hint=f"set_active_adapter({name!r}) and a batch of its own",
            )
        return normal

    @staticmethod
    def _check_count(
        adapter_names: Sequence[RowAdapters], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        known = (kwargs.get(key) for key in ("input_ids", "inputs", "inputs_embeds"))
        batch = next((each for each in known if each is not None), args[0] if args else None)
        if batch is not None and len(batch) != len(adapter_names):
            raise ConfigError(
                "adapter_names has not one entry per row",
                got=f"{len(adapter_names)} entries for {len(batch)} rows",
                expected=f"{len(batch)} entries: a name, {{name: weight}} or {BASE_NAME!r} each",
            )

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """PEFT's call: within this context the model is the untouched base."""
        with self._acting.off():
            if not self._wrapped or self._acting.all_covered:
                yield
                return
            try:
                with super().disable_adapter():
                    yield
            finally:
                self._apply_layers()  # PEFT leaves every active adapter trainable, frozen ones too

    @contextmanager
    def base_only(self) -> Iterator[None]:
        """Within this context the model is the untouched base."""
        with self.disable_adapter():
            yield

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._acting.release()  # what was folded is not moved or cast along, it is made anew
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
