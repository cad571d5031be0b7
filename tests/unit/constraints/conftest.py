"""A few LoRA pairs outside any model, and memories of made-up domains."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from constrained_adapters.adapters.lora import AdapterPair
from constrained_adapters.memory.gather import Statistics
from constrained_adapters.memory.kfac import KFACMemory

GROUPS = {"q": "q", "v": "q", "o": "o"}
# d_out × d_in of each adapted matrix
SHAPES = {"q": (8, 12), "v": (6, 12), "o": (12, 8)}
RANK = 3


@pytest.fixture
def make_pairs():
    def make(seed: int = 0, dtype: torch.dtype = torch.float32) -> list[AdapterPair]:
        generator = torch.Generator().manual_seed(seed)

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=generator).to(dtype))

        return [
            AdapterPair(name, parameter(RANK, d_in), parameter(d_out, RANK), 0.5)
            for name, (d_out, d_in) in SHAPES.items()
        ]

    return make


@pytest.fixture
def layers() -> dict[str, nn.Linear]:
    """The layers that the pairs of :func:`make_pairs` are on."""
    torch.manual_seed(7)
    return {name: nn.Linear(d_in, d_out) for name, (d_out, d_in) in SHAPES.items()}


@pytest.fixture
def make_memory():
    def make(seed: int, directions: int = 2) -> KFACMemory:
        generator = torch.Generator().manual_seed(1000 + seed)

        def covariance(width: int) -> torch.Tensor:
            columns = torch.randn(width, directions, generator=generator)
            return columns @ columns.T

        stats = Statistics(
            groups=GROUPS,
            energy={"q": covariance(12), "o": covariance(8)},
            sensitivity={"q": covariance(12), "o": covariance(8)},
            output={name: covariance(d_out) for name, (d_out, _) in SHAPES.items()},
        )
        return KFACMemory.from_statistics(
            stats, domain=f"domain_{seed}", base_fingerprint="", shares={"sensitivity": 1.0, "energy": 1.0}
        )

    return make


@pytest.fixture
def set_gradients():
    """Give every parameter of some pairs a seeded gradient."""

    def fill(pairs: list[AdapterPair], seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(500 + seed)
        for pair in pairs:
            for p in (pair.a, pair.b):
                p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)

    return fill
