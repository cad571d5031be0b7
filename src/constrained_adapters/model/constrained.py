"""Training under constraints: the memories of the finished domains and the constraint made of them."""

from __future__ import annotations

import logging
import warnings
import weakref
from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torch import distributed as dist

from constrained_adapters.adapters.lora import adapter_pairs, delta_weight, lora_layers
from constrained_adapters.config.crma import Auto, CRMAConfig
from constrained_adapters.constraints import SUBSPACE_TYPES
from constrained_adapters.constraints.attach import Attachment, attach
from constrained_adapters.errors import AdapterStateError, ConfigError, ModelError
from constrained_adapters.memory.base_text import write_base_text
from constrained_adapters.memory.inputs import input_covariances
from constrained_adapters.memory.kfac import BASE_DOMAIN, KFACMemory
from constrained_adapters.memory.measure import measure_memory
from constrained_adapters.memory.probe import Rows, probe_gradients
from constrained_adapters.memory.protected import ProtectedSpace
from constrained_adapters.memory.reservoir import num_memory_examples, pad_rows, sample_rows
from constrained_adapters.model.adapter_set import AdapterSet
from constrained_adapters.model.auto import PROBE_ROWS, Chosen, choose
from constrained_adapters.model.binding import check_base, make_constraint, protected_space
from constrained_adapters.model.start import start_in_open_inputs
from constrained_adapters.models.fingerprint import fingerprint_model
from constrained_adapters.workspace import atomic_write_bytes

MEMORY_FILE = "gradient_memory.safetensors"

_LOG = logging.getLogger(__name__)


class ConstrainedSet(AdapterSet, ABC):
    """An :class:`AdapterSet` that remembers finished domains and binds the steps of those in training."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.base_memory: KFACMemory | None = None
        self.last_measurements: dict[str, float] = {}
        self._constrained = False
        self._attachment: Attachment | None = None
        self._spaces: dict[tuple[str, float], ProtectedSpace] = {}
        self._times_strengthened = 0

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
        self._times_strengthened = 0
        self._active_changed()

    def strengthen_constraint(self) -> dict[str, float]:
        """Halve what the constraint in force leaves open, and double its penalty, until it is enabled anew.

        What the adapter in training has learnt in directions that close now is taken out of it. Returned are
        ``constraint_strength`` and ``penalty_weight`` from now on; nothing where no constraint is in force.
        """
        if self._attachment is None:
            return {}
        self._times_strengthened += 1
        self._active_changed()
        config = self._config_in_force(self._trainable())
        return {"constraint_strength": config.effective_strength, "penalty_weight": config.penalty_weight}

    def _config_in_force(self, trainable: Sequence[str]) -> CRMAConfig:
        """The settings with the strength that is meant, as often strengthened as was asked."""
        factor = 2.0**self._times_strengthened
        own = self._strength_of(trainable)
        strength = own if factor == 1.0 else 1.0 - (1.0 - own) / factor
        update = {"constraint_strength": strength, "penalty_weight": factor * self.crma_config.penalty_weight}
        return self.crma_config.model_copy(update=update)

    def __getstate__(self) -> dict[str, Any]:
        """Without the hooks on optimizers: a copy gets its own when it is first trained."""
        return {**self.__dict__, "_attachment": None}

    def _is_to_be_bound(self) -> bool:
        return self._constrained and bool(self._trainable()) and self.crma_config.effective_strength > 0.0

    def _sample_rows(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._attachment is None and self._is_to_be_bound():
            self._active_changed()  # a copy, or what was tried before was refused or interrupted
        super()._sample_rows(args, kwargs)

    def _active_changed(self) -> None:
        if self._attachment is not None:
            self._attachment.remove()
            self._attachment = None
        if not self._is_to_be_bound():
            return
        trainable = self._trainable()
        memories = self._memories_for(trainable)
        pairs = [pair for name in trainable for pair in adapter_pairs(self, name)]
        config = self._config_in_force(trainable)
        space = self._protected_space(config.effective_strength)
        constraint = make_constraint(pairs, self._layers(), memories, config, space)
        constraint.after_step()
        self._attachment = attach(
            constraint,
            domain=", ".join(trainable),
            on_step=_note_in(weakref.ref(self)),
            owner=self,
            watched=[p for pair in pairs for p in (pair.a, pair.b)],
        )

    def _choose(self, name: str, wanted: int | Auto, rows: Rows | None, position: int) -> Chosen:
        config = self.crma_config
        strength = config.constraint_strength if config.effective_strength > 0.0 else 0.0
        if strength != "auto" and wanted != "auto":
            return Chosen(wanted)
        if not rows:
            asked = "constraint_strength" if strength == "auto" else "adapter_dim"
            raise ConfigError(
                f"what suits adapter {name!r} cannot be measured without examples of its domain",
                got=f"{asked}='auto', and no probe_rows",
                expected="up to 32 rows of (token ids, labels)",
                hint=f"create_adapter({name!r}, probe_rows=rows), or a number for {asked}",
            )
        closes = strength != 0.0 and config.constraint_type in SUBSPACE_TYPES
        memories = self._memories(list(self._states)) if closes else []

        def bases_at(each: float) -> dict[str, Tensor]:
            space = self._protected_space(each)
            return space.bases(memories) if space is not None else {}

        chosen = choose(
            probe_gradients(
                self._base, self._layers(), sample_rows(rows, PROBE_ROWS, position + 1), domain=name
            ),
            bases_at if memories else None,
            strength=strength,
            rank=wanted,
            default_strength=float(CRMAConfig.model_fields["constraint_strength"].default),
        )
        _LOG.info("%s: %s", name, chosen.reason)
        return chosen

    def chosen(self, adapter_name: str) -> Chosen | None:
        """The rank that an adapter was made with, and what ``"auto"`` chose for it and why."""
        return self._state(adapter_name).chosen

    def _strength_of(self, names: Sequence[str]) -> float:
        """The config's strength, or the strictest that was chosen for one of these adapters."""
        if self.crma_config.constraint_strength != "auto":
            return self.crma_config.effective_strength
        found = []
        for name in names:
            chosen = self._states[name].chosen
            if chosen is None or "chosen_strength" not in chosen.facts:
                raise AdapterStateError(
                    f"no strength was chosen for adapter {name!r}",
                    got="constraint_strength='auto', and an adapter that was not made under it",
                    expected="one of create_adapter(…, probe_rows=rows)",
                    hint="model.crma_config.constraint_strength = 0.95",
                )
            found.append(chosen.facts["chosen_strength"])
        return max(found)

    def _protected_space(self, strength: float) -> ProtectedSpace | None:
        """What is closed already, kept from domain to domain while the settings stay."""
        config = self.crma_config
        if config.constraint_type not in SUBSPACE_TYPES:
            return None
        wanted = protected_space(config, strength)
        key = (wanted.kind, wanted.strength)
        if key not in self._spaces:
            if config.constraint_strength != "auto":
                self._spaces.clear()
            self._spaces[key] = wanted
        return self._spaces[key]

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
        return self._memories(finished)

    def _memories(self, finished: Sequence[str]) -> list[KFACMemory]:
        """Those that stand, and the base's, which is made where it is wanted and not there yet."""
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

    def start_from(self, adapter_name: str, rows: Rows, *, batch_size: int = 8) -> None:
        """Start an untrained adapter in the open directions in which its domain's inputs vary most.

        In the trials it learnt more there in as many steps, at the same retention (docs/log.md). B stays as
        drawn, so what the model says does not change noticeably.

        Args:
            adapter_name: The adapter; call this before its first step.
            rows: (token ids, labels) of some examples of the domain, each of shape (s,); 32 are enough.
            batch_size: Rows per pass.

        Raises:
            AdapterStateError: There is no row, or a finished adapter has no memory.

        Cost: one forward pass over the rows.
        """
        name = self._known(adapter_name)
        if not rows:
            raise AdapterStateError(
                f"there is nothing to start adapter {name!r} from", got="no rows", hint="pass 32 examples"
            )
        bases: dict[str, Tensor] = {}
        if self.crma_config.effective_strength > 0.0:
            space = self._protected_space(self._strength_of([name]))
            if space is not None:
                bases = space.bases(self._memories_for([name]))
        device = self.get_input_embeddings().weight.device
        batches = (pad_rows(list(rows[i : i + batch_size]), device) for i in range(0, len(rows), batch_size))
        covariances = input_covariances(self._base, self._layers(), batches)
        start_in_open_inputs(list(adapter_pairs(self, name)), covariances, bases)

    def constraint_facts(self) -> dict[str, float]:
        """Fixed facts of the constraint in force, such as ``closed_ratio``; empty where there is none.

        With what ``"auto"`` chose for the adapters in training, whether or not a constraint is in force.
        """
        facts = dict(self._attachment.constraint.describe()) if self._attachment else {}
        for name in self._trainable():
            chosen = self._states[name].chosen
            facts |= chosen.facts if chosen else {}
        return facts

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
            max_examples: Most rows used; default 32, or a twenty-fifth of the rows seen if that is more,
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
            _refuse_several_processes(adapter_name)
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
            num_texts: How many texts; default: enough for eight tokens per input direction, at least 32.
            length_tokens: Length of each.
            seed: Of the sampling.
        """
        with self.base_only():
            base = self._base
            width: int = base.config.get_text_config().hidden_size
            count = num_texts or max(32, -(-8 * width // length_tokens))
            rows = write_base_text(base, num_texts=count, length_tokens=length_tokens, seed=seed)
            return self._measure(BASE_DOMAIN, rows, 8, seed=seed)

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


def _note_in(model: weakref.ref[ConstrainedSet]) -> Callable[[Mapping[str, Tensor]], None]:
    """What writes a step's measurements into ``model`` without keeping it in memory."""

    def note(measured: Mapping[str, Tensor]) -> None:
        there = model()
        if there is not None:
            there.last_measurements |= {key: float(value) for key, value in measured.items()}

    return note


def _refuse_several_processes(adapter_name: str) -> None:
    """Each would make a memory of the rows that it has seen, and the replicas' steps would differ."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        raise AdapterStateError(
            f"the memory of {adapter_name!r} would not be the same in all processes",
            got=f"no rows, in process {dist.get_rank()} of {dist.get_world_size()}",
            expected="the same rows in each",
            hint=f"update_gradient_memory({adapter_name!r}, rows=...)",
        )
