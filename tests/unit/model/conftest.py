"""A tiny base on disk, models on it, and three ways to train them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from constrained_adapters import CRMAConfig, CRMAModel


@pytest.fixture
def base_folder(tmp_path, tiny_llama, tiny_tokenizer) -> Path:
    folder = tmp_path / "base"
    tiny_llama.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def make_model(base_folder):
    """Build a model on the tiny base: ``make_model(constraint_strength=0.9)``."""

    def make(**settings: Any) -> CRMAModel:
        torch.manual_seed(7)
        # The base of its own text is left out where nothing else is said: sampling it takes a second.
        chosen = {"adapter_dim": 4, "residual_scaling": 2.0, "protect_base": False, **settings}
        return CRMAModel.from_pretrained(CRMAConfig(base_model_name=str(base_folder), **chosen))

    return make


@pytest.fixture
def rows():
    """Seeded token rows of one domain: ``rows(0)``; every token carries loss."""

    def make(domain: int, count: int = 16, length: int = 12) -> list[dict[str, list[int]]]:
        generator = torch.Generator().manual_seed(100 + domain)
        ids = torch.randint(3, 259, (count, length), generator=generator).tolist()
        return [{"input_ids": row, "attention_mask": [1] * length, "labels": row} for row in ids]

    return make


def with_trainer(model: Any, data: list[Any], folder: Path, **arguments: Any) -> None:
    from transformers import Trainer, TrainingArguments, default_data_collator

    args = TrainingArguments(**{**_arguments(folder), **arguments})
    Trainer(model=model, args=args, train_dataset=data, data_collator=default_data_collator).train()


def with_sft_trainer(model: Any, data: list[Any], folder: Path, **arguments: Any) -> None:
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    args = SFTConfig(
        **{
            **_arguments(folder),
            "max_length": None,
            "activation_checkpointing": False,
            "bf16": False,
            **arguments,
        }
    )
    SFTTrainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_list(data),
        processing_class=AutoTokenizer.from_pretrained(model.crma_config.base_model_name),
    ).train()


def with_loop(model: Any, data: list[Any], folder: Path, **arguments: Any) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    for step in range(arguments.get("max_steps", 6)):
        rows = [data[(4 * step + i) % len(data)] for i in range(4)]
        batch = {key: torch.tensor([row[key] for row in rows]) for key in rows[0]}
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def _arguments(folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder / "trainer"),
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "seed": 3,
    }


WAYS = {"trainer": with_trainer, "sft_trainer": with_sft_trainer, "loop": with_loop}


@pytest.fixture
def train(tmp_path):
    """Train a model: ``train(model, data, way="loop", max_steps=3)``."""

    def run(model: Any, data: list[Any], way: str = "loop", **arguments: Any) -> None:
        torch.manual_seed(11)
        WAYS[way](model, data, tmp_path, **arguments)
        model.eval()

    return run


@pytest.fixture
def finish(train):
    """Train an adapter of its own name to the end of its life: frozen and remembered."""

    def run(model: CRMAModel, name: str, data: list[Any]) -> None:
        model.create_adapter(name)
        model.set_active_adapter(name)
        train(model, data)
        model.freeze_adapter(name)
        model.update_gradient_memory(name)

    return run


@pytest.fixture
def weights_of():
    """Copies of an adapter's matrices by the layer's name and A or B; works on any PEFT model."""

    def copy(model: torch.nn.Module, name: str) -> dict[str, torch.Tensor]:
        mark = f".{name}."
        return {
            key.replace(mark, "."): value.detach().clone()
            for key, value in model.named_parameters()
            if mark in key and "lora_" in key
        }

    return copy


@pytest.fixture
def logits():
    """Logits of one fixed prompt."""

    def run(model: torch.nn.Module) -> torch.Tensor:
        ids = torch.arange(20, 40)[None]
        model.eval()
        with torch.no_grad():
            return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits

    return run
