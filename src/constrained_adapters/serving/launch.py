"""From a finished run to a server: which engine computes, what it costs, and off it goes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from constrained_adapters.errors import ConfigError, UnknownNameError
from constrained_adapters.model.opened import open_workspace
from constrained_adapters.serving.app import create_app
from constrained_adapters.serving.engine import Engine
from constrained_adapters.serving.gate import log_to_stderr
from constrained_adapters.serving.local import LocalEngine
from constrained_adapters.serving.routes import run_router
from constrained_adapters.serving.server import listen, run_app
from constrained_adapters.serving.settings import ServeSettings
from constrained_adapters.serving.upstream_launch import faster_engine, upstream_engine, vllm_engine

if TYPE_CHECKING:
    from constrained_adapters.workspace import Workspace

Say = Callable[[str], None]
ENGINES = ("auto", "local", "vllm")


@dataclass(frozen=True)
class ServeOptions:
    """Where to listen and who computes.

    Args:
        host: Address.
        port: 0 takes a free one.
        engine: ``local``, ``vllm`` or ``auto``.
        upstream: Address of a server that runs already; it computes then.
        upstream_model: Name of the base there; None takes its first model.
        upstream_key: API key that it asks for.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    engine: str = "local"
    upstream: str | None = None
    upstream_model: str | None = None
    upstream_key: str | None = None


def launch(workspace: Workspace, options: ServeOptions, settings: ServeSettings, *, say: Say) -> None:
    """Serve a run until the process is told to stop.

    Args:
        workspace: Of the finished run.
        options: Where, and by which engine.
        settings: Limits and access.
        say: Told what was chosen and why, a line at a time.

    Raises:
        UnknownNameError: There is no such engine.
        ConfigError: Two are asked for.
        UsageError: The address is taken.
        ConstrainedAdaptersError: The run cannot be opened, or the engine does not start.
    """
    if options.engine not in ENGINES:
        raise UnknownNameError.of("engine", options.engine, ENGINES, where="--engine")
    if options.upstream is not None and options.engine != "local":
        raise ConfigError(
            "two engines are asked for",
            got=f"--engine {options.engine} and --upstream {options.upstream}",
            expected="one of them",
        )
    with listen(options.host, options.port) as taken:
        log_to_stderr()
        engine, base_name = make_engine(workspace, options, settings, say)
        app = create_app(engine, settings, base_name=base_name)
        host, port = taken.getsockname()[:2]
        names = ["base", *(["auto"] if engine.routes() else []), *engine.models()]
        say(f"models: {', '.join(names)}")
        if not settings.api_keys and host not in ("127.0.0.1", "::1"):
            say("anybody who reaches this address may ask: --api-key KEY (or CRMA_API_KEYS) changes that")
        shown = f"[{host}]" if ":" in host else host
        say(f"serving at http://{shown}:{port}/ (OpenAI's API under /v1)")
        run_app(app, taken, stop_seconds=settings.stop_seconds)


def make_engine(
    workspace: Workspace, options: ServeOptions, settings: ServeSettings, say: Say
) -> tuple[Engine, str]:
    """The engine that the options ask for, and the base's name.

    Raises:
        ConstrainedAdaptersError: The run cannot be opened, or the engine is not installed.
    """
    if options.upstream is not None:
        say(f"engine: {options.upstream}")
        return upstream_engine(
            workspace,
            options.upstream,
            settings,
            say,
            base_model=options.upstream_model,
            key=options.upstream_key,
        )
    wanted = options.engine
    if wanted == "auto":
        wanted, reason = faster_engine()
        say(f"engine: {wanted} ({reason})")
    if wanted == "vllm":
        return vllm_engine(workspace, settings, say)
    return local_engine(workspace, settings, say)


def local_engine(workspace: Workspace, settings: ServeSettings, say: Say) -> tuple[Engine, str]:
    """The embedded engine, with the run's base loaded here.

    Raises:
        ConstrainedAdaptersError: The run cannot be opened, or its slots need more memory than there is.
    """
    opened = open_workspace(workspace)
    described = opened.base.description
    say(f"base: {described['model']}, {described['dtype']} on {described['device']}")
    route = run_router(workspace, opened.model, opened.tokenizer, say)
    engine = LocalEngine(opened.model, opened.tokenizer, opened.adapters, settings, route)
    check_memory(engine.kv_bytes, opened.model.device)
    say(
        f"keys and values: {engine.kv_bytes / 1e6:.0f} MB "
        f"({settings.slots} slots of {engine.context_tokens} tokens)"
    )
    return engine, str(described["model"])


def check_memory(num_bytes: int, device: torch.device) -> None:
    """Check that the keys and values will fit, rather than fail when many ask at once.

    Raises:
        ConfigError: They need more memory than is free.
    """
    free = free_bytes(device)
    if free is not None and num_bytes > free:
        raise ConfigError(
            "there is not enough memory for the keys and values of all slots",
            got=f"{num_bytes / 1e6:.0f} MB needed, {free / 1e6:.0f} MB free on {device}",
            hint="fewer --slots, or a smaller --context",
        )


def free_bytes(device: torch.device) -> int | None:
    """Memory that can still be had on a device; None where nobody says."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        facts = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return None
    found = re.search(r"^MemAvailable:\s+(\d+) kB", facts, re.MULTILINE)
    return int(found[1]) * 1024 if found and device.type == "cpu" else None
