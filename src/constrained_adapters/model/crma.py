"""CRMAModel: one base model and the CRMA adapters of its domains; loading, saving, merging."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, final

from constrained_adapters.adapters.files import (
    read_adapter_config,
    read_facts,
    read_json,
    write_adapter,
)
from constrained_adapters.config.crma import CRMAConfig
from constrained_adapters.config.run import BaseConfig
from constrained_adapters.errors import AdapterStateError, ModelError
from constrained_adapters.memory.reservoir import Reservoir
from constrained_adapters.model.auto import Chosen
from constrained_adapters.model.constrained import ConstrainedSet
from constrained_adapters.model.passes import AdapterState
from constrained_adapters.model.remembering import MEMORY_FILE
from constrained_adapters.models.fingerprint import fingerprint_model
from constrained_adapters.models.load import LoadedBase, load_base
from constrained_adapters.workspace import atomic_write_bytes, atomic_write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MODEL_FILE = "crma_model.json"


@final
class CRMAModel(ConstrainedSet):
    """One base model and the CRMA adapters of its domains.

    It is a ``peft.PeftModelForCausalLM``: Trainer, SFTTrainer and every tool that knows PEFT take
    it as it is. Made by :meth:`from_pretrained`. A domain's life: :meth:`create_adapter`,
    :meth:`set_active_adapter`, training with any loop, :meth:`freeze_adapter`,
    :meth:`save_adapter`, :meth:`update_gradient_memory`; with
    ``enable_constrained_training(True)`` every later domain is trained under the memories.

    While an adapter trains, up to ``gradient_memory_size`` of the token rows that pass through are
    sampled in main memory, so that its memory can be made without passing the data again; they
    never reach the disk.
    """

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        source: CRMAConfig | str | Path,
        adapters: Sequence[str | Path] = (),
        *,
        config: CRMAConfig | None = None,
    ) -> Self:
        """Load a base, and adapters if any.

        Args:
            source: A :class:`~constrained_adapters.config.crma.CRMAConfig`; or a base by hub name, folder or
                ``"embedded"``; or a folder that :meth:`save_pretrained` wrote.
            adapters: Folders of adapters (:meth:`save_adapter`'s, or any PEFT LoRA); all become active.
            config: Settings, where ``source`` is a name; default: those of the first adapter.

        Raises:
            ModelError: The base cannot be loaded, or an adapter belongs to another base.
            DataError: A folder holds no adapter.
        """
        if isinstance(source, CRMAConfig):
            config = source
        elif (Path(source) / MODEL_FILE).is_file():
            return cls._load_set(Path(source))
        elif config is None:
            known = read_facts(Path(adapters[0])).get("config", {}) if adapters else {}
            config = CRMAConfig(**{**known, "base_model_name": str(source)})
        model = cls.from_base(load_base(_base_config(config)), config)
        for folder in adapters:
            model.load_adapter(folder)
        if adapters:
            model.set_active_adapters(list(model._states))
        return model

    @classmethod
    def from_base(cls, base: LoadedBase, config: CRMAConfig) -> Self:
        """Build on a base that :func:`~constrained_adapters.models.load_base` has loaded already."""
        if config.gradient_checkpointing:
            base.model.activation_checkpointing_enable({"use_reentrant": False})
        return cls(base.model, config, tokenizer=base.tokenizer, fingerprint=base.fingerprint)

    @classmethod
    def _load_set(cls, folder: Path) -> Self:
        facts = read_json(folder / MODEL_FILE)
        model = cls.from_pretrained(CRMAConfig(**facts["config"]))
        for name in facts["adapters"]:
            model.load_adapter(folder / name, name)
        if (folder / MEMORY_FILE).is_file():
            model.base_memory = model.load_memory(folder / MEMORY_FILE)
        if facts["active"]:
            model.set_active_adapters(facts["active"])
            model.set_adapter_weights({name: facts["weights"][name] for name in facts["active"]})
        return model

    def save_adapter(self, folder: str | Path, adapter_name: str) -> None:
        """Write one adapter as a plain PEFT LoRA folder, with its memory where it has one."""
        adapter_name = self._known(adapter_name)
        state = self._states[adapter_name]
        folder = Path(folder)
        facts = {
            "name": adapter_name,
            "domain_id": state.domain_id,
            "frozen": state.frozen,
            "base_fingerprint": self.base_fingerprint,
            "base_model_name": self.crma_config.base_model_name,
            "config": self.crma_config.model_dump(),
            "chosen": asdict(state.chosen) if state.chosen else None,
        }
        write_adapter(self, adapter_name, folder, facts)
        state.folder = folder
        if state.memory is not None:
            atomic_write_bytes(folder / MEMORY_FILE, state.memory.to_bytes())

    def load_adapter(  # type: ignore[override]
        self, model_id: str | Path, adapter_name: str | None = None, is_trainable: bool = False, **kwargs: Any
    ) -> Any:
        """Load an adapter folder, with its memory where there is one; loaded adapters are frozen.

        Args:
            model_id: A folder of :meth:`save_adapter`, or any PEFT LoRA folder of this base.
            adapter_name: Its name here; default: the name it was saved under, else the folder's.
            is_trainable: Leave it trainable.
            **kwargs: Passed to PEFT.

        Raises:
            AdapterStateError: An adapter of the name under which it was saved is there already.
            DataError: No adapter is there.
            ModelError: It belongs to another base, or is no LoRA.
        """
        folder = Path(model_id)
        if adapter_name in self._states:  # a Trainer that resumes puts its checkpoint's weights back
            self._check_fingerprint(read_facts(folder).get("base_fingerprint"), folder)
            self._acting.release()
            return super().load_adapter(str(folder), adapter_name, is_trainable=is_trainable, **kwargs)
        config, facts = read_adapter_config(folder), read_facts(folder)
        self._check_fingerprint(facts.get("base_fingerprint"), folder)
        name = self._new_name(adapter_name or facts.get("name") or folder.name)
        self._inject(name, config)
        position = facts.get("domain_id", len(self._states))
        self._states[name] = AdapterState(
            position,
            frozen=not is_trainable,
            folder=folder,
            reservoir=Reservoir(self.crma_config.gradient_memory_size, position),
            chosen=Chosen(**facts["chosen"]) if facts.get("chosen") else None,
        )
        result = super().load_adapter(str(folder), name, is_trainable=is_trainable, **kwargs)
        if (folder / MEMORY_FILE).is_file():
            self._states[name].memory = self.load_memory(folder / MEMORY_FILE)
        self._apply_active()
        return result

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:  # type: ignore[override]
        """Write the whole set, one folder per adapter; after :meth:`merge_and_unload`, the merged model."""
        folder = Path(save_directory)
        if not self._states:
            self.base_model.save_pretrained(folder, **kwargs)
            if self.tokenizer is not None:
                self.tokenizer.save_pretrained(folder)
            return
        for name, state in self._states.items():
            home = state.folder
            self.save_adapter(folder / name, name)
            state.folder = home
        if self.base_memory is not None:
            atomic_write_bytes(folder / MEMORY_FILE, self.base_memory.to_bytes())
        atomic_write_json(
            folder / MODEL_FILE,
            {
                "config": self.crma_config.model_dump(),
                "base_fingerprint": self.base_fingerprint,
                "adapters": self.adapter_names,
                "active": self._active,
                "weights": {name: state.weight for name, state in self._states.items()},
            },
        )

    def merge_and_unload(self, **kwargs: Any) -> PreTrainedModel:
        """Add the active adapters, with their weights, to the base's weights and drop all adapters.

        Returns:
            The merged model; ``save_pretrained`` on this object writes it too.

        Raises:
            AdapterStateError: No adapter is active.
            ModelError: The base is quantised: packed weights cannot take a merge without loss.
        """
        if not self._active:
            raise AdapterStateError(
                "there is nothing to merge", got="no active adapter", hint="set_active_adapters(…)"
            )
        if self.crma_config.quantization is not None:
            raise ModelError(
                "adapters are not merged into quantised weights",
                got=f"quantization={self.crma_config.quantization!r}",
                hint="load the base without quantization and merge there",
            )
        merged: PreTrainedModel = self.base_model.merge_and_unload(adapter_names=self._active, **kwargs)
        self._states.clear()
        self._active = []
        self._active_changed()
        self._unwrap(merged)
        # The merged model is another base: what was known of the old one does not hold for it.
        self.base_memory = None
        self.base_fingerprint = self.base_fingerprint and fingerprint_model(merged)
        return merged


def _base_config(config: CRMAConfig) -> BaseConfig:
    return BaseConfig(model=config.base_model_name, dtype=config.dtype, quantization=config.quantization)
