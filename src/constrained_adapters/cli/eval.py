"""``crma eval``: score a finished run, or a base with adapters, on its own and on any other data."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from constrained_adapters.cli.idle import refuse_idle
from constrained_adapters.cli.run_folder import MethodName, RunFolder

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
DATA_HELP = "A set of your own: a file, folder, hub name or packaged:NAME. May be given several times."
METRIC_HELP = "loss, perplexity, exact_match, choice_accuracy, token_f1; left out: all that only read."
TASKS_HELP = "Folder with tasks of lm-evaluation-harness on files of your own (extra 'eval')."


def evaluate(
    run: RunFolder = None,
    method: MethodName = None,
    base: Annotated[
        str | None, typer.Option(help="Instead of a run: embedded, a hub name, a folder.")
    ] = None,
    adapter: Annotated[
        list[Path] | None, typer.Option(metavar="DIR", help="With --base: its adapters.")
    ] = None,
    data: Annotated[list[str] | None, typer.Option(metavar="NAME=DATA", help=DATA_HELP)] = None,
    own: Annotated[bool, typer.Option("--own/--only-data", help="Also the run's own sets.")] = True,
    metric: Annotated[list[str] | None, typer.Option(metavar="NAME", help=METRIC_HELP)] = None,
    max_items: Annotated[int | None, typer.Option(min=1, help="Most items of a set: the first.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Most items in one pass.")] = 16,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Where a written answer is cut.")] = 64,
    quantization: Annotated[Literal["4bit", "8bit"] | None, typer.Option(help="Pack the base.")] = None,
    dtype: Annotated[Dtype, typer.Option(help="Of the base's weights.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda …")] = "auto",
    tasks: Annotated[Path | None, typer.Option(metavar="DIR", help=TASKS_HELP)] = None,
    task: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Which tasks; all of DIR.")] = None,
    allow_overlap: Annotated[bool, typer.Option(help="Score sets that were trained on.")] = False,
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the record as JSON.")] = None,
) -> None:
    """Score a finished run, or a base with adapters.

    A run on its own sets and on yours, a base with adapters on yours.
    """
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # before the first import of transformers
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from constrained_adapters.assessment.asked import read_sets, scoring_of
    from constrained_adapters.assessment.assess import Asked, assess_adapters
    from constrained_adapters.assessment.harness import Tasks
    from constrained_adapters.assessment.of_run import assess_run
    from constrained_adapters.cli.assessment_tables import print_assessment
    from constrained_adapters.cli.run_folder import chosen_workspace
    from constrained_adapters.workspace import atomic_write_text

    _check(run, method, base, adapter, own)
    asked = Asked(
        scoring=scoring_of(metric, batch_size=batch_size, max_new_tokens=max_new_tokens),
        sets=read_sets(data or []),
        own_sets=own,
        max_items=max_items,
        allow_overlap=allow_overlap,
        dtype=dtype,
        device=device,
        quantization=quantization,
        tasks=Tasks(tuple(task or ()), tasks, max_items) if tasks or task else None,
    )

    def tell(text: str) -> None:
        typer.echo(f"scoring {text}", err=True)

    if base is not None:
        found = assess_adapters(base, adapter or [], asked, tell)
    else:
        found = assess_run(chosen_workspace(run, method), asked, tell)
    print_assessment(found)
    if output is not None:
        atomic_write_text(output, found.model_dump_json(indent=1))
        typer.echo(f"record: {output}")


def _check(
    run: Path | None, method: str | None, base: str | None, adapter: list[Path] | None, own: bool
) -> None:
    from constrained_adapters.errors import ConfigError

    if base is not None and (run is not None or method is not None):
        raise ConfigError("--base and --run exclude each other", got=f"--base {base}", expected="one of them")
    if adapter and base is None:
        raise ConfigError("--adapter needs --base", got=f"--adapter {adapter[0]}", expected="--base NAME")
    if base is not None:
        refuse_idle({"--only-data": not own}, "with --base, which has no sets of its own")
