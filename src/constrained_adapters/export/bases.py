"""Which base the exported adapters belong to, and loading it for the check of an export."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from constrained_adapters.adapters.files import CONFIG_FILE, read_adapter_config, read_facts
from constrained_adapters.config.run import BaseConfig
from constrained_adapters.errors import ModelError, UsageError
from constrained_adapters.export.lora import HUB_NAMES
from constrained_adapters.export.plain import Pairs
from constrained_adapters.export.sources import Source
from constrained_adapters.models.embedded import EMBEDDED_NAME
from constrained_adapters.models.load import LoadedBase, load_base
from constrained_adapters.workspace import Workspace


@dataclass(frozen=True)
class BaseName:
    """What is known of a base before it is loaded.

    Args:
        name: What ``load_base`` takes.
        revision: On the hub.
        quantization: That the adapters were trained on.
        fingerprint: That the adapters were trained on; None where nobody wrote it down.
        dtype: That the adapters were trained on.
    """

    name: str
    revision: str | None = None
    quantization: str | None = None
    fingerprint: str | None = None
    dtype: str | None = None

    @property
    def shown(self) -> str:
        """What other programs know it by."""
        return HUB_NAMES.get(self.name, self.name)


def find_base(sources: Sequence[Source], workspace: Workspace | None, asked: str | None = None) -> BaseName:
    """The base of a run, or of adapters in folders.

    Args:
        sources: What is exported.
        workspace: Of the run, if there is one.
        asked: The base's name, where it lies elsewhere now, or nothing else says it.

    Raises:
        UsageError: Nothing says it.
    """
    if workspace is not None:
        fingerprint, known = workspace.read_base()
        return BaseName(
            _loadable(asked or str(known["model"])),
            None if asked else known.get("revision"),
            known.get("quantization"),
            fingerprint,
            known.get("dtype"),
        )
    folders = [folder for source in sources for folder in source.adapters]
    facts = [read_facts(folder) for folder in folders]
    prints = [str(each["base_fingerprint"]) for each in facts if each.get("base_fingerprint")]
    names = [str(each["base_model_name"]) for each in facts if each.get("base_model_name")]
    names += [name for folder in folders if (name := read_adapter_config(folder).base_model_name_or_path)]
    if asked is None and not names:
        raise UsageError(
            "nothing says which base this adapter belongs to",
            got=str(folders[0] / CONFIG_FILE),
            hint="--base NAME",
        )
    quantization = next((each["config"].get("quantization") for each in facts if each.get("config")), None)
    return BaseName(_loadable(asked or names[0]), None, quantization, prints[0] if prints else None)


def open_base(base: BaseName, device: str = "auto") -> LoadedBase:
    """Load it without adapters, in float32 where the memory allows, whatever the adapters were trained on.

    Weights of 16 bits are the same in float32; where float32 would give others than the adapters were
    trained on, these are rounded first.

    Raises:
        ModelError: It cannot be loaded, or is not the base that the adapters were trained on.
        ConstrainedAdaptersError: As :func:`~constrained_adapters.models.load_base`.
    """
    asked = BaseConfig(model=base.name, revision=base.revision, device=device, dtype="float32")
    loaded = load_base(asked)
    if base.fingerprint is not None and loaded.fingerprint != base.fingerprint:
        if base.dtype in {"bfloat16", "float16"}:
            loaded = load_base(asked.model_copy(update={"dtype": base.dtype}))
            loaded.model.float()
        if base.quantization is None and loaded.fingerprint != base.fingerprint:
            raise ModelError(
                "this is not the base that the adapters were trained on",
                got=f"{base.name}, fingerprint {loaded.fingerprint}",
                expected=f"fingerprint {base.fingerprint}",
                hint="--base NAME, where it lies elsewhere now",
            )
    # Adapters of a quantised base are held against the weights that it was quantised from.
    return loaded if base.quantization is None else replace(loaded, fingerprint=base.fingerprint or "")


def check_fits(pairs: Pairs, model: Any, folder: Path) -> None:
    """Refuse an adapter whose layers the base does not have, or has in another shape.

    Args:
        pairs: Of the adapter.
        model: The base without adapters.
        folder: Of the adapter, for the message.

    Raises:
        ModelError: It belongs to another base.
    """
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    for module, (a, b) in pairs.items():
        found, wanted = shapes.get(f"{module}.weight"), (b.shape[0], a.shape[1])
        if found is None or sorted(found) != sorted(wanted):  # GPT-2 keeps them the other way round
            there = "no such layer" if found is None else f"a layer of shape {list(found)}"
            raise ModelError(
                "this adapter belongs to another base",
                got=f"{module}: ΔW of shape {list(wanted)}, the base has {there} ({folder})",
                hint="--base NAME, the base that it was trained on",
            )


def _loadable(name: str) -> str:
    return "embedded" if name in {EMBEDDED_NAME, HUB_NAMES["embedded"]} else name
