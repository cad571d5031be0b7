"""GEM and A-GEM on the gradients that memories predict."""

from __future__ import annotations

import numpy as np
import pytest
import quadprog
import torch

from constrained_adapters.adapters.lora import delta_weight
from constrained_adapters.config.crma import CRMAConfig
from constrained_adapters.constraints.predicted import Curvature, PredictedGradientConstraint
from constrained_adapters.memory.factors import Factor
from constrained_adapters.model.binding import make_constraint


def nearest(gradient: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """The quadratic programme in the primal."""
    rows = (old / old.norm(dim=1, keepdim=True)).numpy()
    return torch.from_numpy(
        quadprog.solve_qp(np.eye(len(gradient)), gradient.numpy(), rows.T, np.zeros(len(rows)))[0]
    )


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
def test_the_predicted_gradients_are_those_of_the_predicted_increase(layers, make_pairs, make_memory, kind):
    """A gradient straight against their sum is removed whole, and only then."""
    pairs, memories = make_pairs(), [make_memory(0), make_memory(1)]
    total = sum(predicted(pairs, memory, diagonal=kind == "diagonal") for memory in memories)
    put(pairs, -total)
    constraint = make_constraint(pairs, layers, memories, config(kind, 1.0 - 1e-9))
    constraint.before_step()
    assert float(gradients(pairs).norm() / total.norm()) < 1e-5
    assert float(constraint.measurements()["conflict"]) == pytest.approx(-1.0, abs=1e-5)
    assert float(constraint.measurements()["removed_ratio"]) == pytest.approx(1.0, abs=1e-5)


def test_gem_keeps_the_predicted_increase_of_every_domain_from_rising(layers, make_pairs, make_memory):
    pairs, memories = make_pairs(), [make_memory(i) for i in range(3)]
    put(pairs, conflicting(pairs, memories))
    before = gradients(pairs)
    make_constraint(pairs, layers, memories, config("gem", 1.0 - 1e-9)).before_step()
    after = gradients(pairs).double()
    rows = torch.stack([predicted(pairs, memory) for memory in memories])
    assert float((rows / rows.norm(dim=1, keepdim=True) @ before.double()).max()) < -0.1
    assert float((rows / rows.norm(dim=1, keepdim=True) @ after).min()) >= -1e-4
    torch.testing.assert_close(after, nearest(before.double(), rows), rtol=1e-3, atol=1e-4)


def test_agem_binds_the_sum_alone_and_gem_every_domain(layers, make_pairs, make_memory):
    memories = [make_memory(i) for i in range(3)]
    found = {}
    for kind in ("agem", "gem"):
        pairs = make_pairs()
        rows = torch.stack([predicted(pairs, memory) for memory in memories])
        # Against the first domain, which the sum outweighs: no conflict for A-GEM.
        against = rows.sum(0) / rows.sum(0).norm() - 1.1 * rows[0] / rows[0].norm()
        assert float(rows[0] @ against) < 0.0 < float(rows.sum(0) @ against)
        put(pairs, against)
        make_constraint(pairs, layers, memories, config(kind, 1.0 - 1e-9)).before_step()
        found[kind] = gradients(pairs).double()
    torch.testing.assert_close(found["agem"], against, rtol=1e-5, atol=1e-6)
    assert float(rows[0] @ found["gem"] / rows[0].norm()) >= -1e-5


@pytest.mark.parametrize("kind", ["gem", "agem", "diagonal"])
def test_strength_scales_what_is_removed(layers, make_pairs, make_memory, kind):
    removed = []
    for strength in (1.0 - 1e-9, 0.75):
        pairs, memories = make_pairs(), [make_memory(0), make_memory(1)]
        put(pairs, conflicting(pairs, memories))
        before = gradients(pairs)
        make_constraint(pairs, layers, memories, config(kind, strength)).before_step()
        removed.append(gradients(pairs) - before)
    assert float(removed[0].norm()) > 0.1
    torch.testing.assert_close(removed[1], 0.75 * removed[0], rtol=1e-3, atol=1e-5)


def test_gem_with_one_memory_is_agem(layers, make_pairs, make_memory):
    found = []
    for kind in ("gem", "agem"):
        pairs, memory = make_pairs(), make_memory(0)
        put(pairs, conflicting(pairs, [memory]))
        constraint = make_constraint(pairs, layers, [memory], config(kind))
        constraint.before_step()
        assert float(constraint.measurements()["removed_ratio"]) > 0.1
        found.append(gradients(pairs))
    assert torch.equal(*found)


def test_b_at_zero_has_no_predicted_gradient_and_gives_no_nan(layers, make_pairs, make_memory, set_gradients):
    pairs = make_pairs()
    for pair in pairs:
        pair.b.data.zero_()
    set_gradients(pairs)
    before = gradients(pairs)
    constraint = make_constraint(pairs, layers, [make_memory(0)], config("gem"))
    constraint.before_step()
    assert torch.equal(gradients(pairs), before)
    assert all(float(value) == 0.0 for value in constraint.measurements().values())


def test_a_parameter_without_gradient_does_not_switch_it_off(layers, make_pairs, make_memory, set_gradients):
    pairs, memory = make_pairs(), make_memory(0)
    wanted = predicted(pairs, memory)
    put(pairs, -wanted)
    pairs[0].a.grad = pairs[2].b.grad = None
    make_constraint(pairs, layers, [memory], config("gem", 1.0 - 1e-9)).before_step()
    left = [p.grad for pair in pairs for p in (pair.a, pair.b) if p.grad is not None]
    assert len(left) == 4
    assert max(float(g.abs().max()) for g in left) < 1e-4 * float(wanted.abs().max())


def test_measurements_are_of_this_step_not_of_an_earlier_one(layers, make_pairs, make_memory):
    pairs, memory = make_pairs(), make_memory(0)
    put(pairs, -predicted(pairs, memory))
    constraint = make_constraint(pairs, layers, [memory], config("gem"))
    constraint.before_step()
    for pair in pairs:
        pair.a.grad = pair.b.grad = None
    constraint.before_step()
    assert all(float(value) == 0.0 for value in constraint.measurements().values())
    assert constraint.describe() == {"num_domains": 1.0}


class NoDense(Factor):
    """Fails where a d × d matrix is asked for."""

    def dense(self) -> torch.Tensor:
        raise AssertionError("a dense factor was made")


@pytest.mark.parametrize("kind", ["gem", "agem", "diagonal"])
def test_kept_directions_and_the_rest_give_what_the_dense_factor_gives(make_pairs, make_memory, kind):
    """``rest`` is not zero, and the wide and the narrow side both have directions."""
    pairs, memories = make_pairs(), [make_memory(seed, directions=5) for seed in (0, 1)]

    def thin(factor: Factor, rank: int) -> NoDense:
        dense = factor.dense()
        kept = Factor.along(dense, torch.linalg.eigh(dense)[1][:, -rank:])
        assert float(kept.rest.sum()) > 0.01 * kept.trace
        return NoDense(kept.vectors, kept.values, kept.rest)

    domains = [
        [
            Curvature(
                thin(memory.inputs[memory.groups[pair.module]]["energy"], 3),
                thin(memory.outputs[pair.module], 2),
            )
            for pair in pairs
        ]
        for memory in memories
    ]
    found = PredictedGradientConstraint(pairs, domains, kind, 1.0).old_gradients()
    rows = []
    for domain in domains:
        total, leaves = torch.zeros((), dtype=torch.float64), []
        for pair, curvature in zip(pairs, domain, strict=True):
            a, b = (x.detach().double().requires_grad_(True) for x in (pair.a, pair.b))
            outer, inner = (Factor.dense(f).double() for f in (curvature.outputs, curvature.inputs))
            if kind == "diagonal":
                outer, inner = outer.diagonal().diag(), inner.diagonal().diag()
            delta = pair.scaling * b @ a
            total = total + 0.5 * (delta.T @ outer @ delta @ inner).trace()
            leaves += [a, b]
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(total, leaves)]))
    wanted = rows if kind == "gem" else [torch.stack(rows).sum(0)]
    assert len(found) == len(wanted)
    for each, row in zip(found, wanted, strict=True):
        flat = torch.cat([g.flatten() for g in each]).double()
        torch.testing.assert_close(flat, row, rtol=1e-4, atol=1e-5 * float(row.abs().max()))
