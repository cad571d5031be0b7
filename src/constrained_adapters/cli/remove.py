"""``crma remove``: forgets a domain on purpose."""

from __future__ import annotations

from typing import Annotated

import typer

from constrained_adapters.cli.run_folder import default_run_folder, quiet_libraries
from constrained_adapters.cli.undoing import MethodsMeant, RunMeant, Yes, asking, say_done


def remove(
    domain: Annotated[str, typer.Argument(metavar="DOMAIN", help="Name of the domain.")],
    run: RunMeant = None,
    method: MethodsMeant = None,
    yes: Yes = False,
) -> None:
    """Forget a domain on purpose.

    Its adapter, its memory and its kept examples are deleted. The other domains stay as they are; what
    later ones learnt beside it stays too.
    """
    quiet_libraries()
    from constrained_adapters.training.undo import remove as leave_out

    folder = default_run_folder() if run is None else run
    notes = [
        "what later domains learnt beside it stays as they learnt it",
        f"take {domain} out of your crma.yaml too; then 'crma run' measures what is left, and trains nothing",
    ]
    done = leave_out(domain, folder, method=method, agree=asking(yes=yes, notes=notes))
    say_done(done, "nothing was removed")
