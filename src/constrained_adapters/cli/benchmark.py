"""``crma benchmark``: run a plan of methods, orders and seeds, and make its tables."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from constrained_adapters.benchmark.run import Outcome

METHODS_HELP = "Only these methods, divided by commas."
ORDERS_HELP = "Only these orders, by number from 1, divided by commas."
SEEDS_HELP = "Only these seeds, divided by commas."


def benchmark(
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN", help="The plan.yaml.")],
    phase: Annotated[
        Literal["all", "sweep", "test", "tables"],
        typer.Option(help="Choose settings on validation, run the cells, or make the tables."),
    ] = "all",
    methods: Annotated[str | None, typer.Option(metavar="A,B", help=METHODS_HELP)] = None,
    orders: Annotated[str | None, typer.Option(metavar="1,2", help=ORDERS_HELP)] = None,
    seeds: Annotated[str | None, typer.Option(metavar="0,1", help=SEEDS_HELP)] = None,
    time_limit: Annotated[
        float | None, typer.Option(metavar="MINUTES", min=0, help="After so long, begin no other cell.")
    ] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Run cells again that failed.")] = False,
    keep_work: Annotated[
        bool, typer.Option("--keep-work", help="Keep the adapters of finished cells.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the cells; run nothing.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="One line for each finished domain.")] = False,
) -> None:
    """Compare methods over orders and seeds.

    The same command goes on where it was stopped.
    """
    from constrained_adapters.benchmark.cells import Restriction
    from constrained_adapters.benchmark.plan import read_plan
    from constrained_adapters.benchmark.run import Options, list_cells, run_benchmark

    plan = read_plan(plan_file)
    names = None if methods is None else tuple(_parts(methods))
    restriction = Restriction(names, _numbers(orders, "--orders"), _numbers(seeds, "--seeds"))
    options = Options(phase, restriction, time_limit, keep_work, retry)
    if dry_run:
        typer.echo("\n".join(list_cells(plan, options)))
        return
    # Before the first import of transformers: our progress is the one that is shown.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from constrained_adapters.cli.progress import show_progress

    with show_progress(quiet=quiet) as observer:
        outcome = run_benchmark(plan, options, observer)
    _print_outcome(outcome)
    if outcome.failed:
        raise typer.Exit(1)


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _numbers(text: str | None, option: str) -> tuple[int, ...] | None:
    if text is None:
        return None
    if not all(part.isdecimal() for part in _parts(text)):
        raise typer.BadParameter(f"{text!r} is no list of whole numbers, such as 0,1", param_hint=option)
    return tuple(int(part) for part in _parts(text))


def _print_outcome(outcome: Outcome) -> None:
    if outcome.table is not None:
        typer.echo(f"Table: {outcome.table}")
    typer.echo(f"{outcome.num_done} of {outcome.num_cells} cells are done.")
    for key, reason in outcome.failed.items():
        typer.echo(f"Failed: {key}: {reason}", err=True)
    if outcome.failed:
        typer.echo("Try:    the same command with --retry", err=True)
    if outcome.not_chosen:
        typer.echo(f"Their sweep is not finished: {', '.join(outcome.not_chosen)}")
    if outcome.out_of_time:
        typer.echo("The time limit is over: the same command goes on.")
