"""The engines, each in an environment of its own (scripts/engines.py), driven through JSON."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Run by the engines' own interpreters; pytest would import them while it looks for doctests.
collect_ignore = ["converter.py", "llama_cpp_runner.py", "vllm_runner.py"]

ENGINES = Path(__file__).resolve().parents[2] / ".engines"


def python_of(engine: str) -> Path:
    """The engine's interpreter; skips the test where it is not installed."""
    python = ENGINES / engine / "bin" / "python"
    if not (ENGINES / engine / ".installed").exists():
        pytest.skip(f"{engine} is not installed: make test-engines")
    return python


@pytest.fixture
def ask(tmp_path) -> Callable[[str, dict[str, Any]], dict[str, Any]]:
    """``ask("vllm", task)`` gives the engine's answers; see the runners beside this file."""

    def run(engine: str, task: dict[str, Any]) -> dict[str, Any]:
        python, result = python_of(engine), tmp_path / f"{engine}-{len(list(tmp_path.iterdir()))}.json"
        runner = Path(__file__).parent / f"{engine}_runner.py"
        settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
        done = subprocess.run(
            [python, runner, result],
            input=json.dumps(task),
            env={**os.environ, **settings},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(result.read_text())

    return run
