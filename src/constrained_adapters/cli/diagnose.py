"""``crma diagnose``: how much would be forgotten, before anything is trained?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from constrained_adapters.cli.run_folder import MethodName

OLD = "Old data: file, folder, packaged:NAME or hub name; may be given again. Left out: text the base writes."


def diagnose(
    config: Annotated[
        Path | None,
        typer.Argument(metavar="CRMA.YAML", help="Diagnose its sequence: each domain against the earlier."),
    ] = None,
    new: Annotated[str | None, typer.Option(metavar="DATA", help="The new data.")] = None,
    old: Annotated[list[str] | None, typer.Option(metavar="DATA", help=OLD)] = None,
    base: Annotated[str, typer.Option(help="Base model: embedded, a hub name or a folder.")] = "embedded",
    run: Annotated[
        Path | None,
        typer.Option("--run", metavar="DIR", help="A finished run: the new data against its domains."),
    ] = None,
    method: MethodName = None,
    threshold: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A threshold or size, such as high_increase=0.1."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of all that is drawn.")] = 0,
    write: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a crma.yaml that follows the advice.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="With --write: replace a file that is there.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Say what learning the new would make a model forget.

    How much, why, and what is advisable; nothing is trained that stays.
    """
    import json

    from constrained_adapters.cli.diagnose_request import Request, settings_of
    from constrained_adapters.cli.init import check_free
    from constrained_adapters.diagnosis.words import describe
    from constrained_adapters.workspace import atomic_write_text

    if write is not None:
        check_free(write, force)
    request = Request(config, new, tuple(old or ()), base, run, method, settings_of(threshold or ()), seed)
    found = request.diagnose(lambda text: typer.echo(text, err=True))
    if as_json:
        typer.echo(json.dumps([each.plain() for each in found], ensure_ascii=False, indent=1))
    else:
        typer.echo("\n\n".join("\n".join(describe(each)) for each in found))
    if write is not None:
        atomic_write_text(write, request.advised_yaml(found, write.parent))
        typer.echo(f"Wrote {write}. Next: crma run {write}", err=as_json)
