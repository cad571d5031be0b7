"""What a training that goes on from an earlier checkpoint changes: rate, order of the data, noise."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import Dataset, Subset


@final
@dataclass
class LowerRate:
    """Multiplies every group's learning rate for a while, just for the optimizer's step.

    The scheduler sees its own rates only, so whatever it is, it goes on as if nothing had happened.

    Args:
        factor: Over 0.
        until_step: Steps done at which it ends.
    """

    factor: float = 1.0
    until_step: int = 0
    _before: list[float] = field(default_factory=list, repr=False)

    def acts(self, step: int) -> bool:
        """Whether the step after ``step`` steps is taken at the lower rate."""
        return step < self.until_step and self.factor != 1.0

    def lower(self, optimizer: Optimizer, step: int) -> None:
        """Before the optimizer's step."""
        if self.acts(step):
            self._before = [group["lr"] for group in optimizer.param_groups]
            for group in optimizer.param_groups:
                group["lr"] = group["lr"] * self.factor

    def restore(self, optimizer: Optimizer) -> None:
        """After it."""
        for group, rate in zip(optimizer.param_groups, self._before, strict=False):
            group["lr"] = rate
        self._before = []


@final
class EmbeddingNoise:
    """Uniform noise on the embedded tokens in training mode: ±α / √(s · d) for s tokens of width d.

    Source: NEFTune, Jain et al. 2023 (arXiv 2310.05914), algorithm 1. The embedding's weights are left
    alone, so that adapters still fit the base that they were trained on.

    Args:
        model: With an input embedding.
        alpha: α.
    """

    def __init__(self, model: Any, alpha: float) -> None:
        self._alpha = alpha
        self._handle = model.get_input_embeddings().register_forward_hook(self._add)

    def remove(self) -> None:
        """Take it off."""
        self._handle.remove()

    def _add(self, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        if not module.training:
            return None
        size = self._alpha / (output.shape[-2] * output.shape[-1]) ** 0.5
        return output + torch.empty_like(output).uniform_(-size, size)


def reordered(dataset: Any, *, seed: int, num_done: int = 0) -> Any:
    """The same rows in another order, those of the first ``num_done`` places where they are.

    Args:
        dataset: With a length; one of ``datasets`` stays one.
        seed: Of the order; the global random state is not touched.
        num_done: Rows already trained on, where rows are read as they stand; 0 where they are shuffled.

    Returns:
        None where the dataset has no length: a stream cannot be put into another order.
    """
    try:
        count = len(dataset)
    except TypeError:
        return None
    done = min(num_done, count)
    order = torch.randperm(count - done, generator=torch.Generator().manual_seed(seed)) + done
    places = [*range(done), *order.tolist()]
    if hasattr(dataset, "select"):
        return dataset.select(places)
    assert isinstance(dataset, Dataset) or hasattr(dataset, "__getitem__")
    return Subset(dataset, places)
