"""A finished run opened for use: its base and the adapters of its domains, ready to answer."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from constrained_adapters.adapters.files import read_facts
from constrained_adapters.config.crma import CRMAConfig
from constrained_adapters.config.run import BaseConfig
from constrained_adapters.model.crma import CRMAModel
from constrained_adapters.model.domain_adapters import acting_adapters, adapter_home, mixed_adapters
from constrained_adapters.models.embedded import EMBEDDED_NAME
from constrained_adapters.models.load import LoadedBase, load_base
from constrained_adapters.workspace import Workspace

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["4bit", "8bit"]


@dataclass(frozen=True)
class OpenedModel:
    """A finished run, ready to answer.

    Args:
        model: In evaluation mode, with the adapters of all finished domains loaded, frozen and none active.
        base: Under it.
        domains: The finished ones, in the order in which they were learnt.
        workspace: Where they lie.
        adapters: See :func:`~constrained_adapters.model.domain_adapters.acting_adapters`.
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
        """The adapters that answer for a domain or a mix of domains, as a row of a mixed batch takes them.

        Raises:
            UnknownNameError: There is no such domain.
            ConfigError: A weight is not a finite number.
        """
        return mixed_adapters(self.adapters, domains)

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
    quantization: Quantization | None = None,
    base: LoadedBase | None = None,
) -> OpenedModel:
    """Load the base of a run and the adapters of its finished domains.

    Args:
        workspace: See :func:`constrained_adapters.workspace.find_workspace`.
        dtype: Of the base's weights; ``"auto"`` takes what suits the device, and what the run was trained
            with where the weights would be others.
        device: As in the settings of a base.
        quantization: Pack the base's weights, which the run need not have been trained on. A packed base
            cannot be told from another one: that it is the run's is not checked then.
        base: Loaded already; it is not loaded again, and the other settings have no effect.

    Raises:
        WorkspaceError: No domain is finished yet, or a file of the run is damaged.
        ModelError: The run's domains are no LoRA adapters, or the base is not the one they were trained on.
        ConstrainedAdaptersError: The base cannot be loaded, as by :func:`load_base`.
    """
    acting = acting_adapters(workspace)
    base = base or load_run_base(workspace, dtype=dtype, device=device, quantization=quantization)
    names = list(dict.fromkeys(name for weights in acting.values() for name in weights))
    first = read_facts(adapter_home(workspace, names[0])).get("config", {})
    with warnings.catch_warnings():  # what its strength would do to later domains is of no interest here
        warnings.simplefilter("ignore", UserWarning)
        config = CRMAConfig(**{"base_model_name": str(base.description["model"]), **first})
    model = CRMAModel.from_base(base, config)
    for name in names:
        model.load_adapter(adapter_home(workspace, name), name)
    model.eval()
    return OpenedModel(model, base, tuple(acting), workspace, acting)


def load_run_base(
    workspace: Workspace,
    *,
    dtype: Dtype = "auto",
    device: str = "auto",
    quantization: Quantization | None = None,
) -> LoadedBase:
    """Load the base of a run; arguments as :func:`open_workspace`.

    Raises:
        WorkspaceError: It is not known which base that is.
        ConstrainedAdaptersError: It cannot be loaded, as by :func:`load_base`.
    """
    fingerprint, known = workspace.read_base()
    asked = BaseConfig(
        model="embedded" if known["model"] == EMBEDDED_NAME else known["model"],
        revision=known.get("revision"),
        dtype=dtype,
        device=device,
        quantization=quantization or known.get("quantization"),
    )
    base = load_base(asked)
    if quantization not in {None, known.get("quantization")}:
        return replace(base, fingerprint=fingerprint)
    if dtype == "auto" and base.fingerprint != fingerprint and base.description["dtype"] != known["dtype"]:
        # The weights were rounded to another type than the adapters were trained on.
        base = load_base(asked.model_copy(update={"dtype": known["dtype"]}))
    return base
