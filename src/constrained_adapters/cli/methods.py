"""``crma methods``: the named methods, what each costs and keeps, and where it comes from."""

from __future__ import annotations

from typing import Annotated, Any

import typer


def methods(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the methods; joined by '+' they combine, as in 'lora + replay + ewc'."""
    from constrained_adapters.recipes import ALIASES, RECIPES

    rows: list[dict[str, Any]] = [
        {
            "name": row.name,
            "also": [alias for alias, name in ALIASES.items() if name == row.name],
            "summary": row.summary,
            "step": row.step,
            "domain": row.domain,
            "kept": row.kept,
            "keeps_old_data": row.keeps_old_data,
            "paper": row.source,
        }
        for row in RECIPES.values()
    ]
    if as_json:
        import json

        typer.echo(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_lines=True)
    table.add_column("method", no_wrap=True)
    for heading in (
        "what it does",
        "cost per step",
        "cost per domain",
        "kept per domain",
        "old data",
        "paper",
    ):
        table.add_column(heading, overflow="fold")
    for row in rows:
        names = "\n".join([str(row["name"]), *(f"({alias})" for alias in row["also"])])
        old = "kept" if row["keeps_old_data"] else "not kept"
        words = [str(row[key]) for key in ("summary", "step", "domain", "kept")]
        table.add_row(names, *words, old, str(row["paper"]))
    Console(markup=False, highlight=False).print(table)
    typer.echo(
        "cost and memory: beside plain training, and beside the trained weights themselves\n"
        "crma run FILE --method 'lora + replay + ewc' runs a combination"
    )
