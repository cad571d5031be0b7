"""Where a new adapter starts."""

from __future__ import annotations

import pytest
import torch

from constrained_adapters.adapters.lora import AdapterPair, adapter_pairs
from constrained_adapters.errors import AdapterStateError
from constrained_adapters.model.start import start_in_open_inputs


def pair(rank: int, width: int, module: str = "q") -> AdapterPair:
    a = torch.nn.Parameter(torch.randn(rank, width, generator=torch.Generator().manual_seed(7)))
    return AdapterPair(module, a, torch.nn.Parameter(torch.zeros(4, rank)), 1.0)


def covariance(width: int, rank: int, seed: int = 0) -> torch.Tensor:
    columns = torch.randn(width, rank, generator=torch.Generator().manual_seed(seed))
    return columns @ columns.T


def test_it_holds_the_most_variance_that_orthonormal_open_rows_can_hold():
    closed = torch.linalg.qr(torch.randn(12, 5, generator=torch.Generator().manual_seed(1))).Q
    spread, made = covariance(12, 12), pair(3, 12)
    start_in_open_inputs([made], {"q": spread}, {"q": closed})
    a = made.a.detach()
    torch.testing.assert_close(a @ a.T, torch.eye(3), atol=1e-5, rtol=0)
    assert float((a @ closed).abs().max()) < 1e-5
    off = torch.eye(12) - closed @ closed.T
    best = torch.linalg.eigvalsh((off @ spread @ off).double()).flip(0)[:3].sum()
    assert float((a @ spread * a).sum()) == pytest.approx(float(best), rel=1e-4)


def test_without_anything_closed_it_is_the_top_of_the_covariance():
    spread, made = covariance(8, 8), pair(2, 8)
    start_in_open_inputs([made], {"q": spread}, {})
    held = float((made.a.detach() @ spread * made.a.detach()).sum())
    assert held == pytest.approx(float(torch.linalg.eigvalsh(spread.double()).flip(0)[:2].sum()), rel=1e-4)


def test_where_too_few_directions_are_open_the_rest_of_the_rows_stays():
    closed = torch.eye(6)[:, :4]
    made = pair(4, 6)
    drawn = made.a.detach().clone()
    start_in_open_inputs([made], {"q": covariance(6, 6)}, {"q": closed})
    assert torch.equal(made.a.detach()[2:], drawn[2:])
    assert not torch.equal(made.a.detach()[:2], drawn[:2])


def tokens(count: int):
    generator = torch.Generator().manual_seed(3)
    return [(torch.randint(3, 90, (9,), generator=generator),) * 2 for _ in range(count)]


def test_a_model_starts_an_adapter_outside_what_its_memories_close(make_model):
    model = make_model(constraint_strength=0.9, protect_base=True)
    model.create_adapter("law")
    model.start_from("law", tokens(6))
    model.set_active_adapter("law")
    before = [pair.a.detach().clone() for pair in adapter_pairs(model, "law")]
    model.enable_constrained_training(True)  # projects A off what is closed: nothing is left to remove
    for a, made in zip(before, adapter_pairs(model, "law"), strict=True):
        torch.testing.assert_close(made.a.detach(), a, atol=1e-4, rtol=0)
    assert model.constraint_facts()["closed_ratio"] > 0.0


def test_no_rows_are_refused(make_model):
    model = make_model()
    model.create_adapter("law")
    with pytest.raises(AdapterStateError, match="nothing to start adapter 'law' from"):
        model.start_from("law", [])
