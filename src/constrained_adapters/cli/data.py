"""``crma data``: show how a file is understood before anything is trained on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from constrained_adapters.data.examples import Domain, Example

Column = Annotated[
    str | None, typer.Option(metavar="COLUMN", help="The column that holds it, where another is detected.")
]


def data(
    file: Annotated[str, typer.Argument(metavar="DATA", help="File, folder, packaged:NAME or hub name.")],
    prompt: Column = None,
    answer: Column = None,
    messages: Column = None,
    text: Column = None,
    choices: Column = None,
    seed: Annotated[int, typer.Option(help="Seed of the split.")] = 0,
) -> None:
    """Show how a file or data set is understood, without training."""
    from constrained_adapters.config.run import DomainConfig
    from constrained_adapters.data.load import load_domain

    columns = {"prompt": prompt, "answer": answer, "messages": messages, "text": text, "choices": choices}
    domain = load_domain(DomainConfig(name="data", data=file, **columns), seed)
    for line in describe_domain(domain):
        typer.echo(line)


def describe_domain(domain: Domain) -> list[str]:
    """Return the lines that the command prints."""
    sizes = {"train": domain.train, "validation": domain.validation, "test": domain.test}
    total = sum(map(len, sizes.values()))
    split = ", ".join(f"{name} {len(part):,}" for name, part in sizes.items())
    lines = [f"{domain.source}: {total:,} examples ({split})", f"form: {domain.form}"]
    lines += [f"  - {note}" for note in domain.notes]
    lines += ["", "First training example; what stands after '▌' is learnt:"]
    for heading, content, learnt in _parts(domain.train[0]):
        lines.append(f"  {heading}")
        lines += [f"  {'▌' if learnt else '┊'} {line}" for line in _shorten(content).splitlines() or [""]]
    if domain.train[0].choices:
        lines.append(f"  choices: {_shorten(' | '.join(domain.train[0].choices))}")
    return lines


def _parts(example: Example) -> list[tuple[str, str, bool]]:
    """What an example consists of: heading, content, whether it is learnt."""
    if example.messages:
        return [(turn.role, turn.content, turn.role == "assistant") for turn in example.messages]
    if example.text is not None:
        return [("text", example.text, True)]
    return [("prompt", example.prompt or "", False), ("answer", example.answer or "", True)]


def _shorten(content: str, limit: int = 800) -> str:
    return content if len(content) <= limit else f"{content[:limit]} … ({len(content):,} characters)"
