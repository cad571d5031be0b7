"""``crma serve``: the domains of a finished run behind OpenAI's API."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from constrained_adapters.cli.run_folder import MethodName, RunFolder


def serve(
    run: RunFolder = None,
    method: MethodName = None,
    host: Annotated[str, typer.Option(help="Address; 0.0.0.0 for all of this machine's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    engine: Annotated[
        str, typer.Option(metavar="local|vllm|auto", help="Who computes; auto: the faster one there is.")
    ] = "local",
    upstream: Annotated[
        str | None, typer.Option(metavar="URL", help="A server that runs already, instead of --engine.")
    ] = None,
    upstream_model: Annotated[
        str | None, typer.Option(metavar="NAME", help="The base's name there; left out: its first model.")
    ] = None,
    upstream_key: Annotated[
        str | None, typer.Option(metavar="KEY", envvar="CRMA_UPSTREAM_KEY", help="Its API key.")
    ] = None,
    slots: Annotated[int, typer.Option(min=1, help="Answers that are written at the same time.")] = 16,
    context: Annotated[
        int | None, typer.Option(min=2, metavar="TOKENS", help="Prompt and answer; at most the model's.")
    ] = None,
    queue: Annotated[int, typer.Option(min=0, help="Answers that may wait; more get 429.")] = 64,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Most tokens of one answer.")] = None,
    timeout: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="Of one request.")] = 600.0,
    stop_timeout: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="How long a stop waits for what runs.")
    ] = 30.0,
    body_bytes: Annotated[int, typer.Option(min=1000, help="Most bytes of a request.")] = 1_000_000,
    api_key: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY", envvar="CRMA_API_KEYS", help="Ask for it; can be given several times."),
    ] = None,
    cors: Annotated[
        list[str] | None,
        typer.Option(metavar="ORIGIN", help="A web page that may call; can be given several times."),
    ] = None,
    adapter_root: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Let clients load adapters from there while the server runs."),
    ] = None,
    log_prompts: Annotated[bool, typer.Option("--log-prompts", help="Log questions and answers.")] = False,
) -> None:
    """Serve the domains of a run behind OpenAI's API.

    Each is a model, 'auto' picks one, 'base' takes weights of several.

    Point any OpenAI client at http://127.0.0.1:8000/v1, or open the page at /.
    """
    from constrained_adapters.cli.idle import refuse_idle
    from constrained_adapters.cli.run_folder import chosen_workspace
    from constrained_adapters.serving.server import check_extra

    if upstream is None:
        refuse_idle({"--upstream-model": upstream_model}, "without --upstream")
    else:
        refuse_idle({"--context": context}, "with --upstream: the engine has its own")
    check_extra()
    workspace = chosen_workspace(run, method)

    from constrained_adapters.serving.launch import ServeOptions, launch
    from constrained_adapters.serving.settings import ServeSettings

    settings = ServeSettings(
        slots=slots,
        context_tokens=context,
        queue=queue,
        max_new_tokens=max_new_tokens,
        timeout_seconds=timeout,
        stop_seconds=stop_timeout,
        body_bytes=body_bytes,
        api_keys=tuple(api_key or ()),
        cors_origins=tuple(cors or ()),
        adapter_root=adapter_root,
        log_prompts=log_prompts,
    )
    options = ServeOptions(host, port, engine, upstream, upstream_model, upstream_key)
    launch(workspace, options, settings, say=lambda line: typer.echo(line, err=True))
