"""Which adapters of a finished run answer for a domain, and where they lie; nothing is loaded."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping
from pathlib import Path

from constrained_adapters.adapters.files import CONFIG_FILE
from constrained_adapters.config.run import MethodConfig
from constrained_adapters.errors import ConfigError, ModelError, UnknownNameError, WorkspaceError
from constrained_adapters.recipes import SHARED, Answers, find_recipe
from constrained_adapters.workspace import Workspace, finished_domains


def acting_adapters(workspace: Workspace) -> dict[str, dict[str, float]]:
    """For each finished domain of a run the adapters that answer for it, with their weights.

    An adapter acts on top of those that were active while it was trained. Where a run makes one model
    (``crma``, ``lora`` …), a domain is answered by its own adapter and all earlier ones, as right after it
    was learnt; its own alone would be no use. With ``separate`` it is its own alone, with ``isolation``
    its own and the shared one, with ``joint`` the only one that there is.

    Returns:
        Domains in the order in which they were learnt; adapters in that of their training.

    Raises:
        WorkspaceError: No domain is finished yet, or a file of the run is damaged.
        ModelError: The run's domains are no LoRA adapters.
    """
    domains = finished_domains(workspace)
    if not domains:
        raise WorkspaceError(
            "no domain of this run is finished yet",
            got=str(workspace.root),
            expected="at least one domain that is trained and measured",
            hint="crma run goes on with it",
        )
    recipe = _recipe(workspace)
    if recipe.in_one_turn:
        acting = {domain: {domains[0]: 1.0} for domain in domains}
    elif recipe.scored == "together":
        acting = {domain: dict.fromkeys(domains[: i + 1], 1.0) for i, domain in enumerate(domains)}
    else:
        shared = (SHARED,) if recipe.shared and adapter_home(workspace, SHARED).is_dir() else ()
        acting = {domain: dict.fromkeys((*shared, domain), 1.0) for domain in domains}
    for name in {name: None for weights in acting.values() for name in weights}:
        if not (adapter_home(workspace, name) / CONFIG_FILE).is_file():
            raise ModelError(
                "the domains of this run are no LoRA adapters",
                got=f"recipe {recipe.name!r}, which trains {recipe.trained.replace('_', ' ')}; "
                f"no {CONFIG_FILE} in {adapter_home(workspace, name)}",
                expected="a method that gives each domain a LoRA adapter: crma, lora, separate and others",
                hint="--method NAME, where the run holds another",
            )
    return acting


def adapter_home(workspace: Workspace, adapter: str) -> Path:
    """The folder of an adapter that :func:`acting_adapters` names."""
    if adapter == SHARED and _recipe(workspace).shared:
        return workspace.memory / SHARED
    return workspace.adapter(adapter)


def mixed_adapters(
    acting: Mapping[str, Mapping[str, float]], domains: str | Mapping[str, float]
) -> dict[str, float]:
    """The adapters that answer for a domain, or for a mix of domains, by name with their weights.

    A mix adds up the updates of its domains, ΔW = Σ_d w_d ΔW_d, where ΔW_d is the sum over the adapters that
    answer for d.

    Args:
        acting: Of :func:`acting_adapters`.
        domains: A domain's name, or weights by name, which need not add up to 1.

    Raises:
        UnknownNameError: There is no such domain.
        ConfigError: A weight is not a finite number.

    >>> mixed_adapters({"law": {"law": 1.0}, "tax": {"law": 1.0, "tax": 1.0}}, {"law": 0.5, "tax": 0.25})
    {'law': 0.75, 'tax': 0.25}
    """
    mix = {domains: 1.0} if isinstance(domains, str) else domains
    found: dict[str, float] = {}
    for given, share in mix.items():
        domain = unicodedata.normalize("NFC", given)
        if domain not in acting:
            raise UnknownNameError.of("domain", given, acting)
        number = isinstance(share, int | float) and not isinstance(share, bool)  # type: ignore[redundant-expr]
        if not number or not math.isfinite(share):
            raise ConfigError(f"the weight of domain {given!r} is not a finite number", got=repr(share))
        for name, weight in acting[domain].items():
            found[name] = found.get(name, 0.0) + share * weight
    return found


def _recipe(workspace: Workspace) -> Answers:
    settings = workspace.read_settings().get("method", {})
    return find_recipe(MethodConfig(recipe=str(settings.get("recipe", "crma"))))
