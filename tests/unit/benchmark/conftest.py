"""A plan of two methods over three tiny domains, and a stand-in for training that takes no time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from constrained_adapters.benchmark.plan import Plan, read_plan
from constrained_adapters.config.run import RunConfig
from constrained_adapters.evaluation.summary import summarise
from constrained_adapters.results import Curve, DomainRecord, MethodResult, RunResult, Sample

DOMAINS = ["law", "数学", "Право"]


@pytest.fixture
def write_plan(tmp_path) -> Callable[..., Path]:
    """Write a ``plan.yaml``; named sections replace those of the default plan."""

    def write(**changes: Any) -> Path:
        plan = {
            "title": "Tiny",
            "base": {"model": "base"},
            "adapter": {"rank": 2},
            "training": {"steps": 2, "batch_size": 4, "max_length_tokens": 48},
            "evaluation": {
                "max_items": 3,
                "general": "general.jsonl",
                "general_items": 2,
                "num_samples": 0,
            },
            "domains": [{"name": name, "data": f"{name}.jsonl"} for name in DOMAINS],
            "orders": [DOMAINS, DOMAINS[::-1]],
            "seeds": [0, 1],
            "sweep": {"domains": 2},
            "methods": [
                {"recipe": "lora", "learning_rates": [0.001, 0.01]},
                {"recipe": "crma", "settings": {"learning_rate": 0.01}},
            ],
            **changes,
        }
        file = tmp_path / "plan.yaml"
        file.write_text(yaml.safe_dump(plan, allow_unicode=True, sort_keys=False), encoding="utf-8")
        return file

    return write


@pytest.fixture
def plan(write_plan) -> Plan:
    return read_plan(write_plan())


@pytest.fixture
def tiny_files(tmp_path, tiny_llama, tiny_tokenizer) -> Path:
    """A base and the data that the plan names."""
    tiny_llama.save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    for number, name in enumerate([*DOMAINS, "general"]):
        rows = [{"prompt": f"{name} {i}?", "answer": "abcd"[(i + number) % 4] * 2} for i in range(24)]
        text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return tmp_path


# Per recipe and learning rate: loss right after learning, and how much it rises a later domain.
LOSSES = {("lora", 0.001): (1.5, 1.0), ("lora", 0.01): (1.0, 0.5), ("crma", 0.01): (1.0, 0.1)}


class FakeTraining:
    """Stands for ``run_config``: keeps what it was asked for, and makes numbers that are known."""

    def __init__(self) -> None:
        self.configs: list[RunConfig] = []
        self.breaks: dict[str, Exception] = {}
        """Method or ``method:rate`` → what its runs raise."""

    def __call__(self, config: RunConfig, *, observer: Any, fresh: bool = False) -> RunResult:
        self.configs.append(config)
        method = config.methods[0]
        for key in (method.name, f"{method.name}:{method.learning_rate}"):
            if key in self.breaks:
                raise self.breaks[key]
        config.output.mkdir(parents=True)
        (config.output / "adapter").write_bytes(b"heavy")
        return RunResult(
            title=config.title,
            created="2026-01-01T00:00:00+00:00",
            base={"model": config.base.model, "fingerprint": "f1"},
            environment={"device": "cpu", "num_threads": 1},
            settings=config.model_dump(mode="json"),
            methods=[fake_method(config)],
        )


def fake_method(config: RunConfig) -> MethodResult:
    method = config.methods[0]
    learned, rise = LOSSES.get((method.recipe, method.learning_rate or 0.01), (1.2, 0.3))
    names = [domain.name for domain in config.domains]
    count = len(names)
    loss = [
        [4.0 if i <= j else learned + rise * (i - j - 1) + config.seed / 10 for j in range(count)]
        for i in range(count + 1)
    ]
    exact = [[max(0.0, 1 - value / 4) for value in row] for row in loss]
    matrices = {"loss": loss, "exact_match": exact}
    general = [1.0] * count + [1.0 + rise / 10]
    totals = {
        "train_seconds": 60.0 * count,
        "memory_seconds": 0.0,
        "step_seconds": 1.0 if method.recipe == "lora" else 1.1,
        "bytes_per_domain": 2000.0,
        "peak_memory_bytes": 3e6,
        "keeps_old_data": float(method.recipe in {"joint", "replay"}),
    }
    return MethodResult(
        name=method.name,
        recipe=method.recipe,
        settings=method.model_dump(mode="json", exclude_none=True),
        domains=names,
        matrices=matrices,
        general_nats=general,
        summary={**summarise(matrices, general), **totals},
        records=[
            DomainRecord(
                name=name,
                num_train=20,
                num_validation=2,
                num_test=3,
                data_fingerprint="d",
                train_seconds=60.0,
                memory_seconds=0.0,
                eval_seconds=1.0,
                adapter_bytes=2000,
                memory_bytes=0,
                curves={"loss": Curve(steps=[1, 2], values=[2.0, 1.0])},
            )
            for name in names
        ],
        samples=[
            Sample(domain=names[0], prompt="?", reference="!", base="", learned="!", final="!"),
        ],
    )


@pytest.fixture
def training(monkeypatch) -> FakeTraining:
    fake = FakeTraining()
    monkeypatch.setattr("constrained_adapters.training.run.run_config", fake)
    monkeypatch.setattr("constrained_adapters.benchmark.run.forget_peak_memory", lambda: None)
    return fake
