"""A small finished run, and the command called as a user calls it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from constrained_adapters.results import MethodResult, RunResult

DOMAINS = ["medicine", "数学", "Право"]


def method(name: str, finals: list[float], *, drift: float, recipe: str | None = None) -> MethodResult:
    rows = [[0.0] * len(DOMAINS), *([finals] * len(DOMAINS))]
    summary = {
        "accuracy": sum(finals) / len(finals),
        "learned": 0.8,
        "backward_transfer": -drift / 100,
        "forgetting": drift / 100,
        "choice_accuracy": 0.9,
        "drift_percent": drift,
        "general_perplexity_base": 12.03,
        "general_perplexity": 12.03 + drift / 10,
        "train_seconds": 100.0 + drift,
        "memory_seconds": 1.0,
        "eval_seconds": 9.0,
        "bytes_per_domain": 1.8e6,
        "keeps_old_data": float(name == "replay"),
    }
    return MethodResult(
        name=name,
        recipe=recipe or name,
        settings={},
        domains=DOMAINS,
        matrices={"exact_match": rows, "loss": rows},
        general_nats=[2.5] * (len(DOMAINS) + 1),
        summary=summary,
        records=[],
    )


@pytest.fixture
def result() -> RunResult:
    return RunResult(
        title="Three [domains]",
        created="2026-01-01T00:00:00+00:00",
        base={"model": "embedded"},
        environment={},
        settings={},
        methods=[
            method("crma", [0.8, 0.7, 0.6], drift=1.4),
            method("lora", [0.3, 0.4, 0.65], drift=84.0),
            method("joint", [0.9, 0.9, 0.9], drift=-5.0),
        ],
    )


@pytest.fixture
def crma():
    """Call ``crma`` in this process: ``crma("run", "crma.yaml")``."""

    def call(*arguments: str):
        from constrained_adapters.cli.main import app

        return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="crma")

    return call


@pytest.fixture
def crma_process(tmp_path):
    """Call ``crma`` in a process of its own, in the test's folder."""

    def call(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "constrained_adapters.cli", *map(str, arguments)]
        return subprocess.run(
            command, capture_output=True, encoding="utf-8", cwd=tmp_path, timeout=120, check=False, **options
        )

    return call


@pytest.fixture
def run_file(tmp_path) -> Path:
    file = tmp_path / "crma.yaml"
    file.write_text(
        "title: Two scripts\noutput: out\nmethods: [lora, crma]\n"
        "domains:\n  - {name: 数学, data: a.jsonl}\n  - {name: Право, data: b.jsonl}\n",
        encoding="utf-8",
    )
    return file
