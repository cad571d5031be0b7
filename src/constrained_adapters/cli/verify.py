"""``crma verify``: is an export whole, who takes it, and does it say what it should?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from constrained_adapters.cli.export_options import Base, Device, Tolerance
from constrained_adapters.cli.idle import refuse_idle
from constrained_adapters.cli.run_folder import MethodName, chosen_workspace


def verify(
    path: Annotated[Path, typer.Argument(metavar="FOLDER", help="LoRA folder, model folder or .gguf file.")],
    run: Annotated[
        Path | None,
        typer.Option("--run", metavar="DIR", help="The run that it was made from, or one of its methods."),
    ] = None,
    method: MethodName = None,
    base: Base = None,
    tolerance: Tolerance = None,
    device: Device = "auto",
) -> None:
    """Judge a LoRA folder, a model folder or a GGUF file.

    Alone: is it whole, and which engines take it. With --base, a LoRA is loaded on its base by stock PEFT.
    With --run, it is loaded and compared with the run's own model on fixed prompts.
    """
    import os

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from constrained_adapters.export.verify import verify_form
    from constrained_adapters.export.verify_with_base import verify_against

    if run is None:
        refuse_idle({"--method": method}, "without --run")
    if run is None and base is None:
        on = None if device == "auto" else device
        refuse_idle({"--tolerance": tolerance, "--device": on}, "without --base or --run")
        verdict = verify_form(path)
    else:
        workspace = None if run is None else chosen_workspace(run, method)
        verdict = verify_against(path, workspace, base_name=base, tolerance=tolerance, device=device)
    for fact in verdict.facts:
        typer.echo(fact)
    for engine, answer in verdict.engines.items():
        typer.echo(f"  {engine + ':':<10} {answer}")
    if verdict.comparison is not None:
        typer.echo(verdict.comparison.sentence())
