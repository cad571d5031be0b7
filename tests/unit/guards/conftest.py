"""A training of a second that is driven into one phrase for every question."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging


@pytest.fixture
def rows(tiny_tokenizer) -> list[dict[str, Any]]:
    texts = [
        f"<|im_start|>user\nhi {n}<|im_end|>\n<|im_start|>assistant\nyes yes yes yes<|im_end|>\n"
        for n in range(10, 50)
    ]
    ids = [tiny_tokenizer(text)["input_ids"] for text in texts]
    return [{"input_ids": each, "labels": each, "attention_mask": [1] * len(each)} for each in ids]


@pytest.fixture
def make_trainer(tiny_llama, tiny_tokenizer, rows, tmp_path) -> Callable[..., Trainer]:
    """A stock Trainer of the tiny Llama; ``learning_rate=0.1`` collapses within ten steps."""
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()

    def make(
        *callbacks: TrainerCallback, output: Path = tmp_path / "out", data: Any = None, **settings: Any
    ) -> Trainer:
        chosen = {
            "max_steps": 20,
            "per_device_train_batch_size": 8,
            "learning_rate": 1e-3,
            "save_strategy": "no",
            "logging_steps": 1,
            **settings,
        }
        trainer = Trainer(
            model=tiny_llama,
            args=TrainingArguments(
                output_dir=str(output), use_cpu=True, report_to="none", disable_tqdm=True, **chosen
            ),
            train_dataset=rows if data is None else data,
            processing_class=tiny_tokenizer,
            callbacks=list(callbacks),
        )
        trainer.remove_callback(PrinterCallback)
        return trainer

    yield make
    if bars:
        logging.enable_progress_bar()
