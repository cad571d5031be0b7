"""``crma chat``: talk to a finished run in the terminal."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from constrained_adapters.cli.ask import (
    BaseOnly,
    DomainName,
    MaxTokens,
    Mix,
    Seed,
    Temperature,
    choose,
    conversation,
)
from constrained_adapters.cli.run_folder import MethodName, RunFolder

if TYPE_CHECKING:
    from constrained_adapters.assistant import Turn

NO_TRANSCRIPT = "-"


def chat(
    run: RunFolder = None,
    method: MethodName = None,
    domain: DomainName = None,
    mix: Mix = None,
    base: BaseOnly = False,
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 0.0,
    seed: Seed = None,
    transcript: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where the talk is written at the end; '-' for nowhere."),
    ] = None,
) -> None:
    """Talk to a finished run.

    Each question is answered by the domain that the router picks.

    Commands: /domain NAME, /mix law=0.7 medicine=0.3, /base, /auto, /clear, /help, /quit.
    Ctrl-C stops an answer.
    """
    talk = conversation(run, method, max_tokens, temperature, seed)
    choose(talk, domain, mix, base)
    if talk.router is None and talk.mode == "auto":
        last = talk.opened.domains[-1]
        talk.use({last: 1.0})
        typer.echo(f"this run has no router yet ('crma route --build' makes it): {last} answers", err=True)

    from constrained_adapters.assistant.chat import chat as talk_on

    typer.echo(
        f"domains: {', '.join(talk.opened.domains)}; answered by: {talk.mode}; /help lists the commands"
    )
    talk_on(talk, read=_read, write=lambda text: typer.echo(text, nl=False))
    if talk.turns:
        _write_down(talk.turns, transcript, title=f"crma chat: {talk.opened.workspace.root}")


def _read() -> str:
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line
    with contextlib.suppress(ImportError):  # not on every system
        import readline  # noqa: F401 - gives input() its line editing and history
    return input("> ")


def _write_down(turns: list[Turn], asked: Path | None, *, title: str) -> None:
    from constrained_adapters.assistant.transcript import default_transcript, write_transcript

    file = asked or default_transcript()
    if asked is None:
        if not sys.stdin.isatty():
            return
        try:
            said = input(f"transcript [Enter: {file}, {NO_TRANSCRIPT} for none]: ").strip()
        except (EOFError, KeyboardInterrupt):
            said = ""
        file = Path(said) if said else file
    if str(file) != NO_TRANSCRIPT:
        typer.echo(f"transcript: {write_transcript(turns, file, title=title)}")
