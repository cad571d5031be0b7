"""From a finished run to an engine behind this server: one that runs already, or a vLLM that is started."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig

from constrained_adapters.adapters.files import read_adapter_config
from constrained_adapters.errors import ConfigError
from constrained_adapters.export.lora import ENGINE_RANKS, engine_rank
from constrained_adapters.model.domain_adapters import acting_adapters, adapter_home
from constrained_adapters.model.opened import open_workspace
from constrained_adapters.models.embedded import EMBEDDED_NAME, embedded_model_path
from constrained_adapters.serving.local import context_of
from constrained_adapters.serving.routes import Route, run_router
from constrained_adapters.serving.settings import ServeSettings
from constrained_adapters.serving.upstream import UpstreamEngine
from constrained_adapters.serving.vllm import VllmProcess, find_vllm

if TYPE_CHECKING:
    from constrained_adapters.workspace import Workspace

Say = Callable[[str], None]


def upstream_engine(
    workspace: Workspace,
    address: str,
    settings: ServeSettings,
    say: Say,
    *,
    base_model: str | None = None,
    key: str | None = None,
) -> tuple[UpstreamEngine, str]:
    """The engine at ``address``, and the base's name.

    Raises:
        ConfigError: That is no address.
        ConstrainedAdaptersError: The run cannot be read.
    """
    if not address.startswith(("http://", "https://")):
        raise ConfigError(
            "the engine's address cannot be read",
            got=f"--upstream {address}",
            expected="an address such as http://127.0.0.1:8001",
        )

    async def begin() -> str:
        return address.rstrip("/").removesuffix("/v1")

    async def end() -> None:
        pass

    domains, name = _domains(workspace), _base_name(workspace)
    route, tokenizer = _router(workspace, say)
    engine = UpstreamEngine(
        begin,
        end,
        domains,
        settings,
        base_model=base_model,
        key=key,
        route=route,
        tokenizer=tokenizer,
    )
    return engine, name


def vllm_engine(workspace: Workspace, settings: ServeSettings, say: Say) -> tuple[UpstreamEngine, str]:
    """A vLLM of this server's own, and the base's name.

    Raises:
        UsageError: vLLM is not installed.
        ConfigError: All adapters together have a higher rank than vLLM takes.
        ConstrainedAdaptersError: The run cannot be read.
    """
    domains, name = _domains(workspace), _base_name(workspace)
    folder = str(embedded_model_path()) if name == EMBEDDED_NAME else name
    context_tokens = context_of(AutoConfig.from_pretrained(folder), settings.context_tokens)
    process = VllmProcess(
        folder,
        settings,
        max_rank=_highest_rank(domains),
        context_tokens=context_tokens,
        on_gpu=torch.cuda.is_available(),
    )
    route, tokenizer = _router(workspace, say)
    engine = UpstreamEngine(
        process.start,
        process.stop,
        domains,
        settings,
        base_model="base",
        route=route,
        tokenizer=tokenizer,
        name="vllm",
    )
    say(f"base: {name}, in vLLM, {context_tokens} tokens")
    return engine, name


def faster_engine() -> tuple[str, str]:
    """The engine that ``auto`` takes, and why: on a CPU as benchmarks/serving.py measured them."""
    if find_vllm() is None:
        return "local", "vLLM is not installed"
    if not torch.cuda.is_available():
        return "local", "without a GPU it is the faster one"
    return "vllm", "it is installed, and there is a GPU"


def _domains(workspace: Workspace) -> dict[str, dict[str, float]]:
    return {
        domain: {str(adapter_home(workspace, name).absolute()): weight for name, weight in adapters.items()}
        for domain, adapters in acting_adapters(workspace).items()
    }


def _base_name(workspace: Workspace) -> str:
    return str(workspace.read_base()[1]["model"])


def _highest_rank(domains: dict[str, dict[str, float]]) -> int:
    """Of a mix of all: their ranks added up, and the next one that vLLM takes."""
    folders = {folder for adapters in domains.values() for folder in adapters}
    total = sum(int(getattr(read_adapter_config(Path(folder)), "r", 0)) for folder in folders)
    # An adapter that is loaded while the server runs wants room beside them.
    fitting = engine_rank(total)
    if fitting is None:
        raise ConfigError(
            "all adapters together have a higher rank than vLLM takes",
            got=f"{len(folders)} adapters, {total} ranks",
            expected=f"at most {ENGINE_RANKS[-1]}",
            hint="--engine local",
        )
    return fitting


def _router(workspace: Workspace, say: Say) -> tuple[Route | None, Any]:
    """The router reads the base's own states, so the base is loaded here too where there is one."""
    opened = open_workspace(workspace)
    return run_router(workspace, opened.base.model, opened.tokenizer, say), opened.tokenizer
