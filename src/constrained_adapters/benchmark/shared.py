"""What is the same in many cells, so that it is made once: the base's row of R and its own memory.

A cell's run finds both in its workspace and takes them as its own work of an earlier call.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from constrained_adapters.config.run import RunConfig
from constrained_adapters.training.adapters import BASE_MEMORY
from constrained_adapters.workspace import Workspace, atomic_write_bytes


def lend(config: RunConfig, workspace: Workspace, shared: Path) -> None:
    """Put what other cells left in ``shared`` into the workspace of a cell that has not begun yet."""
    for source, target in _pairs(config, workspace, shared):
        if source.is_file() and not target.is_file():
            atomic_write_bytes(target, source.read_bytes())


def keep(config: RunConfig, workspace: Workspace, shared: Path) -> None:
    """Keep what a cell made for the others; also of a cell that failed later."""
    for target, source in _pairs(config, workspace, shared):
        if source.is_file() and not target.is_file():
            atomic_write_bytes(target, source.read_bytes())


def _pairs(config: RunConfig, workspace: Workspace, shared: Path) -> list[tuple[Path, Path]]:
    """Files in the shared folder and in the workspace; a shared one is named for all it depends on.

    The base's fingerprint goes along: a base that changed under the same name is refused by the
    workspace before anything is trained.
    """
    dumped = config.model_dump(mode="json")
    method = {
        key: value for key, value in dumped["methods"][0].items() if key not in ("name", "learning_rate")
    }
    row_depends_on = {
        "base": dumped["base"],
        "seed": config.seed,
        "domains": sorted(dumped["domains"], key=lambda domain: str(domain["name"])),
        "evaluation": dumped["evaluation"],
        "max_length_tokens": config.training.max_length_tokens,
    }
    memory_depends_on = {
        "base": dumped["base"],
        "seed": config.seed,
        "adapter": dumped["adapter"],
        "method": method,
    }
    return [
        (shared / f"base-{_digest(dumped['base'])}.json", workspace.base_file),
        (shared / f"row-0-{_digest(row_depends_on)}.json", workspace.evaluation(0)),
        (shared / f"base-memory-{_digest(memory_depends_on)}.safetensors", workspace.memory / BASE_MEMORY),
    ]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
