"""What is exported: adapters by name or folder, each with a weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from constrained_adapters.adapters.files import CONFIG_FILE, read_facts
from constrained_adapters.config.names import check_domain_name
from constrained_adapters.errors import ConfigError, UnknownNameError, UsageError
from constrained_adapters.model.domain_adapters import acting_adapters, adapter_home, mixed_adapters
from constrained_adapters.workspace import Workspace

ALL = "mix"
"""The name of a mix that was given none."""


@dataclass(frozen=True)
class Source:
    """One thing to export.

    Args:
        name: Of the export.
        domains: With their weights, as they were asked for; a folder stands for itself.
        adapters: Folders of adapters with their weights: what answers for these domains.
    """

    name: str
    domains: dict[str, float]
    adapters: dict[Path, float]


def find_sources(
    names: Sequence[str],
    workspace: Workspace | None,
    *,
    mix: Mapping[str, float] | None = None,
    mix_name: str | None = None,
    alone: bool = False,
) -> list[Source]:
    """Find out what is asked for; no base is loaded.

    A domain of a run is answered by all adapters that were active when it was learnt, so all of them are
    exported as one (see :mod:`constrained_adapters.model.domain_adapters`).

    Args:
        names: Domains of the run, or folders of adapters; none: every finished domain.
        workspace: The run's; None where only folders are named.
        mix: Instead: domains or folders with weights, that become one.
        mix_name: Its name.
        alone: Take a domain's own adapter without those that it was trained on top of.

    Raises:
        UsageError: Both or neither are given, or there is no run to take a domain from.
        UnknownNameError: There is no such domain.
        ConfigError: Two exports would have one name, or the mix's cannot be one.
    """
    if mix is not None and names:
        raise UsageError(
            "either names or a mix", got=f"{', '.join(names)} and --mix", hint="two commands for two exports"
        )
    acting = {} if workspace is None else acting_adapters(workspace)

    def adapters_of(domains: Mapping[str, float]) -> dict[Path, float]:
        found: dict[Path, float] = {}
        for name, weight in domains.items():
            if _is_folder(name, acting):
                parts = {Path(name): weight}
            elif workspace is None:
                raise UsageError(
                    f"{name!r} is no folder of an adapter, and there is no run to take it from",
                    got=f"no {Path(name) / CONFIG_FILE}",
                    expected="the folder of an adapter, or the name of a domain and its run",
                    hint="--run DIR",
                )
            elif alone:
                _check_known(name, acting, workspace)
                parts = {adapter_home(workspace, name): weight}
            else:
                _check_known(name, acting, workspace)
                parts = {
                    adapter_home(workspace, adapter): each
                    for adapter, each in mixed_adapters(acting, {name: weight}).items()
                }
            for folder, each in parts.items():
                found[folder] = found.get(folder, 0.0) + each
        return found

    if mix is not None:
        return [Source(_checked_name(mix_name or ALL), dict(mix), adapters_of(mix))]
    wanted = list(dict.fromkeys(names)) or list(acting)
    sources = [Source(_name_of(name, acting), {name: 1.0}, adapters_of({name: 1.0})) for name in wanted]
    twice = [source.name for i, source in enumerate(sources) if source.name in {s.name for s in sources[:i]}]
    if twice:
        raise ConfigError("two exports would have one name", got=f"{twice[0]!r}", hint="two commands")
    return sources


def read_mix(text: str) -> dict[str, float]:
    """Read ``law=0.7,medicine=0.3``.

    Raises:
        ConfigError: It is no list of names with weights.
    """
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, mark, number = part.strip().rpartition("=")
        try:
            weight = float(number)
        except ValueError:
            mark = ""
        if not mark or not name or name in weights:
            raise ConfigError(
                "this is no mix",
                got=f"{part.strip()!r} in {text!r}",
                expected="names with weights, each name once: law=0.7,medicine=0.3",
            )
        weights[name] = weight
    return weights


def are_folders(names: Sequence[str]) -> bool:
    """Whether all of these are folders of adapters, so that no run is needed; False for none."""
    return bool(names) and all(_is_folder(name, {}) for name in names)


def _is_folder(name: str, acting: Mapping[str, Mapping[str, float]]) -> bool:
    return name not in acting and (Path(name) / CONFIG_FILE).is_file()


def _check_known(name: str, acting: Mapping[str, Mapping[str, float]], workspace: Workspace) -> None:
    if name not in acting:
        raise UnknownNameError.of("domain", name, acting, where=f"run {workspace.root}")


def _name_of(name: str, acting: Mapping[str, Mapping[str, float]]) -> str:
    if not _is_folder(name, acting):
        return name
    return _checked_name(str(read_facts(Path(name)).get("name") or Path(name).resolve().name))


def _checked_name(name: str) -> str:
    try:
        return check_domain_name(name)
    except ValueError as error:
        raise ConfigError(
            "this cannot be the name of an export", got=repr(name), expected=str(error)
        ) from None
