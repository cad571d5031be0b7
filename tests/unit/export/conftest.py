"""Adapters in folders: plain ones, and those that engines cannot take."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from constrained_adapters.config.crma import CRMAConfig
from constrained_adapters.config.run import BaseConfig
from constrained_adapters.model import CRMAModel
from constrained_adapters.models.load import load_base
from constrained_adapters.workspace import Workspace

DOMAINS = ["law", "数学"]


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


@pytest.fixture
def base_folder(tiny_llama, tiny_tokenizer, tmp_path) -> Path:
    """The tiny base as a folder, as a user has it."""
    folder = tmp_path / "base"
    tiny_llama.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def workspace(base_folder, tmp_path) -> Workspace:
    """What a run of ``crma`` on two domains leaves, with random adapters that change what is said."""
    base = load_base(BaseConfig(model=str(base_folder), device="cpu", dtype="float32"))
    config = CRMAConfig(base_model_name=str(base_folder), adapter_dim=3, residual_scaling=2.0)
    model = CRMAModel.from_base(base, config)
    made = Workspace(tmp_path / "run" / "crma")
    made.remember_settings({"method": {"recipe": "crma"}})
    made.remember_base(base.fingerprint, base.description)
    generator = torch.Generator().manual_seed(0)
    for number, name in enumerate(DOMAINS, start=1):
        model.create_adapter(name)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if f".{name}." in key and ".lora_B." in key:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        model.save_adapter(made.adapter(name), name)
        scores = {"loss": 1.5 - 0.1 * number, "exact_match": 0.25 * number}
        made.ledger.append(
            {
                "domain": name,
                "position": number,
                "recipe": "crma",
                "data": f"{name}.jsonl",
                "data_fingerprint": "ab" * 32,
                "num_train": 40,
                "learning_rate": 6e-3,
                "constraint_strength": 0.8,
                "scores": {name: scores},
            }
        )
        made.write_evaluation(number, dict.fromkeys(DOMAINS[:number], scores))
    return made


@pytest.fixture
def merging_tokenizer(tiny_tokenizer) -> PreTrainedTokenizerFast:
    """The tiny tokenizer with one merge: GGUF files of byte-level BPE hold at least one."""
    state = json.loads(tiny_tokenizer.backend_tokenizer.to_str())
    number = len(state["model"]["vocab"])
    # transformers gives every such GGUF file's tokenizer an <|endoftext|>
    state["model"]["vocab"] |= {"th": number, "<|endoftext|>": number + 1}
    state["model"]["merges"] = [["t", "h"]]
    special = {
        "pad_token": "<|pad|>",
        "unk_token": "<|pad|>",
        "bos_token": "<|pad|>",
        "eos_token": "<|im_end|>",
    }
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), **special)
