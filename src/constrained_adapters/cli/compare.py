"""``crma compare``: the tables of one or more finished runs in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def compare(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR", help="Folders of runs.")],
) -> None:
    """Show the comparison tables of finished runs."""
    from constrained_adapters.cli.load_run import load_run
    from constrained_adapters.cli.tables import print_result

    for result, folder in [load_run(folder) for folder in folders]:
        if len(folders) > 1:
            typer.echo(f"── {folder}")
        print_result(result)
