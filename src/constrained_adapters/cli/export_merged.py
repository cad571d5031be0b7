"""``crma export merged``: the model with adapters merged in, in the base's own format."""

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


def merged(
    names: Names = None,
    run: RunFolder = None,
    method: MethodName = None,
    mix: Mixed = None,
    name: MixName = None,
    alone: Alone = False,
    dtype: Annotated[
        str, typer.Option(help="same (as the base's files), float32, bfloat16 or float16.")
    ] = "same",
    shard_gb: Annotated[
        float,
        typer.Option(min=0.001, metavar="GB", help="Most of one weight file, and about the memory used."),
    ] = 2.0,
    base: Base = None,
    output: Output = Path("export"),
    no_check: NoCheck = False,
    tolerance: Tolerance = None,
    device: Device = "auto",
    force: Force = False,
) -> None:
    """Write whole models, for any engine that reads safetensors."""
    if no_check:
        refuse_idle({"--tolerance": tolerance}, "with --no-check")
    sources, workspace, known = find(names, run, method, mix, name, alone, base)
    from constrained_adapters.export.checked import export_merged
    from constrained_adapters.export.options import read_dtype

    done = export_merged(
        sources,
        output,
        known,
        workspace,
        dtype=read_dtype(dtype),
        shard_bytes=int(shard_gb * 1e9),
        check=not no_check,
        tolerance=tolerance,
        device=device,
        force=force,
    )
    show(done)
