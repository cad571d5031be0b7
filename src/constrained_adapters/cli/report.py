"""``crma report``: make the HTML page of a run again from its results, or one page of several runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR…", help="Folders of runs, or their results.json.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where to write it; left out: report.html in the run's folder."),
    ] = None,
    evaluated: Annotated[
        list[Path] | None,
        typer.Option("--eval", metavar="FILE", help="Show what 'crma eval --output FILE' measured too."),
    ] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Write the report of a run, or of several runs, again.

    One HTML page; of several runs it compares them.
    """
    from constrained_adapters.assessment.record import load_assessment
    from constrained_adapters.cli.load_run import load_run
    from constrained_adapters.report.page import write_report
    from constrained_adapters.report.several import combined

    runs = [load_run(folder) for folder in folders]
    result = combined([(home.resolve().name, found) for found, home in runs])
    page = output or (runs[0][1] / "report.html" if len(runs) == 1 else Path("comparison.html"))
    write_report(result, page, [load_assessment(file) for file in evaluated or ()])
    typer.echo(str(page))
    if open_page:
        typer.launch(str(page))
