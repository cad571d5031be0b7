"""What the commands that delete have in common: they show what goes, and ask."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from constrained_adapters.workspace import Undo

MethodsMeant = Annotated[
    str | None, typer.Option("--method", metavar="NAME", help="One of the run's methods; left out: all.")
]
RunMeant = Annotated[
    Path | None,
    typer.Argument(metavar="RUN", help="Folder of the run; left out: the 'output' of ./crma.yaml."),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def asking(*, yes: bool, notes: Sequence[str] = ()) -> Callable[[Sequence[Undo]], bool]:
    """What shows a user what will go, and asks whether it may.

    Args:
        yes: It was agreed to already.
        notes: Said beside it.
    """

    def agree(undos: Sequence[Undo]) -> bool:
        from constrained_adapters.errors import UsageError

        typer.echo("this is deleted:")
        for undo in undos:
            typer.echo(f"  {undo.method}: {', '.join(undo.removed)} ({_size(undo.num_bytes)})")
            if undo.again:
                names = ", ".join(undo.again)
                typer.echo(f"    the state after each domain is not kept here: {names} will be learnt again")
        for note in notes:
            typer.echo(note)
        if yes:
            return True
        if not sys.stdin.isatty():
            raise UsageError(
                "nothing was deleted: there is no terminal to ask on",
                got="no --yes",
                expected="an answer, or --yes",
                hint="--yes",
            )
        return typer.confirm("go on?")

    return agree


def say_done(undos: Sequence[Undo], nothing: str) -> None:
    """The last words: what is gone, and what makes the rest again."""
    if not undos:
        typer.echo(nothing)
        return
    for undo in undos:
        typer.echo(f"{undo.method}: gone: {', '.join(undo.removed)}")
    typer.echo("results.json and report.html were made of it: 'crma run' makes them anew")


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes >= 1e5 else f"{num_bytes / 1e3:.1f} kB"
