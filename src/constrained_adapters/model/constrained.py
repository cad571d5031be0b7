"""Training under constraints: the memories of the finished domains and the constraint made of them."""

from __future__ import annotations

import logging
import warnings
import weakref
from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from constrained_adapters.adapters.lora import adapter_pairs
from constrained_adapters.config.crma import Auto, CRMAConfig
from constrained_adapters.constraints import SUBSPACE_TYPES
from constrained_adapters.constraints.attach import Attachment, attach
from constrained_adapters.errors import AdapterStateError, ConfigError
from constrained_adapters.memory.inputs import input_covariances
from constrained_adapters.memory.kfac import KFACMemory
from constrained_adapters.memory.probe import Rows, probe_gradients
from constrained_adapters.memory.protected import ProtectedSpace
from constrained_adapters.memory.reservoir import pad_rows, sample_rows
from constrained_adapters.model.auto import PROBE_ROWS, Chosen, choose
from constrained_adapters.model.binding import (
    make_constraint,
    protected_space,
)
from constrained_adapters.model.remembering import RememberingSet
from constrained_adapters.model.start import start_in_open_inputs

_LOG = logging.getLogger(__name__)


class ConstrainedSet(RememberingSet, ABC):
    """A :class:`RememberingSet` whose memories bind the steps of the domains in training."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
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


def _note_in(model: weakref.ref[ConstrainedSet]) -> Callable[[Mapping[str, Tensor]], None]:
    """What writes a step's measurements into ``model`` without keeping it in memory."""

    def note(measured: Mapping[str, Tensor]) -> None:
        there = model()
        if there is not None:
            there.last_measurements |= {key: float(value) for key, value in measured.items()}

    return note
