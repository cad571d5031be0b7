"""The learner of trailing singular vectors: Orthogonal Subspace Fine-tuning by PEFT's own tuner."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, final

import torch
from peft import OSFConfig, get_peft_model

from constrained_adapters.errors import ConfigError
from constrained_adapters.models.targets import resolve_targets
from constrained_adapters.training.learner import KeepsNoMemory, Rows
from constrained_adapters.training.weights import LastWeights, read_weights, write_weights


@final
class OSFLearner(KeepsNoMemory, LastWeights):
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

    def begin(self, number: int, domain: str, rows: Rows) -> None:
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

    def describe(self) -> dict[str, float]:
        """``preserved_ratio``: mean share of each layer's rank that is fixed."""
        fixed = [
            layer.effective_rank["default"] / min(layer.get_base_layer().weight.shape)
            for layer in self.module.modules()
            if hasattr(layer, "osf_svd_params")
        ]
        return {"preserved_ratio": sum(fixed) / len(fixed)}

    def _weights(self) -> dict[str, torch.nn.Parameter]:
        return {name: self.module.get_submodule(name).weight for name in self._targets}
