"""``crma compare``: the tables of finished runs, and whether what differs may be chance."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def compare(
    folders: Annotated[
        list[Path], typer.Argument(metavar="RUN", help="Folders of runs, or records of 'crma eval'.")
    ],
    method: Annotated[
        str | None, typer.Option(metavar="NAME", help="Compare this method of each run pair by pair.")
    ] = None,
) -> None:
    """Compare finished runs, item by item.

    Their tables come first. Of one run the method that its report speaks about is compared with each
    other; of two runs, those of one name.
    """
    from constrained_adapters.cli.assessment_tables import print_differences
    from constrained_adapters.cli.load_run import load_run
    from constrained_adapters.cli.paired import find_pairs, without_items
    from constrained_adapters.cli.tables import print_result
    from constrained_adapters.evaluation.significance import paired_differences

    for folder in folders:
        if folder.suffix != ".json" or folder.name == "results.json":
            if len(folders) > 1:
                typer.echo(f"── {folder}")
            print_result(load_run(folder)[0])
    pairs = find_pairs(folders, method)
    for first, second in pairs:
        older = [side.label for side in (first, second) if not side.items]
        if older:
            typer.echo(without_items(older))
            continue
        print_differences(first.label, second.label, paired_differences(first.items, second.items))
    if any(first.items and second.items for first, second in pairs):
        typer.echo(
            "\np: chance of such a difference where there is none (McNemar's exact test for right or wrong,"
            " else swapping the models at random). One seed and one order: another could differ by more."
        )
