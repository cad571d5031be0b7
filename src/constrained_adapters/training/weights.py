"""Learners that change the base's own weights: all of them, or trailing singular vectors of some layers."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import OSFConfig, get_peft_model
from safetensors.torch import load_file, save_file

from constrained_adapters.errors import ConfigError, WorkspaceError
from constrained_adapters.models.targets import resolve_targets
from constrained_adapters.training.learner import Rows
from constrained_adapters.training.penalties import Penalty, trained_weights

WEIGHTS_FILE = "model.safetensors"


def trainable_copy(model: Any) -> Any:
    """A float32 copy of a base: small steps are lost in 16 bit, and other methods need the base as it was."""
    own = copy.deepcopy(model).float()
    for parameter in own.parameters():
        parameter.requires_grad_(True)
    return own


class WeightsLearner:
    """All weights in float32, domain after domain.

    Only the last finished domain's weights stay on disk: no earlier ones are needed once its row is measured.

    Args:
        model: A :func:`trainable_copy`.
        penalty: Binds the steps.
    """

    def __init__(self, model: Any, penalty: Penalty | None = None) -> None:
        self.module = model
        self._penalty = penalty
        self._learnt: list[str] = []

    def prepare(self, tell: Callable[[str], None]) -> None:
        """Nothing."""

    def begin(self, number: int, domain: str) -> None:
        """Bind the steps."""
        if self._penalty is not None:
            self._penalty.bind(self.module, domain, self._learnt)

    def finish(self, domain: str, folder: Path) -> None:
        """Write all weights."""
        if self._penalty is not None:
            self._penalty.release()
        write_weights(trained_weights(self.module), folder)
        self._learnt.append(domain)

    def resume(self, number: int, domain: str, home: Path) -> None:
        """Read the weights, where a later domain has not replaced them."""
        read_weights(trained_weights(self.module), home)
        self._learnt.append(domain)

    def remembers(self, domain: str, home: Path) -> bool:
        """Whether the penalty knows the domain."""
        return self._penalty is None or self._penalty.remembers(domain)

    def remember(self, number: int, domain: str, home: Path, rows: Rows) -> None:
        """Give the penalty the domain's rows."""
        if self._penalty is not None:
            self._penalty.remember(self.module, domain, rows, seed=number)

    def show(self, row: int, number: int) -> None:
        """The weights are what they are."""

    def shown_since(self, row: int, number: int) -> int:
        """Never before."""
        return row

    def settle(self, homes: Sequence[Path]) -> None:
        """Remove the weights of all but the last."""
        drop_weights(homes[:-1])

    def describe(self) -> dict[str, float]:
        """Facts of the penalty."""
        return {} if self._penalty is None else self._penalty.describe()

    def predicted_increase_nats(self, domain: str) -> dict[str, float]:
        """No prediction."""
        return {}

    def release(self) -> None:
        """Nothing: the base itself was not touched."""


class OSFLearner:
    """The adapted layers' weights, by PEFT's Orthogonal Subspace Fine-tuning as it stands.

    Each weight is split by its singular values; the leading part is fixed, the trailing factors are
    trained, and PEFT's own hooks project their gradients off the leading subspace (Nayak et al. 2025,
    arXiv 2504.07097; PEFT's page on OSF). Between domains the trained parts are merged and the layers wrapped
    again, so that the decomposition is of the new weights; domain i of T keeps the share (i − 1)/T of each
    layer's rank fixed, the budget that PEFT's page gives for a known sequence (PEFT wants rank 1 at least).

    Args:
        model: A :func:`trainable_copy`.
        layers: ``adapter.layers`` of crma.yaml.
        num_domains: T.

    Raises:
        ConfigError: A layer is no ``torch.nn.Linear``: PEFT's tuner would leave it out.
    """

    def __init__(self, model: Any, layers: Any, num_domains: int) -> None:
        self.module = model
        self._targets = resolve_targets(model, layers)
        self._num_domains = num_domains
        for name in self._targets:
            layer = model.get_submodule(name)
            if not isinstance(layer, torch.nn.Linear):
                raise ConfigError(
                    "PEFT's OSF adapts torch.nn.Linear only",
                    got=f"{name}: {type(layer).__name__}",
                    hint="leave the recipe 'osf' out for this base",
                )

    def prepare(self, tell: Callable[[str], None]) -> None:
        """Nothing."""

    def begin(self, number: int, domain: str) -> None:
        """Decompose the present weights."""
        share = (number - 1) / self._num_domains
        config = OSFConfig(
            task_type="CAUSAL_LM", target_modules=self._targets, effective_rank=share if share else 1
        )
        with warnings.catch_warnings():  # PEFT asks transformers by a name that is going out of use
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
            self.module = get_peft_model(self.module, config)

    def finish(self, domain: str, folder: Path) -> None:
        """Merge, and write the adapted layers' weights."""
        self.module = self.module.merge_and_unload()
        write_weights(self._weights(), folder)

    def resume(self, number: int, domain: str, home: Path) -> None:
        """Read the weights, where a later domain has not replaced them."""
        read_weights(self._weights(), home)

    def remembers(self, domain: str, home: Path) -> bool:
        """The weights themselves are the memory."""
        return True

    def remember(self, number: int, domain: str, home: Path, rows: Rows) -> None:
        """Nothing."""

    def show(self, row: int, number: int) -> None:
        """The weights are what they are."""

    def shown_since(self, row: int, number: int) -> int:
        """Never before."""
        return row

    def settle(self, homes: Sequence[Path]) -> None:
        """Remove the weights of all but the last."""
        drop_weights(homes[:-1])

    def describe(self) -> dict[str, float]:
        """``preserved_ratio``: mean share of each layer's rank that is fixed."""
        fixed = [
            layer.effective_rank["default"] / min(layer.get_base_layer().weight.shape)
            for layer in self.module.modules()
            if hasattr(layer, "osf_svd_params")
        ]
        return {"preserved_ratio": sum(fixed) / len(fixed)}

    def predicted_increase_nats(self, domain: str) -> dict[str, float]:
        """No prediction."""
        return {}

    def release(self) -> None:
        """Nothing: the base itself was not touched."""

    def _weights(self) -> dict[str, torch.nn.Parameter]:
        return {name: self.module.get_submodule(name).weight for name in self._targets}


def write_weights(weights: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Write tensors as ``model.safetensors``."""
    tensors = {name: value.detach().contiguous() for name, value in weights.items()}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})


@torch.no_grad()
def read_weights(weights: Mapping[str, torch.Tensor], home: Path) -> None:
    """Put what :func:`write_weights` wrote, where it is there, into ``weights``.

    Raises:
        WorkspaceError: The file is damaged or belongs to another model.
    """
    path = home / WEIGHTS_FILE
    if not path.is_file():
        return
    try:
        stored = load_file(path)
        for name, value in weights.items():
            value.copy_(stored[name])
    except Exception as error:
        raise WorkspaceError(
            "the weights of a domain cannot be read",
            got=f"{path}: {type(error).__name__}: {error}",
            hint="begin anew with --fresh",
        ) from None


def drop_weights(homes: Sequence[Path]) -> None:
    """Remove weights that a later domain has replaced."""
    for home in homes:
        (home / WEIGHTS_FILE).unlink(missing_ok=True)
