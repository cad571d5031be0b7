"""One adapter's files: a plain PEFT LoRA folder plus ``crma.json`` with what PEFT has no place for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import save

from constrained_adapters.errors import DataError, ModelError
from constrained_adapters.workspace import atomic_write_bytes, atomic_write_json

FACTS_FILE = "crma.json"
WEIGHTS_FILE = "adapter_model.safetensors"
OLD_WEIGHTS_FILE = "adapter_model.bin"
"""As PEFT wrote them before it had safetensors."""
CONFIG_FILE = "adapter_config.json"


def write_adapter(model: PeftModel, adapter: str, folder: Path, facts: dict[str, Any]) -> None:
    """Write ``adapter`` so that PEFT and every LoRA engine can load ``folder``; each file atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in get_peft_model_state_dict(
            model, adapter_name=adapter, save_embedding_layers=False
        ).items()
    }
    config = model.peft_config[adapter].to_dict()
    config["inference_mode"] = True
    for key in ("target_modules", "exclude_modules"):
        if isinstance(config.get(key), set):
            config[key] = sorted(config[key])
    config["base_model_name_or_path"] = config.get("base_model_name_or_path") or facts.get("base_model_name")
    atomic_write_bytes(folder / WEIGHTS_FILE, save(weights, metadata={"format": "pt"}))
    atomic_write_json(folder / CONFIG_FILE, config)
    atomic_write_json(folder / FACTS_FILE, facts)


def read_adapter_config(folder: Path) -> PeftConfig:
    """PEFT's configuration of the adapter in ``folder``.

    Raises:
        DataError: No adapter is there, or its settings are damaged.
        ModelError: It is not a LoRA.
    """
    has_weights = any((folder / name).is_file() for name in (WEIGHTS_FILE, OLD_WEIGHTS_FILE))
    if not (folder / CONFIG_FILE).is_file() or not has_weights:
        there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else "no such folder"
        raise DataError(
            "no adapter is there",
            got=f"{folder}: {there}",
            expected=f"a folder with {CONFIG_FILE} and {WEIGHTS_FILE}",
        )
    read_json(folder / CONFIG_FILE)
    config: PeftConfig = PeftConfig.from_pretrained(str(folder))
    if str(config.peft_type) not in {"LORA", "PeftType.LORA"}:
        raise ModelError(
            "only LoRA adapters can be loaded", got=f"{config.peft_type} in {folder}", expected="LORA"
        )
    return config


def read_facts(folder: Path) -> dict[str, Any]:
    """The content of ``crma.json``; empty for a LoRA made elsewhere.

    Raises:
        DataError: The file is damaged.
    """
    path = folder / FACTS_FILE
    return read_json(path) if path.is_file() else {}


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file.

    Raises:
        DataError: The file is damaged.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError("a file of an adapter is damaged", got=f"{path}: {error}", expected="JSON") from None
    return content
