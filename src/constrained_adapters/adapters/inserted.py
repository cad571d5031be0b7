"""Modules inserted into a frozen base: one set a domain, by hooks that leave nothing behind.

A family says what a set is made of and where it acts (:mod:`~constrained_adapters.adapters.bottleneck`,
:mod:`~constrained_adapters.adapters.progressive`); this file keeps the sets, says which of them act, and
reads and writes them. The base keeps its own modules, parameters and names: hooks call the sets, which belong
to the wrapper. So its weights are never copied, and without the hooks it is what it was, bit for bit.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, final

from safetensors.torch import load, save
from torch import nn
from torch.utils.hooks import RemovableHandle

from constrained_adapters.errors import AdapterStateError, ConfigError, DataError, ModelError
from constrained_adapters.workspace import atomic_write_bytes, atomic_write_json

FORMAT_VERSION = 1
WEIGHTS_FILE = "inserted.safetensors"
FACTS_FILE = "inserted.json"


@dataclass(frozen=True)
class Family(ABC):
    """What a domain's set of modules is made of; its fields are the settings."""

    kind: ClassVar[str]
    reads_earlier: ClassVar[bool]
    """Whether a set acts only together with all that were made before it."""

    @abstractmethod
    def new_set(self, base: Any, position: int) -> nn.Module:
        """An untrained set in float32, drawn from the global random state, on the base's device.

        Args:
            base: A causal language model.
            position: How many sets there are already.
        """

    @abstractmethod
    def hang(self, base: Any, acting: list[nn.Module]) -> list[RemovableHandle]:
        """Hook the sets into the base; ``acting`` is read, in its order, at each call."""


@final
class InsertedModel(nn.Module):
    """A base with inserted sets of modules; in all else it answers as the base does.

    Its ``state_dict`` holds the sets only, so that a checkpoint of training does.

    Args:
        base: A causal language model of transformers; its parameters are frozen until :meth:`unload`.
        family: Of all sets.
        fingerprint: Of the base; written beside each set and compared when one is loaded.

    Raises:
        ModelError: The family finds no place in this architecture.
    """

    is_quantized: ClassVar[bool] = False
    """What is trained is not, even where the base is; Trainer asks."""

    def __init__(self, base: Any, family: Family, *, fingerprint: str) -> None:
        super().__init__()
        self.base_model = base
        self.sets = nn.ModuleList()
        self.family, self.base_fingerprint = family, fingerprint
        self.last_measurements: dict[str, float] = {}
        self._names: list[str] = []
        self._acting: list[nn.Module] = []
        self._handles = family.hang(base, self._acting)
        self._needed_gradients = [p for p in base.parameters() if p.requires_grad]
        for parameter in self._needed_gradients:
            parameter.requires_grad_(False)
        self.register_state_dict_post_hook(_drop_base)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(_do_not_miss_base)  # type: ignore[no-untyped-call]

    def __getattr__(self, name: str) -> Any:
        """What is not the wrapper's own is the base's."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_model":
                raise
            return getattr(super().__getattr__("base_model"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The base's, with the sets that act."""
        return self.base_model(*args, **kwargs)

    @property
    def names(self) -> list[str]:
        """All sets, in the order in which they were made or loaded."""
        return list(self._names)

    def add(self, name: str) -> None:
        """Make an untrained set, the only trainable one; it does not act yet.

        Raises:
            AdapterStateError: The name is taken.
        """
        self._append(name, self.family.new_set(self.base_model, len(self._names)))

    def activate(self, names: Sequence[str]) -> None:
        """Let these sets act, in this order, and no others; where sets read earlier ones, those act too.

        Raises:
            AdapterStateError: There is no such set.
        """
        wanted = [self._position(name) for name in names]
        if self.family.reads_earlier:
            wanted = list(range(max(wanted) + 1)) if wanted else []
        self._acting[:] = [self.sets[position] for position in wanted]

    def num_parameters_of(self, name: str) -> int:
        """How many parameters a set has."""
        return sum(p.numel() for p in self.sets[self._position(name)].parameters())

    def save_set(self, name: str, folder: Path) -> None:
        """Write a set as ``inserted.safetensors`` and ``inserted.json``; each file atomically.

        Raises:
            AdapterStateError: There is no such set.
        """
        position = self._position(name)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            key: value.detach().cpu().contiguous() for key, value in self.sets[position].state_dict().items()
        }
        facts = {
            "format_version": FORMAT_VERSION,
            "kind": self.family.kind,
            "settings": asdict(self.family),
            "base_fingerprint": self.base_fingerprint,
            "name": name,
            "num_parameters": self.num_parameters_of(name),
            "earlier": self._earlier(position),
        }
        atomic_write_bytes(folder / WEIGHTS_FILE, save(tensors, metadata={"format": "pt"}))
        atomic_write_json(folder / FACTS_FILE, facts)

    def load_set(self, folder: Path, name: str) -> None:
        """Add the set that :meth:`save_set` wrote; it does not act yet, and is the only trainable one.

        Raises:
            AdapterStateError: The name is taken.
            DataError: No set is there, or its files are damaged.
            ConfigError: It is of another kind or other settings.
            ModelError: It was made on another base, or after other sets than those that are here.
        """
        self._check(folder, len(self._names))
        made = self.family.new_set(self.base_model, len(self._names))
        _read_weights(made, folder)
        self._append(name, made)

    def reload_set(self, folder: Path, name: str) -> None:
        """Put what :meth:`save_set` wrote into a set that is here already.

        Raises:
            AdapterStateError: There is no such set.
            DataError: No set is there, or its files are damaged.
            ConfigError: It is of another kind or other settings.
            ModelError: It was made on another base, or after other sets than those that are here.
        """
        position = self._position(name)
        self._check(folder, position)
        _read_weights(self.sets[position], folder)

    def _check(self, folder: Path, position: int) -> None:
        facts = _read_facts(folder)
        here = {"kind": self.family.kind, "settings": json.loads(json.dumps(asdict(self.family)))}
        there = {key: facts.get(key) for key in here}
        if there != here:
            raise ConfigError(
                f"{folder} holds another kind of inserted modules", got=str(there), expected=str(here)
            )
        if facts.get("base_fingerprint") != self.base_fingerprint:
            raise ModelError(
                f"the modules in {folder} were made on another base",
                got=f"fingerprint {facts.get('base_fingerprint')}",
                expected=self.base_fingerprint,
                hint="load the base that they were trained on",
            )
        if facts.get("earlier") != self._earlier(position):
            raise ModelError(
                f"the modules in {folder} read those of earlier domains, and others are here",
                got=f"sets here: {', '.join(self._names) or '(none)'}",
                expected="the sets that were there when it was made, in their order",
            )

    def unload(self) -> None:
        """Give the base back as it was; the sets stay here, and act no more."""
        for handle in self._handles:
            handle.remove()
        for parameter in self._needed_gradients:
            parameter.requires_grad_(True)
        self._acting.clear()

    def _append(self, name: str, made: nn.Module) -> None:
        if name in self._names:
            raise AdapterStateError(f"there is a set named {name!r} already", got=", ".join(self._names))
        self.sets.requires_grad_(False)
        self.sets.append(made.train(self.training))
        self._names.append(name)

    def _position(self, name: str) -> int:
        if name not in self._names:
            raise AdapterStateError(
                f"there is no set named {name!r}", got=repr(name), expected=", ".join(self._names) or "(none)"
            )
        return self._names.index(name)

    def _earlier(self, position: int) -> list[str]:
        """SHA-256 of the sets that the one at ``position`` reads."""
        if not self.family.reads_earlier:
            return []
        found = []
        for each in self.sets[:position]:
            digest = hashlib.sha256()
            for key, value in sorted(each.state_dict().items()):
                digest.update(key.encode())
                digest.update(value.detach().cpu().contiguous().numpy().tobytes())
            found.append(digest.hexdigest())
        return found


def _read_facts(folder: Path) -> dict[str, Any]:
    missing = [name for name in (WEIGHTS_FILE, FACTS_FILE) if not (folder / name).is_file()]
    if missing:
        raise DataError("no inserted modules are there", got=f"{folder} has no {' and no '.join(missing)}")
    try:
        facts = json.loads((folder / FACTS_FILE).read_text(encoding="utf-8"))
        assert facts["format_version"] == FORMAT_VERSION, f"format {facts['format_version']}"
    except Exception as error:
        raise DataError(
            "the facts of inserted modules cannot be read",
            got=f"{folder / FACTS_FILE}: {type(error).__name__}: {error}",
            expected=f"JSON of format {FORMAT_VERSION}",
        ) from None
    return dict(facts)


def _read_weights(made: nn.Module, folder: Path) -> None:
    try:
        made.load_state_dict(load((folder / WEIGHTS_FILE).read_bytes()))
    except Exception as error:
        raise DataError(
            "inserted modules cannot be read", got=f"{folder}: {type(error).__name__}: {error}"
        ) from None


def _drop_base(module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
    for key in [key for key in state if key.startswith(f"{prefix}base_model.")]:
        del state[key]


def _do_not_miss_base(module: nn.Module, incompatible: Any) -> None:
    incompatible.missing_keys[:] = [key for key in incompatible.missing_keys if "base_model." not in key]
