"""A run of a second: a tiny base, three tiny domains, and every kind of stop."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, Qwen2Config, Qwen2ForCausalLM

from constrained_adapters.config.run import RunConfig
from constrained_adapters.results import RunResult
from constrained_adapters.training.observer import SilentObserver
from constrained_adapters.training.run import run_config

DOMAINS = ["law", "数学", "Право"]


class StopError(Exception):
    """Raised in the middle of a run."""


class StopAt(SilentObserver):
    """Stops a run once: after a row of R is measured, or at a step of a domain."""

    def __init__(self, *, row: int | None = None, step: tuple[str, int] | None = None) -> None:
        self._row, self._step = row, step

    def row(self, method: str, row: int, scores: dict[str, dict[str, float]]) -> None:
        if row == self._row:
            raise StopError

    def steps(self, method: str, domain: str, done: int, total: int, loss: float | None) -> None:
        if (domain, done) == self._step:
            raise StopError


class TinyRun:
    """Makes the settings of a run in ``folder`` and does it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def config(self, *methods: Any, output: str = "out", **changes: Any) -> RunConfig:
        names = changes.pop("names", DOMAINS)
        training = {
            "steps": 4,
            "batch_size": 4,
            "max_length_tokens": 48,
            "checkpoint_every_steps": 2,
            "learning_rate": 1e-2,
        }
        evaluation = {
            "max_items": 3,
            "general": str(self.folder / "general.jsonl"),
            "num_samples": 1,
            "max_new_tokens": 2,
        }
        return RunConfig(
            output=self.folder / output,
            base=changes.pop("base", {"model": str(self.folder / "base")}),
            adapter={"rank": 2, **changes.pop("adapter", {})},
            training={**training, **changes.pop("training", {})},
            methods=list(methods),
            domains=[{"name": n, "data": str(self.folder / f"{n}.jsonl")} for n in names],
            evaluation=changes.pop("evaluation", evaluation),
            **changes,
        )

    def save_base_with_biases(self) -> None:
        """Put a Qwen2 in the place of the Llama, which has no biases."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            sizes = LlamaConfig.from_pretrained(self.folder / "base").to_dict()
            known = set(Qwen2Config().to_dict()) - {"model_type", "architectures"}
            kept = {key: value for key, value in sizes.items() if key in known}
            Qwen2ForCausalLM(Qwen2Config(**kept)).save_pretrained(self.folder / "base")

    def __call__(self, *methods: Any, observer: Any = None, **changes: Any) -> RunResult:
        return run_config(self.config(*methods, **changes), observer=observer)


@pytest.fixture
def tiny_run(tmp_path, tiny_llama, tiny_tokenizer) -> Iterator[TinyRun]:
    tiny_llama.save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    for number, name in enumerate([*DOMAINS, "general"]):
        rows = [{"prompt": f"{name} {i}?", "answer": "abcd"[(i + number) % 4] * 2} for i in range(24)]
        text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    gc.freeze()  # Trainer collects garbage after each domain, and a test session holds millions of objects
    yield TinyRun(tmp_path)
    gc.unfreeze()


def numbers(value: Any) -> Any:
    """What of a result is no time, no place and no size of the process."""
    if isinstance(value, dict):
        return {
            key: numbers(inner)
            for key, inner in value.items()
            if not key.endswith("seconds")
            and key not in {"created", "date", "data", "peak_memory_bytes", "output"}
        }
    return [numbers(inner) for inner in value] if isinstance(value, list) else value
