"""``crma export``: adapters, mixes and merged models in the forms that inference engines read."""

from __future__ import annotations

import typer

from constrained_adapters.cli.export_gguf import gguf
from constrained_adapters.cli.export_lora import lora
from constrained_adapters.cli.export_merged import merged
from constrained_adapters.cli.failures import with_failures

export = typer.Typer(
    help="Write adapters, mixes, merged models for other engines.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
for _command in (lora, merged, gguf):
    export.command()(with_failures(_command))
