"""The learner of all weights, and how weights are kept on disk."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from constrained_adapters.errors import WorkspaceError
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

    def begin(self, number: int, domain: str, rows: Rows) -> None:
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
