"""Learners of the base's own weights, all of them or a part, and how weights are kept on disk."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import torch
from safetensors.torch import load_file, save_file

from constrained_adapters.adapters.selection import EVERYTHING, Part, train_only
from constrained_adapters.errors import WorkspaceError
from constrained_adapters.training.bound import UnderPenalty
from constrained_adapters.training.learner import OneState, Rows
from constrained_adapters.training.penalties import Penalty, trained_weights

WEIGHTS_FILE = "model.safetensors"


def trainable_copy(model: Any, part: Part = EVERYTHING) -> Any:
    """A float32 copy of a base: small steps are lost in 16 bit, and other methods need the base as it was.

    Args:
        model: The base.
        part: What of the copy requires a gradient.

    Raises:
        ConfigError: The base has no such part.
        ModelError: The base's decoder layers cannot be found, where the part counts them.
    """
    own = copy.deepcopy(model).float()
    train_only(own, part)
    return own


class LastWeights(OneState):
    """A learner that changes the weights themselves: only those after the last finished domain are kept."""

    @final
    def shown_since(self, row: int, number: int) -> int:
        """Never before."""
        return row

    @final
    def settle(self, homes: Sequence[Path]) -> None:
        """Remove the weights of all but the last: no earlier ones are needed once its row is measured."""
        for home in homes[:-1]:
            (home / WEIGHTS_FILE).unlink(missing_ok=True)


@final
class WeightsLearner(UnderPenalty, LastWeights):
    """Those weights of a model that require a gradient, domain after domain; its files hold no others.

    Args:
        model: A :func:`trainable_copy`.
        penalty: Binds the steps.
    """

    def __init__(self, model: Any, penalty: Penalty | None = None) -> None:
        super().__init__(penalty)
        self.module = model

    def begin(self, number: int, domain: str, rows: Rows) -> None:
        """Bind the steps."""
        self.bind(domain)

    def finish(self, domain: str, folder: Path) -> None:
        """Write the trained weights."""
        self.learnt(domain)
        write_weights(trained_weights(self.module), folder)

    def resume(self, number: int, domain: str, home: Path) -> None:
        """Read the weights, where a later domain has not replaced them."""
        read_weights(trained_weights(self.module), home)
        self.learnt(domain)


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
