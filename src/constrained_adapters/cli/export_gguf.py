"""``crma export gguf``: adapters, bases and merged models for llama.cpp."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from constrained_adapters.cli.export_options import (
    Alone,
    Base,
    Device,
    Force,
    Mixed,
    MixName,
    Names,
    NoCheck,
    Output,
    Tolerance,
    find,
    show,
)
from constrained_adapters.cli.idle import refuse_idle
from constrained_adapters.cli.run_folder import MethodName, RunFolder


def gguf(
    names: Names = None,
    run: RunFolder = None,
    method: MethodName = None,
    mix: Mixed = None,
    name: MixName = None,
    alone: Alone = False,
    merge: Annotated[
        bool, typer.Option("--merge", help="Whole models with the adapters merged in, instead of adapters.")
    ] = False,
    with_base: Annotated[bool, typer.Option("--with-base", help="The base too, as base.gguf.")] = False,
    type_: Annotated[
        str | None,
        typer.Option(
            "--type", help="f32 or f16 for adapters (f32); f32, f16 (default), bf16, q8_0 for models."
        ),
    ] = None,
    base: Base = None,
    output: Output = Path("export"),
    no_check: NoCheck = False,
    tolerance: Tolerance = None,
    device: Device = "auto",
    force: Force = False,
) -> None:
    """Write GGUF files for llama.cpp.

    Adapters, which its server weighs in each request, or whole models.
    """
    if no_check:
        refuse_idle({"--tolerance": tolerance}, "with --no-check")
    sources, _, known = find(names, run, method, mix, name, alone, base)
    from constrained_adapters.export.checked_gguf import export_ggufs
    from constrained_adapters.export.options import read_gguf_types

    lora_type, model_type = read_gguf_types(type_, models=merge or with_base)
    done = export_ggufs(
        sources,
        output,
        known,
        lora_type=lora_type,
        model_type=model_type,
        merge=merge,
        with_base=with_base,
        check=not no_check,
        tolerance=tolerance,
        device=device,
        force=force,
    )
    show(done)
