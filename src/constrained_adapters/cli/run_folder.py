"""Which finished run a command uses: ``--run``, ``--method`` and what is taken where they are left out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from constrained_adapters.workspace import Workspace

RunFolder = Annotated[
    Path | None,
    typer.Option(
        "--run",
        metavar="DIR",
        help="Folder of a run, or of one of its methods; left out: 'output' of ./crma.yaml, or crma-run.",
    ),
]
MethodName = Annotated[
    str | None,
    typer.Option("--method", metavar="NAME", help="Which of the run's methods; left out: the one with crma."),
]


def default_run_folder() -> Path:
    """The ``output`` of ``./crma.yaml``; where there is no such file, ``crma-run``."""
    from constrained_adapters.config.yaml_file import read_config

    here = Path("crma.yaml")
    return read_config(here).output if here.exists() else Path("crma-run")


def chosen_workspace(run: Path | None, method: str | None) -> Workspace:
    """The workspace that ``--run`` and ``--method`` mean.

    Raises:
        ConstrainedAdaptersError: As :func:`constrained_adapters.workspace.find_workspace`.
    """
    from constrained_adapters.workspace import find_workspace

    return find_workspace(default_run_folder() if run is None else run, method)


def quiet_libraries() -> None:
    """Keep transformers' bars and notes off the terminal; to be called before it is first imported."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
