"""``crma methods``: the named methods, what each costs and keeps, and where it comes from."""

from __future__ import annotations

from typing import Annotated, Any

import typer


def methods(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
) -> None:
    """List the methods, with what each costs and keeps.

    Joined by '+' they combine, as in 'lora + replay + ewc'.
    """
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
    for row in rows:
        _print_row(row)
    typer.echo(
        "Cost and memory: beside plain training, and beside the trained weights themselves.\n"
        "crma run FILE --method 'lora + replay + ewc' runs a combination."
    )


def _print_row(row: dict[str, Any]) -> None:
    import shutil
    import textwrap

    also = "".join(f" ({alias})" for alias in row["also"])
    old = ", old data kept" if row["keeps_old_data"] else ""
    costs = [f"{word} {row[key]}" for key, word in _COSTS.items() if row[key] != "none"]
    typer.secho(f"{row['name']}{also}", bold=True, nl=False)
    typer.echo(old)
    width = min(shutil.get_terminal_size().columns, 110)
    for line in (row["summary"], "; ".join(costs), row["paper"]):
        if line != "-":
            typer.echo(textwrap.fill(line, width, initial_indent="    ", subsequent_indent="    "))
    typer.echo()


_COSTS = {"step": "a step:", "domain": "a domain's end:", "kept": "kept of a domain:"}
