"""Adapters in folders: plain ones, and those that engines cannot take."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model


@pytest.fixture
def save_lora(tiny_llama, tmp_path) -> Callable[..., Path]:
    """Writes a random PEFT LoRA of the tiny base to a folder; ``**options`` are LoraConfig's."""

    def save(name: str, *, seed: int = 0, **options) -> Path:
        settings = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"], **options}
        model = get_peft_model(tiny_llama, LoraConfig(task_type="CAUSAL_LM", **settings))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "lora_" in key:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        folder = tmp_path / name
        model.save_pretrained(str(folder), save_embedding_layers=False)
        model.unload()
        return folder

    return save


@pytest.fixture
def edit_config() -> Callable[..., None]:
    """Changes fields of a folder's adapter_config.json."""

    def edit(folder: Path, **fields) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return edit
