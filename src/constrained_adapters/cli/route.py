"""``crma route``: which domain a prompt belongs to, and why."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from constrained_adapters.cli.idle import refuse_idle
from constrained_adapters.cli.run_folder import MethodName, RunFolder, chosen_workspace, quiet_libraries

if TYPE_CHECKING:
    from constrained_adapters.routing import Route

SHOWN_WORDS = 5


def route(
    text: Annotated[
        str | None, typer.Argument(metavar="TEXT", help="The prompt; left out, it is read from a pipe.")
    ] = None,
    run: RunFolder = None,
    method: MethodName = None,
    build: Annotated[
        bool, typer.Option("--build", help="Make the router of an older run from the run's data.")
    ] = False,
    embedding: Annotated[
        Path | None,
        typer.Option(help="Go by this embedding model's folder instead of the base's hidden states."),
    ] = None,
    false_choice_rate: Annotated[
        float | None, typer.Option(help="Share of text of no domain that may be taken for one, 0 … 1 (0.05).")
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Let ask, chat and serve route with these options from now on.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show which domain of a finished run a prompt belongs to.

    With the scores, and the words that speak for it and against it.
    """
    workspace = chosen_workspace(run, method)
    if text is None and not build and not sys.stdin.isatty():
        text = sys.stdin.read().strip()

    if text is None:
        refuse_idle({"--json": as_json}, "without a prompt")
    quiet_libraries()
    from constrained_adapters.model.opened import load_run_base
    from constrained_adapters.routing import Router
    from constrained_adapters.routing.build import build_from_data
    from constrained_adapters.routing.preferences import read_preferences, write_preferences
    from constrained_adapters.routing.router import preferred_vectors

    def tell(line: str) -> None:
        typer.echo(line, err=True)

    asked: dict[str, Any] = {"embedding": embedding, "false_choice_rate": false_choice_rate}
    preferred = replace(read_preferences(workspace), **{k: v for k, v in asked.items() if v is not None})
    base = load_run_base(workspace)
    vectors = preferred_vectors(preferred, base.model, base.tokenizer)
    if build:
        build_from_data(workspace, vectors, tell)
    router = Router.load(
        workspace,
        base.model,
        base.tokenizer,
        false_choice_rate=preferred.false_choice_rate,
        vectors=vectors,
        tell=tell,
    )
    if keep:
        write_preferences(workspace, preferred)
        tell("kept: ask, chat and serve route like this from now on")
    if text is None:
        typer.echo(f"routes to {', '.join(router.domains)}, or to the base: crma route TEXT")
        return
    found = router.explain(text)
    typer.echo(json.dumps(found.facts(), ensure_ascii=False) if as_json else _described(found))


def _described(route: Route) -> str:
    lines = [f"{route.domain or 'the base'}: {route.reason}", ""]
    for name, probability in sorted(route.probabilities.items(), key=lambda item: -item[1]):
        near = route.distances.get(name)
        where = "" if near is None else f"   distance {near:6.1f}, allowed {route.thresholds[name]:.1f}"
        lines.append(f"  {name:16} {100 * probability:5.1f} %{where}")
    if route.words:
        best = [f"{word} {share:+.2f}" for word, share in route.words[:SHOWN_WORDS] if share > 0]
        least = [f"{word} {share:+.2f}" for word, share in route.words[::-1][:SHOWN_WORDS] if share < 0]
        lines += [
            "",
            f"words for it:     {', '.join(best) or '–'}",
            f"words against it: {', '.join(least) or '–'}",
        ]
    return "\n".join(lines)
