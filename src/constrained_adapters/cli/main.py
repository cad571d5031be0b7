"""The command line's entry: ``crma COMMAND``.

Nothing heavy is imported here or at the top of a command's file, so that ``crma --help`` answers
at once; each command imports what it needs when it is called.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import Annotated, TextIO

import typer

from constrained_adapters.cli.ask import ask
from constrained_adapters.cli.assets import assets
from constrained_adapters.cli.benchmark import benchmark
from constrained_adapters.cli.chat import chat
from constrained_adapters.cli.compare import compare
from constrained_adapters.cli.data import data
from constrained_adapters.cli.diagnose import diagnose
from constrained_adapters.cli.eval import evaluate
from constrained_adapters.cli.export import export
from constrained_adapters.cli.failures import print_interrupted, set_debug, with_failures
from constrained_adapters.cli.import_ import import_
from constrained_adapters.cli.init import init
from constrained_adapters.cli.methods import methods
from constrained_adapters.cli.remove import remove
from constrained_adapters.cli.report import report
from constrained_adapters.cli.rollback import rollback
from constrained_adapters.cli.route import route
from constrained_adapters.cli.run import run
from constrained_adapters.cli.serve import serve
from constrained_adapters.cli.status import status
from constrained_adapters.cli.verify import verify

app = typer.Typer(
    name="crma",
    help="Teach one language model domain after domain without losing the earlier ones.",
    epilog="Begin with 'crma init', then 'crma run crma.yaml'.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command in (
    init,
    data,
    diagnose,
    methods,
    assets,
    run,
    status,
    rollback,
    remove,
    route,
    ask,
    chat,
    report,
    compare,
    serve,
    benchmark,
    verify,
):
    app.command()(with_failures(_command))
app.command("eval")(with_failures(evaluate))
app.add_typer(export, name="export")
app.command("import")(with_failures(import_))


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"constrained-adapters {version('constrained-adapters')}")
        raise typer.Exit


@app.callback()
def _global_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    set_debug(debug)


def main() -> None:
    """Run ``crma`` and end the process: 0 done, 1 the work failed or was stopped, 2 asked for wrongly."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name in any script must not stop a run on an ASCII terminal
            stream.reconfigure(errors="replace")
    warnings.showwarning = _print_warning
    arguments = sys.argv[1:]
    if "--debug" in arguments:  # also after the command, where it is asked for once something went wrong
        arguments = ["--debug", *(argument for argument in arguments if argument != "--debug")]
    try:
        app(arguments, prog_name="crma")
    except KeyboardInterrupt:
        print_interrupted()
        sys.exit(1)
    finally:
        _flush_quietly()


def _print_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    typer.echo(
        f"Warning: {message}" if category is UserWarning else f"{category.__name__}: {message}", err=True
    )


def _flush_quietly() -> None:
    """Let ``crma status | head -1`` end without a word about the closed pipe."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
