"""A finished run opened for use: its base and the adapters of its domains, ready to answer."""

from __future__ import annotations

import math
import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from constrained_adapters.adapters.files import CONFIG_FILE, read_facts
from constrained_adapters.config import BaseConfig, CRMAConfig, MethodConfig
from constrained_adapters.errors import ConfigError, ModelError, UnknownNameError, WorkspaceError
from constrained_adapters.model.crma import CRMAModel
from constrained_adapters.models.embedded import EMBEDDED_NAME
from constrained_adapters.models.load import LoadedBase, load_base
from constrained_adapters.recipes import SHARED, Answers, find_recipe
from constrained_adapters.workspace import Workspace, finished_domains

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class OpenedModel:
    """A finished run, ready to answer.

    Args:
        model: In evaluation mode, with the adapters of all finished domains loaded, frozen and none active.
        base: Under it.
        domains: The finished ones, in the order in which they were learnt.
        workspace: Where they lie.
        adapters: For each domain, the adapters that act when it is answered for, with their weights.
    """

    model: CRMAModel
    base: LoadedBase
    domains: tuple[str, ...]
    workspace: Workspace
    adapters: Mapping[str, Mapping[str, float]]

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base's."""
        return self.base.tokenizer

    def adapters_for(self, domains: str | Mapping[str, float]) -> dict[str, float]:
        """The adapters that answer for a domain, or for a mix of domains, by name with their weights.

        An adapter acts on top of those that were active while it was trained. Where a run makes one model
        (``crma``, ``lora`` …), a domain is answered by its own adapter and all earlier ones, as right after it
        was learnt; its own alone would be no use. With ``separate`` it is its own alone, with ``isolation``
        its own and the shared one, with ``joint`` the only one that there is. A mix adds up the updates of
        its domains, ΔW = Σ_d w_d ΔW_d.

        The result suits a row of a mixed batch, and :meth:`activate`.

        Args:
            domains: A domain's name, or weights by name, which need not add up to 1.

        Raises:
            UnknownNameError: There is no such domain.
            ConfigError: A weight is not a finite number.
        """
        mix = {domains: 1.0} if isinstance(domains, str) else domains
        found: dict[str, float] = {}
        for given, share in mix.items():
            domain = unicodedata.normalize("NFC", given)
            if domain not in self.adapters:
                raise UnknownNameError.of("domain", given, self.domains, where=f"run {self.workspace.root}")
            number = isinstance(share, int | float) and not isinstance(share, bool)  # type: ignore[redundant-expr]
            if not number or not math.isfinite(share):
                raise ConfigError(f"the weight of domain {given!r} is not a finite number", got=repr(share))
            for name, weight in self.adapters[domain].items():
                found[name] = found.get(name, 0.0) + share * weight
        return found

    def activate(self, domains: str | Mapping[str, float] | None) -> None:
        """Make :attr:`model` answer for a domain, a mix of domains, or (None) as the base.

        Raises:
            UnknownNameError: There is no such domain.
            ConfigError: A weight is not a finite number.
        """
        weights = {} if domains is None else self.adapters_for(domains)
        self.model.set_active_adapters(list(weights))
        if weights:
            self.model.set_adapter_weights(weights)


def open_workspace(
    workspace: Workspace,
    *,
    dtype: Dtype = "auto",
    device: str = "auto",
    base: LoadedBase | None = None,
) -> OpenedModel:
    """Load the base of a run and the adapters of its finished domains.

    Args:
        workspace: See :func:`constrained_adapters.workspace.find_workspace`.
        dtype: Of the base's weights; ``"auto"`` takes what suits the device, and what the run was trained
            with where the weights would be others.
        device: As in the settings of a base.
        base: Loaded already; it is not loaded again.

    Raises:
        WorkspaceError: No domain is finished yet, or a file of the run is damaged.
        ModelError: The run's domains are no LoRA adapters, or the base is not the one they were trained on.
        ConstrainedAdaptersError: The base cannot be loaded, as by :func:`load_base`.
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
    acting = _acting(workspace, domains, recipe)
    homes = {name: _home(workspace, name, recipe) for weights in acting.values() for name in weights}
    missing = [name for name, home in homes.items() if not (home / CONFIG_FILE).is_file()]
    if missing:
        raise ModelError(
            "the domains of this run are no LoRA adapters",
            got=f"recipe {recipe.name!r}, which trains {recipe.trained.replace('_', ' ')}; "
            f"no {CONFIG_FILE} in {homes[missing[0]]}",
            expected="a method that gives each domain a LoRA adapter: crma, lora, separate and others",
            hint="--method NAME, where the run holds another",
        )
    base = base or _load_base(workspace, dtype, device)
    first = read_facts(next(iter(homes.values()))).get("config", {})
    with warnings.catch_warnings():  # what its strength would do to later domains is of no interest here
        warnings.simplefilter("ignore", UserWarning)
        config = CRMAConfig(**{"base_model_name": str(base.description["model"]), **first})
    model = CRMAModel.from_base(base, config)
    for name, home in homes.items():
        model.load_adapter(home, name)
    model.eval()
    return OpenedModel(model, base, domains, workspace, acting)


def _recipe(workspace: Workspace) -> Answers:
    settings = workspace.read_settings().get("method", {})
    return find_recipe(MethodConfig(recipe=str(settings.get("recipe", "crma"))))


def _acting(workspace: Workspace, domains: Sequence[str], recipe: Answers) -> dict[str, dict[str, float]]:
    if recipe.in_one_turn:
        return {domain: {domains[0]: 1.0} for domain in domains}
    if recipe.scored == "together":
        return {domain: dict.fromkeys(domains[: i + 1], 1.0) for i, domain in enumerate(domains)}
    shared = (SHARED,) if recipe.shared and _home(workspace, SHARED, recipe).is_dir() else ()
    return {domain: dict.fromkeys((*shared, domain), 1.0) for domain in domains}


def _home(workspace: Workspace, adapter: str, recipe: Answers) -> Path:
    own = adapter != SHARED or not recipe.shared
    return workspace.adapter(adapter) if own else workspace.memory / SHARED


def _load_base(workspace: Workspace, dtype: Dtype, device: str) -> LoadedBase:
    fingerprint, known = workspace.read_base()
    name = "embedded" if known["model"] == EMBEDDED_NAME else known["model"]
    kept = {key: known[key] for key in ("revision", "quantization") if key in known}
    asked = BaseConfig(model=name, device=device, dtype=dtype, **kept)
    base = load_base(asked)
    if dtype == "auto" and base.fingerprint != fingerprint and base.description["dtype"] != known["dtype"]:
        # The weights were rounded to another type than the adapters were trained on.
        base = load_base(asked.model_copy(update={"dtype": known["dtype"]}))
    return base
