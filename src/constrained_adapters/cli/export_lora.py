"""``crma export lora``: plain PEFT LoRA folders, single domains or weighted mixes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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


def lora(
    names: Names = None,
    run: RunFolder = None,
    method: MethodName = None,
    mix: Mixed = None,
    name: MixName = None,
    alone: Alone = False,
    rank: Annotated[
        int | None, typer.Option(min=1, metavar="R", help="Compress to this rank; the loss is stated.")
    ] = None,
    pad_rank: Annotated[
        str | None, typer.Option(metavar="auto|R", help="Add zeros up to the next rank that engines want.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="same, float32, bfloat16 or float16.")] = "same",
    base: Base = None,
    output: Output = Path("export"),
    no_check: NoCheck = False,
    tolerance: Tolerance = None,
    device: Device = "auto",
    force: Force = False,
) -> None:
    """Write plain PEFT LoRA folders, single domains or mixes.

    For vLLM, SGLang, TGI, LoRAX and PEFT itself.
    """
    if no_check:
        refuse_idle({"--tolerance": tolerance}, "with --no-check")
    sources, workspace, known = find(names, run, method, mix, name, alone, base)
    from constrained_adapters.export.checked import export_loras
    from constrained_adapters.export.options import read_dtype, read_pad_rank

    padding, kind = read_pad_rank(pad_rank), read_dtype(dtype)
    options: dict[str, Any] = {"rank": rank, "pad_rank": padding, "dtype": kind, "check": not no_check}
    options |= {"tolerance": tolerance, "device": device, "force": force}
    show(export_loras(sources, output, known, workspace, **options))
