"""The protected directions of many domains."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from constrained_adapters.memory.factors import Factor, common_basis
from constrained_adapters.memory.kfac import BASE_DOMAIN, KFACMemory
from constrained_adapters.memory.protected import (
    ProtectedSpace,
    extend_basis,
    protected_share,
)

steady = settings(deadline=None, derandomize=True, max_examples=60)
# The eigenvectors of a memory are rounded to bfloat16, so they are orthonormal to about 1 %.
ROUNDING = 0.01


def factor(width: int, rank: int, seed: int, *, rounded: bool = True) -> Factor:
    generator = torch.Generator().manual_seed(seed)
    columns = torch.randn(width, rank, generator=generator) * torch.logspace(0, -1, rank)
    matrix = columns @ columns.T
    made = Factor.along(matrix, common_basis([matrix], [0.97]))
    vectors = made.vectors.to(torch.bfloat16).float() if rounded else made.vectors
    return Factor(vectors, made.values, made.rest)


def held(basis: torch.Tensor, domain: Factor) -> float:
    """Share of the factor's whole trace that surely lies in the basis, or 1 where all it keeps does."""
    weighted = domain.vectors * domain.values.sqrt()
    captured = float((basis.T @ weighted).square().sum())
    return 1.0 if captured >= 0.999 * float(weighted.square().sum()) else captured / domain.trace


def extended(domains, share: float) -> torch.Tensor:
    basis = None
    for domain in domains:
        basis = extend_basis(basis, domain, share)
    return basis


@steady
@given(st.integers(2, 24), st.floats(0.3, 1.0), st.integers(1, 20), st.integers(0, 500))
def test_every_domain_is_held_by_an_orthonormal_basis_that_only_grows(width, share, num_domains, seed):
    domains = [factor(width, 1 + (seed + i) % width, 1000 * seed + i) for i in range(num_domains)]
    basis = None
    for domain in domains:
        larger = extend_basis(basis, domain, share)
        assert larger.shape[0] == width and larger.shape[1] <= width
        assert (larger.T @ larger - torch.eye(larger.shape[1])).abs().max() < 1e-5
        if basis is not None:
            assert larger.shape[1] >= basis.shape[1]
            assert (larger @ (larger.T @ basis) - basis).abs().max() < 1e-4
        basis = larger
    for domain in domains:
        assert held(basis, domain) >= share - ROUNDING


@steady
@given(st.floats(0.3, 0.99), st.integers(0, 500))
def test_a_domain_adds_the_fewest_directions(share, seed):
    domain = factor(16, 16, seed, rounded=False)
    basis = extend_basis(None, domain, share)
    count = basis.shape[1]
    needed = int((domain.values.cumsum(0) / domain.trace < share - 1e-6).sum()) + 1
    assert count == min(needed, domain.values.numel())
    assert extend_basis(basis, domain, share) is basis


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_twenty_domains_breaks_nothing(seed):
    domains = [factor(40, 4, i) for i in range(20)]
    order = torch.randperm(20, generator=torch.Generator().manual_seed(seed)).tolist()
    basis = extended([domains[i] for i in order], 0.9)
    reference = extended(domains, 0.9)
    assert basis.shape[1] <= 40
    assert abs(basis.shape[1] - reference.shape[1]) <= 3
    assert min(held(basis, domain) for domain in domains) >= 0.9 - ROUNDING


def test_a_hundred_domains_never_take_more_than_all_directions():
    basis = extended([factor(12, 12, i) for i in range(100)], 1.0)
    assert basis.shape == (12, 12)


def test_share_zero_protects_nothing_and_share_one_everything():
    domain = factor(10, 4, 0)
    assert extend_basis(None, domain, 0.0).shape == (10, 0)
    assert extend_basis(None, domain, 1.0).shape == (10, domain.values.numel())


def test_a_domain_without_curvature_adds_nothing():
    zero = Factor(torch.zeros(6, 0), torch.zeros(0), 0.0)
    assert extend_basis(None, zero, 0.9).shape == (6, 0)
    basis = extend_basis(None, factor(6, 3, 1), 0.9)
    assert extend_basis(basis, zero, 0.9) is basis


def memory(groups: dict[str, str], inputs: dict[str, Factor]) -> KFACMemory:
    both = {key: {"energy": value, "sensitivity": value} for key, value in inputs.items()}
    return KFACMemory("d", "", groups, both, {})


def test_modules_with_one_input_share_one_tensor_and_others_do_not():
    groups = {"q": "q", "v": "q", "o": "o"}
    memories = [memory(groups, {"q": factor(12, 3, i), "o": factor(8, 3, 50 + i)}) for i in range(3)]
    bases = ProtectedSpace("energy", 0.9).bases(memories)
    assert list(bases) == ["q", "v", "o"]
    assert bases["q"] is bases["v"] and bases["o"].shape[0] == 8
    expected = extended([kept.inputs["q"]["energy"] for kept in memories], 0.9)
    assert torch.equal(bases["q"], expected)


def test_a_domain_stays_protected_where_a_later_memory_groups_its_modules_otherwise():
    """With q and v adapted they share a key; where v alone was adapted, v is its own."""
    alone, together = factor(12, 2, 1), factor(12, 2, 2)
    memories = [memory({"v": "v"}, {"v": alone}), memory({"q": "q", "v": "q"}, {"q": together})]
    bases = ProtectedSpace("sensitivity", 0.9).bases(memories)
    assert held(bases["v"], alone) >= 0.9 - ROUNDING
    assert held(bases["v"], together) >= 0.9 - ROUNDING
    assert held(bases["q"], together) >= 0.9 - ROUNDING
    assert bases["q"].shape[1] < bases["v"].shape[1]


def test_without_memories_there_is_nothing_to_protect():
    assert ProtectedSpace("energy", 0.9).bases([]) == {}


@steady
@given(st.floats(0.0, 1.0))
def test_a_finished_domain_leaves_half_of_what_the_base_does(strength):
    assert protected_share("sensitivity", BASE_DOMAIN, strength) == strength
    for domain in (BASE_DOMAIN, "law"):
        assert protected_share("energy", domain, strength) == strength
    share = protected_share("sensitivity", "law", strength)
    assert strength - 1e-12 <= share <= 1.0
    assert 1.0 - share == pytest.approx((1.0 - strength) / 2, abs=1e-12)


def domains(count: int, seed: int) -> list[KFACMemory]:
    """The base and finished domains; from the third on v reads an input of its own."""
    made = []
    for i in range(count):
        own = {"v": factor(12, 3, seed + 700 + i)} if i > 2 else {}
        groups = {"q": "q", "v": "v" if own else "q", "o": "o"}
        inputs = {"q": factor(12, 3, seed + i), "o": factor(8, 3, seed + 300 + i), **own}
        made.append(replace(memory(groups, inputs), domain=f"domain_{i}" if i else BASE_DOMAIN))
    return made


@settings(deadline=None, derandomize=True, max_examples=20)
@given(st.integers(1, 6), st.floats(0.2, 1.0), st.integers(0, 10_000), st.sets(st.integers(1, 6)))
def test_a_space_that_grows_equals_the_one_made_at_once(count, strength, seed, stops):
    memories = domains(count, seed)
    space = ProtectedSpace("sensitivity", strength)
    for known in sorted({*(stop for stop in stops if stop < count), count}):
        found = space.bases(memories[:known])
        expected = ProtectedSpace("sensitivity", strength).bases(memories[:known])
        assert list(found) == list(expected)
        assert all(torch.equal(found[name], basis) for name, basis in expected.items())
    for index, kept in enumerate(memories):
        share = protected_share("sensitivity", kept.domain, strength)
        for module, key in kept.groups.items():
            held_here = held(found[module], kept.inputs[key]["sensitivity"])
            assert held_here >= share - ROUNDING, (index, module)


def test_what_was_computed_for_the_beginning_is_used_again_and_another_beginning_is_not(monkeypatch):
    from constrained_adapters.memory import protected

    calls = []
    original = protected.extend_basis
    monkeypatch.setattr(protected, "extend_basis", lambda *args: calls.append(1) or original(*args))
    memories, space = domains(3, 5), ProtectedSpace("energy", 0.9)
    first = space.bases(memories[:2])
    made = len(calls)
    again = space.bases(memories[:2])
    assert len(calls) == made and all(again[name] is basis for name, basis in first.items())
    space.bases(memories)
    assert len(calls) == made + 2  # q and v share one input, o has the other
    swapped = space.bases([memories[1], memories[0]])
    expected = ProtectedSpace("energy", 0.9).bases([memories[1], memories[0]])
    assert all(torch.equal(swapped[name], basis) for name, basis in expected.items())
    fewer = space.bases([memories[1]])
    expected = ProtectedSpace("energy", 0.9).bases([memories[1]])
    assert all(torch.equal(fewer[name], basis) for name, basis in expected.items())
