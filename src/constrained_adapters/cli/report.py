"""``crma report``: make the HTML page of a run again from its results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the run, or its results.json.")],
    open_page: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Write the report of a run again: one HTML page."""
    from constrained_adapters.cli.load_run import load_run
    from constrained_adapters.report.page import write_report

    result, folder = load_run(folder)
    page = folder / "report.html"
    write_report(result, page)
    typer.echo(str(page))
    if open_page:
        typer.launch(str(page))
