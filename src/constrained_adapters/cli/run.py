"""``crma run``: train, measure, remember and report all that a crma.yaml asks for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from constrained_adapters.cli.run_folder import quiet_libraries

if TYPE_CHECKING:
    from constrained_adapters.config.run import MethodConfig, RunConfig


def run(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The crma.yaml.")],
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin anew; the old run is lost.")] = False,
    output: Annotated[Path | None, typer.Option(help="Folder, instead of the file's 'output'.")] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Instead of the file's methods: one of them by its name, or recipes: 'lora + replay'. "
            "Can be given several times.",
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="One line for each finished domain.")] = False,
) -> None:
    """Teach the domains one after the other, measure, report.

    The same command goes on where a run was stopped.
    """
    from constrained_adapters.config.yaml_file import read_config

    config = read_config(file)
    if output is not None:
        config.output = output.absolute()
    if method:
        config.methods = chosen_methods(config, method)

    # Before the first import of transformers: our progress is the one that is shown.
    quiet_libraries()
    from constrained_adapters.cli.progress import show_progress
    from constrained_adapters.cli.tables import print_result
    from constrained_adapters.report.page import write_report
    from constrained_adapters.training.run import run_config

    with show_progress(quiet=quiet) as observer:
        result = run_config(config, observer=observer, fresh=fresh)
    page = config.output / "report.html"
    write_report(result, page)
    print_result(result)
    typer.echo(f"Results: {config.output / 'results.json'}\nReport:  {page}")


def chosen_methods(config: RunConfig, names: list[str]) -> list[MethodConfig]:
    """The methods of a run that ``--method`` names: with the file's settings where the file has the name.

    Raises:
        ConfigError: A name is there twice, or it is no name of recipes.
        UnknownNameError: It is neither in the file nor a recipe.
    """
    from constrained_adapters.config.run import MethodConfig
    from constrained_adapters.errors import ConfigError
    from constrained_adapters.recipes import find_recipe, recipe_names

    of_file = {each.name: each for each in config.methods}
    found: list[MethodConfig] = []
    for name in names:
        if name not in of_file:
            recipe_names(name, where="--method")
        chosen = of_file.get(name) or MethodConfig(recipe=name)
        find_recipe(chosen)
        if chosen.name in [each.name for each in found]:
            raise ConfigError("a method is there twice", got=f"--method {name}", expected="each once")
        found.append(chosen)
    return found
