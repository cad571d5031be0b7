"""``crma import``: any PEFT LoRA as a domain."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from constrained_adapters.cli.export_options import Base
from constrained_adapters.cli.idle import refuse_idle
from constrained_adapters.cli.run_folder import MethodName


def import_(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A PEFT LoRA folder.")],
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Name of the domain; default: the folder's.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Gets the domain; default: adapters.")
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option("--run", metavar="DIR", help="A run, instead, that goes on from the domain."),
    ] = None,
    method: MethodName = None,
    texts: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="Texts that the model writes for its memory; 0: no memory."),
    ] = 64,
    seed: Annotated[int, typer.Option(help="Of the texts.")] = 0,
    base: Base = None,
    device: Annotated[
        str, typer.Option(metavar="DEVICE", help="Where the memory is measured: auto, cpu, cuda …")
    ] = "auto",
    force: Annotated[bool, typer.Option("--force", help="Replace an adapter that is there.")] = False,
) -> None:
    """Bring any PEFT LoRA in as a domain.

    Its memory is made from text that the model writes with it.
    """
    import os

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from constrained_adapters.export.bases import find_base, open_base
    from constrained_adapters.export.imported import import_adapter
    from constrained_adapters.export.sources import Source, find_sources
    from constrained_adapters.workspace import Workspace, find_workspace

    if run is None:
        refuse_idle({"--method": method}, "without --run")
    _check(folder, run, output)
    (source,) = find_sources([str(folder)], None)
    domain = name or source.name
    target: Path | Workspace = (output or Path("adapters")) / domain
    if run is not None:
        fresh = method is not None and not (run / method / "settings.json").is_file()
        target = Workspace(run / str(method)) if fresh else find_workspace(run, method)
    known = find_base([Source(domain, {}, {folder: 1.0})], None, base)
    done = import_adapter(
        folder,
        target,
        open_base(known, device),
        known,
        domain=domain,
        num_texts=texts,
        seed=seed,
        force=force,
    )
    memory = f"memory from {done.num_texts} texts that it wrote" if done.num_texts else "no memory"
    typer.echo(f"{done.folder}: domain {done.name}, rank {done.rank}, {memory}")
    if run is not None:
        typer.echo(
            f"Name {done.name} in the run's crma.yaml, with data to measure it on; crma run goes on from it."
        )


def _check(folder: Path, run: Path | None, output: Path | None) -> None:
    from constrained_adapters.errors import UsageError
    from constrained_adapters.export.sources import are_folders

    if run is not None and output is not None:
        raise UsageError("either a run or a folder", got="--run and --output", hint="one of them")
    if not are_folders([str(folder)]):
        raise UsageError(
            "there is no adapter to import",
            got=f"no {folder / 'adapter_config.json'}",
            expected="the folder of a PEFT LoRA",
        )
