"""What the commands of ``crma export`` share: options, finding what is asked for, and what is printed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from constrained_adapters.cli.run_folder import chosen_workspace

if TYPE_CHECKING:
    from constrained_adapters.export.bases import BaseName
    from constrained_adapters.export.checked import Checked
    from constrained_adapters.export.sources import Source
    from constrained_adapters.workspace import Workspace

Names = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[NAME]...", help="Domains of the run, or folders of adapters; none: all domains."
    ),
]
Mixed = Annotated[
    str | None,
    typer.Option("--mix", metavar="A=W,B=W", help="One weighted mix instead: law=0.7,medicine=0.3."),
]
MixName = Annotated[str | None, typer.Option("--name", metavar="NAME", help="Name of the mix; default: mix.")]
Alone = Annotated[
    bool, typer.Option("--alone", help="A domain's own adapter, without those that it was trained on top of.")
]
Base = Annotated[
    str | None, typer.Option("--base", metavar="BASE", help="The base, where it lies elsewhere now.")
]
Output = Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder that gets the exports.")]
NoCheck = Annotated[bool, typer.Option("--no-check", help="Do not load the export back and compare it.")]
Tolerance = Annotated[
    float | None,
    typer.Option(min=0.0, help="Largest logit difference allowed, as a share of the largest logit."),
]
Device = Annotated[str, typer.Option(metavar="DEVICE", help="Where the check runs: auto, cpu, cuda …")]
Force = Annotated[bool, typer.Option("--force", help="Replace an earlier export.")]


def find(
    names: list[str] | None,
    run: Path | None,
    method: str | None,
    mix: str | None,
    mix_name: str | None,
    alone: bool,
    base: str | None,
) -> tuple[list[Source], Workspace | None, BaseName]:
    """What is asked for: sources, the run's workspace where one is needed, and the base.

    Raises:
        ConstrainedAdaptersError: An option would not act, or nothing answers to a name.
    """
    import os

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from constrained_adapters.cli.idle import refuse_idle
    from constrained_adapters.export.bases import find_base
    from constrained_adapters.export.sources import are_folders, find_sources, read_mix

    weights = None if mix is None else read_mix(mix)
    if mix is None:
        refuse_idle({"--name": mix_name}, "without --mix")
    folders_only = run is None and are_folders([*(names or ()), *(weights or ())])
    if folders_only:
        refuse_idle({"--method": method, "--alone": alone}, "on folders of adapters")
    workspace = None if folders_only else chosen_workspace(run, method)
    sources = find_sources(names or [], workspace, mix=weights, mix_name=mix_name, alone=alone)
    return sources, workspace, find_base(sources, workspace, base)


def show(done: Iterable[Checked]) -> None:
    """Print a line or two about each export, as it is finished."""
    for each in done:
        typer.echo(f"{each.path}: {each.what}, {each.num_bytes / 1e6:.1f} MB, {each.seconds:.1f} s")
        typer.echo(f"  {each.comparison.sentence() if each.comparison else 'not checked'}")
