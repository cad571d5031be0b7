"""The adapters of one base: which there are, which are active, their weights, which are frozen."""

from __future__ import annotations

import math
import unicodedata
import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from constrained_adapters.adapters.acting import ActingAdapters
from constrained_adapters.adapters.lora import adapter_pairs, lora_config, lora_layers, start_small
from constrained_adapters.config.crma import Auto, CRMAConfig
from constrained_adapters.config.names import check_domain_name
from constrained_adapters.errors import AdapterStateError, ConfigError, ModelError, UnknownNameError
from constrained_adapters.memory.probe import Rows
from constrained_adapters.memory.reservoir import Reservoir
from constrained_adapters.model.auto import Chosen
from constrained_adapters.model.passes import AdapterPasses, AdapterState
from constrained_adapters.models.targets import resolve_targets

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class AdapterSet(AdapterPasses):
    """A ``peft.PeftModelForCausalLM`` that can be without adapters, and keeps several active with weights.

    Frozen active adapters are folded into one weight per layer when the model is next called, so that any
    number of them costs what none costs; those in training are computed as PEFT does. Rows of one batch may
    go through different adapters: ``adapter_names`` of :meth:`forward` and :meth:`generate`.

    Args:
        base: The base model; its parameters are frozen.
        config: Settings of the adapters.
        tokenizer: Saved along with a merged model.
        fingerprint: Of the base.
    """

    def __init__(
        self,
        base: PreTrainedModel,
        config: CRMAConfig,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        fingerprint: str = "",
    ) -> None:
        torch.nn.Module.__init__(self)
        self._is_prompt_learning = False
        self.base_model = base
        self.crma_config = config
        self.tokenizer = tokenizer
        self.base_fingerprint = fingerprint
        self._states: dict[str, AdapterState] = {}
        self._active: list[str] = []
        self._wrapped = False
        self._acting = ActingAdapters()
        self._applied: dict[str, tuple[float, bool]] = {}
        self._targets = resolve_targets(base, config.domain_specific_layers, config.layers_to_transform)
        self._transposed = any(type(base.get_submodule(name)).__name__ == "Conv1D" for name in self._targets)
        for parameter in base.parameters():
            parameter.requires_grad_(False)

    @property
    def adapter_names(self) -> list[str]:
        """All adapters, in the order in which they were made or loaded."""
        return list(self._states)

    @property
    def active_names(self) -> list[str]:
        """The adapters that take part in the forward pass."""
        return list(self._active)

    def create_adapter(
        self,
        adapter_name: str,
        domain_id: int | None = None,
        *,
        adapter_dim: int | Auto | None = None,
        layers: Sequence[str] | None = None,
        probe_rows: Rows | None = None,
    ) -> None:
        """Add an untrained adapter: small Gaussian A and B, not active yet.

        Args:
            adapter_name: A new name; letters and digits of any script, ``_`` and ``-``.
            domain_id: Position of the domain in the sequence; default: the next.
            adapter_dim: Rank, or ``"auto"``; default: the config's.
            layers: Full names of the layers that this one adapts; default: those of the config. A constraint
                binds only layers whose inputs the memories know.
            probe_rows: (token ids, labels) of some examples of the domain, each of shape (s,), from which
                what is ``"auto"`` is chosen, with the adapters that are active now and the memories that
                stand now; at most 32 are used, and none where nothing is ``"auto"``.

        Raises:
            ConfigError: The name cannot be one, or something is ``"auto"`` and there are no rows.
            AdapterStateError: The name is taken.
            TrainingError: No row carries loss, or a gradient is not finite.
        """
        name = self._new_name(adapter_name)
        settings = self.crma_config
        position = len(self._states) if domain_id is None else domain_id
        chosen = self._choose(name, adapter_dim or settings.adapter_dim, probe_rows, position)
        self._inject(
            name,
            lora_config(
                rank=chosen.rank,
                residual_scaling=settings.residual_scaling,
                targets=self._targets if layers is None else list(layers),
                layers_to_transform=None,
                transposed=self._transposed,
            ),
        )
        start_small(self, name, settings.init_std)
        self._states[name] = AdapterState(
            position, reservoir=Reservoir(settings.gradient_memory_size, position), chosen=chosen
        )
        self._apply_active()

    def set_active_adapter(self, adapter_name: str) -> None:
        """Make one adapter the whole active set; it is trainable unless frozen."""
        self.set_active_adapters([adapter_name])

    def set_active_adapters(self, adapter_names: Sequence[str]) -> None:
        """Make these adapters, each with weight 1, the active set; those not frozen are trainable.

        Raises:
            UnknownNameError: A name is no adapter.
        """
        self._active = list(dict.fromkeys(self._known(name) for name in adapter_names))
        for state in self._states.values():
            state.weight = 1.0
        self._apply_active()

    def set_adapter_weights(self, weights: Mapping[str, float]) -> None:
        """Weigh the active adapters: the output is base + Σ w_i ΔW_i x; others keep their weight.

        Raises:
            AdapterStateError: A named adapter is not active.
            ConfigError: A weight is not a finite number.
        """
        known = {self._known(name): weight for name, weight in weights.items()}
        for name, weight in known.items():
            if name not in self._active:
                raise AdapterStateError(
                    f"adapter {name!r} has a weight but is not active",
                    got=f"active: {self._active}",
                    hint=f"set_active_adapters({[*self._active, name]}) first",
                )
            if not isinstance(weight, int | float) or not math.isfinite(weight):  # type: ignore[redundant-expr]
                raise ConfigError(f"the weight of adapter {name!r} is not a finite number", got=repr(weight))
        for name, weight in known.items():
            self._states[name].weight = float(weight)
        self._apply_active()

    def freeze_adapter(self, adapter_name: str) -> None:
        """Fix an adapter for ever: its weights stay bit-identical whatever is trained later."""
        name = self._known(adapter_name)
        self._states[name].frozen = True
        for pair in adapter_pairs(self, name):  # else an optimizer that still holds them moves them on
            pair.a.grad = pair.b.grad = None
        self._apply_active()

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter and its memory."""
        deleted = self._known(adapter_name)
        del self._states[deleted]
        self._active = [name for name in self._active if name != deleted]
        if not self._states:
            self.unload()
            return
        self._apply_layers()  # else PEFT picks another active adapter by itself
        super().delete_adapter(deleted)
        self._adopt_layers()
        self._acting.release()
        self._apply_active()

    def unload(self) -> PreTrainedModel:
        """Drop all adapters and return the base, bit for bit as it was given."""
        base: PreTrainedModel = self.base_model.unload() if self._wrapped else self.base_model
        self._states.clear()
        self._active = []
        self._active_changed()
        self._unwrap(base)
        return base

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """PEFT's call. An active name changes nothing, so that a Trainer that resumes keeps the set."""
        names = [adapter_name] if isinstance(adapter_name, str) else list(adapter_name)
        if not set(names) <= set(self._active):
            self.set_active_adapters(names)

    def _inject(self, name: str, config: Any) -> None:
        whole = config.modules_to_save or config.trainable_token_indices
        if whole:
            raise ModelError(
                f"adapter {name!r} replaces parts of the base, so it cannot be weighed and switched",
                got=f"modules_to_save or trainable_token_indices: {whole}",
                expected="low-rank matrices only",
                hint="train it without, or merge it into the base first",
            )
        if self._wrapped:
            self.add_adapter(name, config)
        else:
            base = self.base_model
            training = self.training
            with warnings.catch_warnings():  # PEFT asks transformers by a name that is going out of use
                warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
                super().__init__(base, config, adapter_name=name)  # PEFT wraps a base only with an adapter
            self._wrapped = True
            self.train(training)
        self._adopt_layers()

    def _unwrap(self, base: PreTrainedModel) -> None:
        training = self.training
        torch.nn.Module.__init__(self)
        self.base_model = base
        self._wrapped = False
        self._acting = ActingAdapters()
        self.train(training)

    def _new_name(self, name: str) -> str:
        normal = adapter_name_of(name)
        if normal in self._states:
            raise AdapterStateError(
                f"there is an adapter named {normal!r} already",
                got=f"adapters: {self.adapter_names}",
                hint="choose another name, or delete_adapter() first",
            )
        return normal

    def _known(self, name: str) -> str:
        """The adapter's name as it is kept: NFC, whichever way its accents were typed."""
        normal = unicodedata.normalize("NFC", name)
        if normal not in self._states:
            raise UnknownNameError.of("adapter", name, self._states)
        return normal

    def _state(self, name: str) -> AdapterState:
        return self._states[self._known(name)]

    def _apply_active(self) -> None:
        self._apply_layers()
        self._active_changed()

    @abstractmethod
    def _choose(self, name: str, wanted: int | Auto, rows: Rows | None, position: int) -> Chosen:
        """What adapter ``name`` is made with, where the rank ``wanted`` or the strength is ``"auto"`` too."""

    @abstractmethod
    def _active_changed(self) -> None:
        """Called whenever the active set, a weight or what is frozen has changed."""

    def _adopt_layers(self) -> None:
        """Called whenever PEFT has made or dropped layers or adapters, which leaves its settings behind."""
        self._acting.adopt(lora_layers(self))
        self._applied.clear()

    def _apply_layers(self) -> None:
        """Make the layers agree with the active set, the weights and what is frozen."""
        if not self._wrapped:
            return
        if not self._acting.all_covered:
            self.base_model.set_adapter(self._active, inference_mode=True)
            self._applied.clear()
        self._acting.act(self._active, self._trainable())
        self.base_model.active_adapter = self._acting.active
        self.active_adapter = self._active[0] if self._active else next(iter(self._states))
        changed = {}
        for name, state in self._states.items():
            wanted = (state.weight, name in self._active and not state.frozen)
            if wanted[1] or self._applied.get(name) != wanted:
                changed[name] = wanted
        if not changed:
            return
        for layer in lora_layers(self).values() if not self._acting.all_covered else self._acting_layers():
            for name, (weight, trainable) in changed.items():
                if name in layer.lora_A:
                    layer.set_scale(name, weight)
                    layer.lora_A[name].requires_grad_(trainable)
                    layer.lora_B[name].requires_grad_(trainable)
        self._applied.update(changed)


def adapter_name_of(name: str) -> str:
    """Return ``name`` as PEFT can hold it, or raise the error that says why it cannot."""
    try:
        normal = check_domain_name(name)
    except ValueError as error:
        raise ConfigError("this cannot be an adapter's name", got=repr(name), expected=str(error)) from None
    if hasattr(torch.nn.ModuleDict, normal):
        raise ConfigError(f"{name!r} is a reserved name", got=repr(name), hint=f"{name}_domain")
    return normal
