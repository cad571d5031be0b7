"""OGD: stored directions are orthonormal, and no step has a component along them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import SGD, AdamW

from constrained_adapters.constraints.attach import attach
from constrained_adapters.constraints.example_gradients import logit_gradients
from constrained_adapters.constraints.ogd import OGDConstraint
from constrained_adapters.constraints.ogd_lora import OGDLoRAConstraint
from constrained_adapters.errors import ConfigError, WorkspaceError
from constrained_adapters.memory.directions import StoredDirections

from .cases import inner_product_gradients, make_sketch, parameters, random

steady = settings(deadline=None, derandomize=True, max_examples=25)
SHAPES = {"w": (3, 4), "b": (5,)}


def gradients(seed: int, count: int) -> list[dict[str, Tensor]]:
    scales = torch.logspace(-6, 3, count)
    return [
        {name: scales[i] * random(seed + 7 * i + j, *shape) for j, (name, shape) in enumerate(SHAPES.items())}
        for i in range(count)
    ]


def joined(table: dict[str, Tensor]) -> Tensor:
    """Rows over all names."""
    return torch.cat([table[name].flatten(1) for name in SHAPES], dim=1)


def weights(seed: int) -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(random(seed + i, *shape)) for i, (name, shape) in enumerate(SHAPES.items())}


@steady
@given(st.integers(0, 1000), st.integers(1, 5), st.integers(1, 5))
def test_directions_are_orthonormal_and_span_what_was_given(seed, first, second):
    given_rows = [gradients(seed, first), gradients(seed + 500, second)]
    stored = StoredDirections().with_domain("law", given_rows[0]).with_domain("数学", given_rows[1])
    assert stored.domains == ("law", "数学")
    rows = joined(stored.directions).double()
    assert len(stored) == len(rows) == first + second
    torch.testing.assert_close(rows @ rows.T, torch.eye(len(rows), dtype=torch.float64), rtol=0, atol=1e-6)
    for table in [*given_rows[0], *given_rows[1]]:
        row = joined({name: g[None] for name, g in table.items()})[0].double()
        assert float((row - rows.T @ (rows @ row)).norm() / row.norm()) < 1e-5


def test_what_adds_nothing_is_not_stored_and_a_capacity_binds():
    four = gradients(0, 4)
    again = [{name: 2.0 * g + four[1][name] for name, g in four[0].items()}, *gradients(99, 6)]
    stored = StoredDirections().with_domain("a", four).with_domain("b", again, capacity=3)
    assert len(stored) == 4 + 2  # three were looked at, one of which lay in the span
    broken = [{name: torch.full_like(g, float("nan")) for name, g in four[0].items()}]
    assert len(stored.with_domain("c", broken)) == 6
    assert len(stored.with_domain("c", [])) == 6
    assert len(stored.with_domain("c", [], capacity=0)) == 6


def test_more_than_memory_allows_is_refused_before_it_is_made():
    with pytest.raises(ConfigError, match=r"(?s)domain 'law' are too large.*200 directions of 17 weights"):
        StoredDirections().with_domain("law", gradients(0, 3), max_bytes=13_000)


def test_they_come_back_from_their_file(tmp_path):
    stored, path = StoredDirections().with_domain("数学", gradients(0, 3)), tmp_path / "d.safetensors"
    stored.write(path)
    again = StoredDirections.load(path)
    assert again.domains == ("数学",) and len(again) == 3
    assert all(torch.equal(again.directions[name], stored.directions[name]) for name in SHAPES)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(WorkspaceError, match="stored directions cannot be read"):
        StoredDirections.load(path)


@steady
@given(st.integers(0, 1000), st.integers(1, 12))
def test_the_gradient_is_projected_off_every_direction_and_once_is_enough(seed, count):
    own, stored = weights(seed), StoredDirections().with_domain("law", gradients(seed, count))
    constraint = OGDConstraint(own, stored.directions)
    for i, p in enumerate(own.values()):
        p.grad = random(seed + 70 + i, *p.shape)
    given_gradient = joined({name: p.grad[None].clone() for name, p in own.items()})[0].double()
    rows = joined(stored.directions).double()
    constraint.before_step()
    once = joined({name: p.grad[None].clone() for name, p in own.items()})[0]
    torch.testing.assert_close(
        once.double(), given_gradient - rows.T @ (rows @ given_gradient), rtol=1e-4, atol=1e-5
    )
    removed = float((rows @ given_gradient).norm() / given_gradient.norm())
    assert float(constraint.measurements()["removed_ratio"]) == pytest.approx(removed, abs=1e-5)
    constraint.before_step()
    again = joined({name: p.grad[None] for name, p in own.items()})[0]
    torch.testing.assert_close(again, once, rtol=1e-5, atol=1e-6)
    assert constraint.describe() == {"num_directions": float(count)}


@pytest.mark.parametrize("make", [lambda ps: SGD(ps, lr=0.1), lambda ps: AdamW(ps, lr=0.1, weight_decay=0.5)])
def test_where_only_some_parameters_move_their_step_is_orthogonal_all_the_same(make):
    own, stored = weights(0), StoredDirections().with_domain("law", gradients(3, 6))
    attachment = attach(OGDConstraint(own, stored.directions), domain="law")
    own["w"].grad = random(8, 3, 4)
    before = own["w"].detach().clone()
    make(list(own.values())).step()
    attachment.remove()
    step = (own["w"].detach() - before).flatten()
    assert float(step.norm()) > 1e-2
    assert float((stored.directions["w"].flatten(1) @ step).norm() / step.norm()) < 1e-4


def test_to_first_order_the_logits_of_stored_examples_do_not_move(tiny_llama):
    model = tiny_llama.double()
    own = {name: p for name, p in model.named_parameters() if "norm" in name}
    generator = torch.Generator().manual_seed(0)
    examples = []
    for _ in range(4):
        ids = torch.randint(3, 264, (8,), generator=generator)
        examples.append((ids, ids.clone()))
    stored = StoredDirections().with_domain("law", logit_gradients(model, own, examples))

    def logits() -> Tensor:
        with torch.no_grad():
            found = [
                model(input_ids=ids[None]).logits[0, :-1].gather(1, ids[1:, None]).mean()
                for ids, _ in examples
            ]
        return torch.stack(found)

    moved = {}
    for bound in (False, True):
        start = {name: p.detach().clone() for name, p in own.items()}
        before = logits()
        attachment = attach(OGDConstraint(own, stored.directions), domain="law") if bound else None
        for i, p in enumerate(own.values()):
            p.grad = random(i, *p.shape).double()
        SGD(list(own.values()), lr=1e-4).step()
        if attachment is not None:
            attachment.remove()
        moved[bound] = float((logits() - before).norm())
        with torch.no_grad():
            for name, p in own.items():
                p.copy_(start[name])
    assert moved[True] < 0.02 * moved[False]


@pytest.mark.parametrize("ks", [(1,), (2, 1, 3)])
def test_for_an_adapter_it_is_the_projection_off_the_gradients_of_all_inner_products(make_pairs, ks):
    pairs = make_pairs()
    sketches = [make_sketch(pairs, 100 * i, n=3 + i, k=k) for i, k in enumerate(ks)]
    constraint = OGDLoRAConstraint(pairs, [s.left for s in sketches], [s.right for s in sketches])
    assert constraint.num_directions == sum(3 + i for i in range(len(ks)))
    ps = parameters(pairs)
    for i, p in enumerate(ps):
        p.grad = random(40 + i, *p.shape)
    own = torch.cat([p.grad.flatten() for p in ps]).double()
    rows = torch.cat([inner_product_gradients(s, pairs, ps) for s in sketches])
    wanted = own - rows.T @ torch.linalg.lstsq(rows.T, own[:, None]).solution[:, 0]
    constraint.before_step()
    found = torch.cat([p.grad.flatten() for p in ps]).double()
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
    ratio = float((own - wanted).norm() / own.norm())
    assert float(constraint.measurements()["removed_ratio"]) == pytest.approx(ratio, abs=1e-4)


def test_a_sequence_seen_twice_counts_once_and_b_at_zero_gives_no_nan(make_pairs):
    found = []
    for copies in (1, 2):
        pairs = make_pairs()
        sketch = make_sketch(pairs, 0)
        constraint = OGDLoRAConstraint(pairs, [sketch.left] * copies, [sketch.right] * copies)
        for i, p in enumerate(parameters(pairs)):
            p.grad = random(i, *p.shape)
        constraint.before_step()
        found.append(torch.cat([p.grad.flatten() for p in parameters(pairs)]))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    for pair in pairs:
        pair.a.data.zero_()
        pair.b.data.zero_()
    before = torch.cat([p.grad.flatten() for p in parameters(pairs)])
    constraint.before_step()
    assert torch.equal(torch.cat([p.grad.flatten() for p in parameters(pairs)]), before)
