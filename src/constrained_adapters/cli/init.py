"""``crma init``: write a commented crma.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DOMAIN_HELP = "A domain of your own, in the order of learning; DATA is a file, folder or hub name."


def init(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write it.")] = Path("crma.yaml"),
    domain: Annotated[list[str] | None, typer.Option(metavar="NAME=DATA", help=DOMAIN_HELP)] = None,
    base: Annotated[str, typer.Option(help="Base model: embedded, a hub name or a folder.")] = "embedded",
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write a crma.yaml that explains every setting.

    Without --domain it is a demo: three packaged domains, minutes on a CPU.
    """
    from constrained_adapters.config.template import template
    from constrained_adapters.workspace import atomic_write_text

    check_free(file, force)
    domains = _domains(domain, file.parent) if domain else None
    atomic_write_text(file, template(domains, relative_source(base, file.parent), file=str(file)))
    typer.echo(f"Wrote {file}. Next: crma run {file}")


def check_free(file: Path, force: bool) -> None:
    """Refuse to replace a file that is there, unless that is asked for.

    Raises:
        ConfigError: It is there.
    """
    from constrained_adapters.errors import ConfigError

    if file.exists() and not force:
        raise ConfigError("the file is there already", got=str(file), hint="another name, or --force")


def _domains(pairs: list[str], folder: Path) -> dict[str, str]:
    from pydantic import ValidationError

    from constrained_adapters.config.errors import config_error
    from constrained_adapters.config.run import DomainConfig
    from constrained_adapters.errors import ConfigError

    domains: dict[str, str] = {}
    for pair in pairs:
        name, separator, data = pair.partition("=")
        if not (name and separator and data):
            raise ConfigError(
                "a domain is NAME=DATA", got=f"--domain {pair}", expected="--domain law=law.jsonl"
            )
        try:
            name = DomainConfig(name=name, data=data).name
        except ValidationError as error:
            raise config_error(error, DomainConfig, where=f"--domain {pair}") from None
        if name in domains:
            raise ConfigError("a domain is given twice", got=f"--domain {pair}", expected="each name once")
        domains[name] = relative_source(data, folder)
    return domains


def relative_source(source: str, folder: Path) -> str:
    """A path as it was typed here becomes one relative to the file's folder; other sources stay."""
    import os

    from constrained_adapters.config.yaml_file import absolute_source

    if Path(source).is_absolute() or source == "embedded":
        return source
    absolute = absolute_source(source, Path.cwd())
    return source if absolute in {source, None} else os.path.relpath(str(absolute), folder.absolute())
