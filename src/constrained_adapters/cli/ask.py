"""``crma ask``: one question to a finished run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from constrained_adapters.cli.idle import refuse_idle
from constrained_adapters.cli.run_folder import MethodName, RunFolder, chosen_workspace, quiet_libraries

if TYPE_CHECKING:
    from constrained_adapters.assistant import Conversation

DomainName = Annotated[str | None, typer.Option("--domain", metavar="NAME", help="This domain answers.")]
Mix = Annotated[
    str | None, typer.Option("--mix", metavar="WEIGHTS", help="A mix answers: 'law=0.7 medicine=0.3'.")
]
BaseOnly = Annotated[bool, typer.Option("--base", help="The base answers, without any adapter.")]
MaxTokens = Annotated[int, typer.Option("--max-tokens", min=1, help="Where an answer is cut.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="0: the likeliest token each time.")]
Seed = Annotated[int | None, typer.Option(help="Of the draws at a temperature.")]


def ask(
    question: Annotated[
        str | None, typer.Argument(metavar="QUESTION", help="Left out, it is read from a pipe.")
    ] = None,
    run: RunFolder = None,
    method: MethodName = None,
    domain: DomainName = None,
    mix: Mix = None,
    base: BaseOnly = False,
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 0.0,
    seed: Seed = None,
) -> None:
    """Ask a finished run one question.

    The router picks the domain unless one is named.
    """
    question = _asked(question)
    talk = conversation(run, method, max_tokens, temperature, seed)
    choose(talk, domain, mix, base)
    choice = talk.choose(question)
    typer.echo(f"[{choice}]", err=True)
    talk.ask(question, choice=choice, on_text=lambda piece: typer.echo(piece, nl=False))
    typer.echo()


def _asked(question: str | None) -> str:
    if question is None and not sys.stdin.isatty():
        question = sys.stdin.read()
    if question is None or not question.strip():
        from constrained_adapters.errors import UsageError

        raise UsageError("there is no question", got="nothing", hint='crma ask "…", or echo … | crma ask')
    return question.strip()


def conversation(
    run: Path | None, method: str | None, max_tokens: int, temperature: float, seed: int | None
) -> Conversation:
    """Open a run for a conversation; without its router where it has none yet.

    Raises:
        ConstrainedAdaptersError: An option would not act, or the run cannot be opened.
    """
    if temperature == 0.0:
        refuse_idle({"--seed": seed}, "at temperature 0, where nothing is drawn")
    workspace = chosen_workspace(run, method)
    quiet_libraries()
    from constrained_adapters.assistant import Conversation, Decoding
    from constrained_adapters.model.opened import open_workspace
    from constrained_adapters.routing import find_router

    opened = open_workspace(workspace)
    router = find_router(
        workspace, opened.model, opened.tokenizer, tell=lambda text: typer.echo(text, err=True)
    )
    return Conversation(opened, router, Decoding(max_tokens, temperature, seed=seed))


def choose(talk: Conversation, domain: str | None, mix: str | None, base: bool) -> None:
    """Let answer what the options name.

    Raises:
        UsageError: More than one of them is given.
    """
    from constrained_adapters.assistant.commands import parse_mix
    from constrained_adapters.errors import UsageError

    if (domain is not None) + (mix is not None) + base > 1:
        given = [("--domain", domain), ("--mix", mix), ("--base", base or None)]
        raise UsageError(
            "more than one thing is to answer",
            got=" and ".join(name for name, value in given if value is not None),
            expected="one of --domain, --mix and --base",
        )
    if base:
        talk.use_base()
    elif domain is not None or mix is not None:
        talk.use({domain: 1.0} if domain is not None else parse_mix(mix or ""))
