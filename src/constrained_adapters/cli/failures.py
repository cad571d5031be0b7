"""How a command fails: four lines and an exit code; a traceback only with ``--debug``."""

from __future__ import annotations

import errno
import functools
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

import typer

from constrained_adapters.errors import ConstrainedAdaptersError

_debug = False


def set_debug(debug: bool) -> None:
    """Show tracebacks from now on, or no longer."""
    global _debug  # noqa: PLW0603 - one command line a process
    _debug = debug


def with_failures(command: Callable[..., None]) -> Callable[..., None]:
    """Wrap a command so that whatever it raises is printed on stderr and becomes an exit code."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except KeyboardInterrupt:
            print_interrupted(resumes=command.__name__ in {"run", "benchmark"})
            raise typer.Exit(1) from None
        except BrokenPipeError:  # whoever read our output has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except Exception as error:
            raise typer.Exit(_print_error(error)) from None

    return wrapped


def print_interrupted(*, resumes: bool = False) -> None:
    """Say that Ctrl-C was heard, and what that means for a run."""
    rest = "; nothing is lost: run the same command again to go on" if resumes else ""
    typer.echo(f"\nstopped{rest}", err=True)


def _print_error(error: Exception) -> int:
    if _debug:
        typer.echo("".join(traceback.format_exception(error)), err=True)
    known = error if isinstance(error, ConstrainedAdaptersError) else _known_error(error)
    if known is not None:
        typer.echo(f"{type(known).__name__}: {known}", err=True)
        return known.exit_code
    words = str(error).strip().splitlines()
    message = f"unexpected {type(error).__name__}" + (f": {words[0][:300]}" if words else "")
    typer.echo(message + ("" if _debug else "\n  Try:      run again with --debug to see where"), err=True)
    return 1


def _known_error(error: Exception) -> ConstrainedAdaptersError | None:
    """A full disk or a forbidden file, met by code that does not know our errors."""
    if not isinstance(error, OSError):
        return None
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        from pathlib import Path

        from constrained_adapters.workspace import no_space_error

        return no_space_error(Path(str(error.filename or ".")).absolute())
    if isinstance(error, PermissionError):
        from constrained_adapters.errors import WorkspaceError

        return WorkspaceError("permission denied", got=str(error.filename or error))
    return None
