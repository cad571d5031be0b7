"""GEM and A-GEM on predicted gradients; the quadratic programme against quadprog."""

from __future__ import annotations

import numpy as np
import pytest
import quadprog
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from constrained_adapters.adapters.lora import delta_weight
from constrained_adapters.config import CRMAConfig
from constrained_adapters.constraints.predicted import project_gem
from constrained_adapters.model.binding import make_constraint

steady = settings(deadline=None, derandomize=True, max_examples=80)
problems = st.tuples(st.integers(1, 8), st.integers(1, 12), st.integers(0, 10_000))


def problem(num_domains: int, size: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scales = torch.logspace(-3, 2, num_domains, dtype=torch.float64)[:, None]
    old = torch.randn(num_domains, size, generator=generator, dtype=torch.float64) * scales
    return torch.randn(size, generator=generator, dtype=torch.float64), old


def nearest(gradient: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """The same programme, in the primal."""
    rows = (old / old.norm(dim=1, keepdim=True)).numpy()
    return torch.from_numpy(
        quadprog.solve_qp(np.eye(len(gradient)), gradient.numpy(), rows.T, np.zeros(len(rows)))[0]
    )


@steady
@given(problems)
def test_it_agrees_with_quadprog(sizes):
    gradient, old = problem(*sizes)
    expected = nearest(gradient, old)
    torch.testing.assert_close(project_gem(gradient, old), expected, rtol=1e-5, atol=1e-6)


@steady
@given(problems, st.sampled_from([torch.float32, torch.float64]))
def test_no_product_with_an_old_gradient_is_negative(sizes, dtype):
    gradient, old = (x.to(dtype) for x in problem(*sizes))
    projected = project_gem(gradient, old)
    assert projected.dtype == dtype and projected.shape == gradient.shape
    tolerance = 1e-5 if dtype == torch.float32 else 1e-8
    assert float((old / old.norm(dim=1, keepdim=True) @ projected).min()) >= -tolerance
    assert float(projected.norm()) <= float(gradient.norm()) * (1 + 1e-6)


@steady
@given(st.integers(1, 12), st.integers(0, 10_000))
def test_one_memory_gives_the_closed_form_of_agem(size, seed):
    gradient, old = problem(1, size, seed)
    product = float(old[0] @ gradient)
    expected = gradient - min(product, 0.0) / float(old[0] @ old[0]) * old[0]
    torch.testing.assert_close(project_gem(gradient, old), expected, rtol=1e-8, atol=1e-9)


def test_a_gradient_without_conflict_is_given_back_bit_for_bit():
    gradient, old = problem(3, 12, 5)
    old = old * (old @ gradient).sign()[:, None]
    assert torch.equal(project_gem(gradient, old), gradient)


@pytest.mark.parametrize("copies", [2, 5])
def test_repeated_and_parallel_old_gradients_change_nothing(copies):
    gradient, old = problem(2, 9, 3)
    old = -old * (old @ gradient).sign()[:, None]
    many = torch.cat([old * 10.0**i for i in range(copies)])
    torch.testing.assert_close(project_gem(gradient, many), project_gem(gradient, old), rtol=1e-6, atol=1e-8)


def test_opposite_old_gradients_leave_only_what_is_orthogonal_to_both():
    gradient, old = problem(1, 5, 1)
    direction = old[0] / old[0].norm()
    projected = project_gem(gradient, torch.stack([old[0], -old[0]]))
    torch.testing.assert_close(projected, gradient - (gradient @ direction) * direction, rtol=1e-5, atol=1e-6)


def test_zero_old_gradients_bind_nothing():
    gradient, old = problem(1, 5, 2)
    old = -old * (old @ gradient).sign()[:, None]
    alone = project_gem(gradient, old)
    with_zero = project_gem(gradient, torch.cat([old, torch.zeros(2, 5, dtype=torch.float64)]))
    torch.testing.assert_close(with_zero, alone, rtol=1e-7, atol=1e-9)
    assert torch.equal(project_gem(gradient, torch.zeros(2, 5, dtype=torch.float64)), gradient)


def test_tiny_old_gradients_bind_as_large_ones_do():
    gradient, old = problem(2, 7, 4)
    small = project_gem(gradient.float(), old.float() * 1e-18)
    torch.testing.assert_close(small, project_gem(gradient.float(), old.float()), rtol=1e-4, atol=1e-5)


def config(kind: str, strength: float = 0.9) -> CRMAConfig:
    return CRMAConfig(base_model_name="none", constraint_type=kind, constraint_strength=strength)


def gradients(pairs) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for pair in pairs for p in (pair.a, pair.b)])


def predicted(pairs, memory, *, diagonal: bool = False) -> torch.Tensor:
    """By automatic differentiation of ½ tr(ΔWᵀ G ΔW A_k) in float64."""
    total = torch.zeros((), dtype=torch.float64)
    leaves = []
    for pair in pairs:
        a, b = (x.detach().double().requires_grad_(True) for x in (pair.a, pair.b))
        outer = memory.outputs[pair.module].dense().double()
        inner = memory.inputs[memory.groups[pair.module]]["energy"].dense().double()
        if diagonal:
            outer, inner = outer.diagonal().diag(), inner.diagonal().diag()
        delta = pair.scaling * b @ a
        total = total + 0.5 * (delta.T @ outer @ delta @ inner).trace()
        leaves += [a, b]
    if not diagonal:
        deltas = {pair.module: delta_weight(pair) for pair in pairs}
        assert memory.predicted_increase_nats(deltas) == pytest.approx(float(total.detach()), rel=1e-4)
    return torch.cat([g.flatten() for g in torch.autograd.grad(total, leaves)])


def put(pairs, gradient: torch.Tensor) -> None:
    start = 0
    for pair in pairs:
        for p in (pair.a, pair.b):
            p.grad = gradient[start : start + p.numel()].view_as(p).to(p.dtype).clone()
            start += p.numel()


def conflicting(pairs, memories) -> torch.Tensor:
    """A gradient that is partly against each domain's predicted one."""
    rows = torch.stack([predicted(pairs, memory) for memory in memories])
    against = -(rows / rows.norm(dim=1, keepdim=True)).sum(0)
    noise = torch.randn(len(against), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return against + noise / noise.norm()


@pytest.mark.parametrize("kind", ["agem", "diagonal"])
def test_the_predicted_gradients_are_those_of_the_predicted_increase(make_pairs, make_memory, kind):
    """A gradient straight against their sum is removed whole, and only then."""
    pairs, memories = make_pairs(), [make_memory(0), make_memory(1)]
    total = sum(predicted(pairs, memory, diagonal=kind == "diagonal") for memory in memories)
    put(pairs, -total)
    constraint = make_constraint(pairs, memories, config(kind, 1.0 - 1e-9))
    constraint.before_step()
    assert float(gradients(pairs).norm() / total.norm()) < 1e-5
    assert float(constraint.measurements()["conflict"]) == pytest.approx(-1.0, abs=1e-5)
    assert float(constraint.measurements()["removed_ratio"]) == pytest.approx(1.0, abs=1e-5)


def test_gem_keeps_the_predicted_increase_of_every_domain_from_rising(make_pairs, make_memory):
    pairs, memories = make_pairs(), [make_memory(i) for i in range(3)]
    put(pairs, conflicting(pairs, memories))
    before = gradients(pairs)
    make_constraint(pairs, memories, config("gem", 1.0 - 1e-9)).before_step()
    after = gradients(pairs).double()
    rows = torch.stack([predicted(pairs, memory) for memory in memories])
    assert float((rows / rows.norm(dim=1, keepdim=True) @ before.double()).max()) < -0.1
    assert float((rows / rows.norm(dim=1, keepdim=True) @ after).min()) >= -1e-4
    torch.testing.assert_close(after, nearest(before.double(), rows), rtol=1e-3, atol=1e-4)


def test_agem_binds_the_sum_alone_and_gem_every_domain(make_pairs, make_memory):
    memories = [make_memory(i) for i in range(3)]
    found = {}
    for kind in ("agem", "gem"):
        pairs = make_pairs()
        rows = torch.stack([predicted(pairs, memory) for memory in memories])
        # Against the first domain, which the sum outweighs: no conflict for A-GEM.
        against = rows.sum(0) / rows.sum(0).norm() - 1.1 * rows[0] / rows[0].norm()
        assert float(rows[0] @ against) < 0.0 < float(rows.sum(0) @ against)
        put(pairs, against)
        make_constraint(pairs, memories, config(kind, 1.0 - 1e-9)).before_step()
        found[kind] = gradients(pairs).double()
    torch.testing.assert_close(found["agem"], against, rtol=1e-5, atol=1e-6)
    assert float(rows[0] @ found["gem"] / rows[0].norm()) >= -1e-5


@pytest.mark.parametrize("kind", ["gem", "agem", "diagonal"])
def test_strength_scales_what_is_removed(make_pairs, make_memory, kind):
    removed = []
    for strength in (1.0 - 1e-9, 0.75):
        pairs, memories = make_pairs(), [make_memory(0), make_memory(1)]
        put(pairs, conflicting(pairs, memories))
        before = gradients(pairs)
        make_constraint(pairs, memories, config(kind, strength)).before_step()
        removed.append(gradients(pairs) - before)
    assert float(removed[0].norm()) > 0.1
    torch.testing.assert_close(removed[1], 0.75 * removed[0], rtol=1e-3, atol=1e-5)


def test_gem_with_one_memory_is_agem(make_pairs, make_memory):
    found = []
    for kind in ("gem", "agem"):
        pairs, memory = make_pairs(), make_memory(0)
        put(pairs, conflicting(pairs, [memory]))
        constraint = make_constraint(pairs, [memory], config(kind))
        constraint.before_step()
        assert float(constraint.measurements()["removed_ratio"]) > 0.1
        found.append(gradients(pairs))
    assert torch.equal(*found)


def test_b_at_zero_has_no_predicted_gradient_and_gives_no_nan(make_pairs, make_memory, set_gradients):
    pairs = make_pairs()
    for pair in pairs:
        pair.b.data.zero_()
    set_gradients(pairs)
    before = gradients(pairs)
    constraint = make_constraint(pairs, [make_memory(0)], config("gem"))
    constraint.before_step()
    assert torch.equal(gradients(pairs), before)
    assert all(float(value) == 0.0 for value in constraint.measurements().values())


def test_a_parameter_without_gradient_does_not_switch_it_off(make_pairs, make_memory, set_gradients):
    pairs, memory = make_pairs(), make_memory(0)
    wanted = predicted(pairs, memory)
    put(pairs, -wanted)
    pairs[0].a.grad = pairs[2].b.grad = None
    make_constraint(pairs, [memory], config("gem", 1.0 - 1e-9)).before_step()
    left = [p.grad for pair in pairs for p in (pair.a, pair.b) if p.grad is not None]
    assert len(left) == 4
    assert max(float(g.abs().max()) for g in left) < 1e-4 * float(wanted.abs().max())


def test_measurements_are_of_this_step_not_of_an_earlier_one(make_pairs, make_memory):
    pairs, memory = make_pairs(), make_memory(0)
    put(pairs, -predicted(pairs, memory))
    constraint = make_constraint(pairs, [memory], config("gem"))
    constraint.before_step()
    for pair in pairs:
        pair.a.grad = pair.b.grad = None
    constraint.before_step()
    assert all(float(value) == 0.0 for value in constraint.measurements().values())
    assert constraint.describe() == {"num_domains": 1.0}
