"""``crma status``: where a run stands, read from its folder alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def status(
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="DIR", help="Folder of the run; left out: the 'output' of ./crma.yaml."),
    ] = None,
) -> None:
    """Show where a run stands and what goes on with it."""
    from rich.console import Console
    from rich.table import Table

    from constrained_adapters.cli.run_folder import default_run_folder
    from constrained_adapters.cli.run_status import read_status

    state = read_status(folder if folder is not None else default_run_folder())
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("method", "domains learnt", "state", "accuracy", "last change"):
        table.add_column(heading, overflow="fold")
    for method in state.methods:
        learnt = f"{len(method.learnt)} of {len(state.domains)}"
        accuracy = "–" if method.accuracy is None else f"{100 * method.accuracy:.1f} %"
        table.add_row(method.name, learnt, method.state, accuracy, method.changed or "–")
    typer.echo(f"{state.title} ({state.folder})\ndomains: {' → '.join(state.domains)}\n")
    Console(markup=False, highlight=False).print(table)
    typer.echo("\naccuracy: exact match, mean of the domains learnt so far, after the last of them")
    if state.report is not None:
        typer.echo(f"report: {state.report}")
    if state.command is not None:
        typer.echo(f"to go on: {state.command}")
