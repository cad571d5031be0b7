"""How a server is set up."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ServeSettings:
    """Limits and access.

    Args:
        slots: Answers that are written at the same time.
        context_tokens: Most tokens of prompt and answer together; None takes the model's, at most 2048.
        queue: Answers that may wait for a slot; more are refused with 429.
        prefill_tokens: Prompt tokens that are read between two steps of the running answers.
        max_new_tokens: Most tokens of one answer; None: what the context leaves.
        max_choices: Most answers to one request (prompts times ``n``).
        timeout_seconds: A request that takes longer is given up.
        stop_seconds: How long a stop waits for what runs.
        body_bytes: Most bytes of a request's body.
        api_keys: One of them is asked for; empty: none is.
        cors_origins: Web pages that may call the server; empty: none but its own.
        adapter_root: Folder from which adapters may be loaded while the server runs; None: not at all.
        log_prompts: Whether the log holds questions and answers.
    """

    slots: int = 16
    context_tokens: int | None = None
    queue: int = 64
    prefill_tokens: int = 512
    max_new_tokens: int | None = None
    max_choices: int = 16
    timeout_seconds: float = 600.0
    stop_seconds: float = 30.0
    body_bytes: int = 1_000_000
    api_keys: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    adapter_root: Path | None = None
    log_prompts: bool = False
