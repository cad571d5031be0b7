"""``crma rollback``: back to the state after an earlier domain."""

from __future__ import annotations

from typing import Annotated

import typer

from constrained_adapters.cli.run_folder import default_run_folder, quiet_libraries
from constrained_adapters.cli.undoing import MethodsMeant, RunMeant, Yes, asking, say_done


def rollback(
    run: RunMeant = None,
    to: Annotated[
        str | None,
        typer.Option(metavar="DOMAIN", help="The last domain that stays; left out: the last but one."),
    ] = None,
    method: MethodsMeant = None,
    yes: Yes = False,
) -> None:
    """Go back to the state after an earlier domain.

    What was learnt later is deleted; 'crma run' goes on from there, with the same domains or others.
    """
    quiet_libraries()
    from constrained_adapters.training.undo import rollback as roll_back

    folder = default_run_folder() if run is None else run
    done = roll_back(folder, to, method=method, agree=asking(yes=yes))
    say_done(done, "nothing was undone")
