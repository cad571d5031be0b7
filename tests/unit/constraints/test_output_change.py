"""The penalty on what stays open, against its definition in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from constrained_adapters.adapters.lora import AdapterPair
from constrained_adapters.config.crma import CRMAConfig
from constrained_adapters.constraints.output_change import OutputChangeConstraint, times, weighted_square
from constrained_adapters.memory.frequent_directions import FrequentDirections
from constrained_adapters.memory.protected import ProtectedSpace
from constrained_adapters.model.binding import base_weight, make_constraint, output_change

WEIGHT = 3.0


def definition(pairs, layers, memories) -> torch.Tensor:
    """λ/2 T Σ_W ‖ΔW‖²_S / ‖W‖²_S with S summed over the domains."""
    total = torch.zeros((), dtype=torch.float64)
    for pair in pairs:
        inputs = sum(
            factor.dense().double() / factor.trace
            for memory in memories
            for factor in [memory.inputs[memory.groups[pair.module]]["sensitivity"]]
        )
        delta = pair.scaling * pair.b.double() @ pair.a.double()
        weight = layers[pair.module].weight.double()
        change = (delta @ inputs * delta).sum() / (weight @ inputs * weight).sum()
        total = total + 0.5 * WEIGHT * len(memories) * change
    return total


def config(**changes) -> CRMAConfig:
    given_ = {"constraint_strength": 0.8, "penalty_weight": WEIGHT, **changes}
    return CRMAConfig(base_model_name="none", constraint_type="fisher", **given_)


def penalty_of(pairs, layers, memories, space) -> OutputChangeConstraint:
    return output_change(pairs, layers, memories, space, WEIGHT)


def test_value_and_gradients_are_those_of_the_definition(make_pairs, make_memory, layers):
    pairs, memories = make_pairs(), [make_memory(0), make_memory(1), make_memory(2)]
    expected = definition(pairs, layers, memories)
    expected.backward()
    wanted = [(pair.a.grad.clone(), pair.b.grad.clone()) for pair in pairs]
    for pair in pairs:
        pair.a.grad, pair.b.grad = torch.zeros_like(pair.a), torch.zeros_like(pair.b)
    constraint = penalty_of(pairs, layers, memories, ProtectedSpace("sensitivity", 0.8))
    constraint.before_step()
    for pair, (a, b) in zip(pairs, wanted, strict=True):
        torch.testing.assert_close(pair.a.grad, a, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(pair.b.grad, b, rtol=1e-4, atol=1e-6)
    assert float(constraint.measurements()["penalty"]) == pytest.approx(float(expected.detach()), rel=1e-4)


def test_how_an_adapter_is_split_does_not_matter(make_pairs, make_memory, layers):
    """(A, B) and (MA, BM⁻¹) are the same adapter."""
    memories, pairs = [make_memory(0)], make_pairs()
    turned = []
    for pair in pairs:
        mix = torch.randn(3, 3, generator=torch.Generator().manual_seed(3)) + 3 * torch.eye(3)
        a, b = nn.Parameter(mix @ pair.a.detach()), nn.Parameter(pair.b.detach() @ mix.inverse())
        turned.append(AdapterPair(pair.module, a, b, pair.scaling))
    values = []
    for each in (pairs, turned):
        for pair in each:
            pair.a.grad, pair.b.grad = torch.zeros_like(pair.a), torch.zeros_like(pair.b)
        constraint = penalty_of(each, layers, memories, ProtectedSpace("sensitivity", 0.8))
        constraint.before_step()
        values.append(float(constraint.measurements()["penalty"]))
    assert values[0] == pytest.approx(values[1], rel=1e-4)


@given(scale=st.floats(1e-3, 1e3))
@settings(max_examples=20, deadline=None)
def test_the_scale_of_a_layer_does_not_matter(scale):
    """The change is relative: W, ΔW and the inputs may be in any unit."""
    generator = torch.Generator().manual_seed(0)
    weight, delta = (torch.randn(4, 6, generator=generator) for _ in range(2))
    rows = torch.randn(9, 6, generator=generator)
    inputs = rows.T @ rows
    plain = weighted_square(delta, inputs) / weighted_square(weight, inputs)
    scaled = weighted_square(scale * delta, 2 * inputs) / weighted_square(scale * weight, 2 * inputs)
    assert scaled == pytest.approx(plain, rel=1e-3)


def test_a_sketch_stands_for_the_matrix():
    generator = torch.Generator().manual_seed(1)
    seen = torch.randn(5, 12, generator=generator)
    sketch = FrequentDirections(12, 8)
    sketch.update(seen)
    rows = torch.randn(3, 12, generator=generator)
    torch.testing.assert_close(times(rows, sketch), times(rows, seen.T @ seen), rtol=1e-4, atol=1e-5)


def test_domains_are_added_one_after_another_as_at_once(make_memory):
    memories = [make_memory(index) for index in range(3)]
    growing = ProtectedSpace("sensitivity", 0.8)
    for count in (1, 2, 3):
        found = growing.sums(memories[:count])
    at_once = ProtectedSpace("sensitivity", 0.8).sums(memories)
    assert found["q"] is found["v"], "layers that read one input share one matrix"
    for module, matrix in at_once.items():
        torch.testing.assert_close(found[module], matrix)
        assert float(matrix.trace()) == pytest.approx(3.0, rel=1e-4)


def test_weight_nought_leaves_the_closed_directions_alone(make_pairs, make_memory, layers, set_gradients):
    memories, plain, held = [make_memory(0)], make_pairs(), make_pairs()
    for pairs, weight in ((plain, 0.0), (held, 1e-30)):
        set_gradients(pairs)
        make_constraint(pairs, layers, memories, config(penalty_weight=weight)).before_step()
    for one, other in zip(plain, held, strict=True):
        assert torch.equal(one.a.grad, other.a.grad) and torch.equal(one.b.grad, other.b.grad)


def test_the_projection_acts_on_the_penalty_too(make_pairs, make_memory, layers, set_gradients):
    pairs, memories = make_pairs(), [make_memory(0)]
    set_gradients(pairs)
    make_constraint(pairs, layers, memories, config(penalty_weight=10.0)).before_step()
    bases = ProtectedSpace("sensitivity", 0.8).bases(memories)
    for pair in pairs:
        assert float((pair.a.grad @ bases[pair.module]).norm()) < 1e-3 * float(pair.a.grad.norm())


def test_a_transposed_layer_is_read_as_it_acts():
    from transformers.pytorch_utils import Conv1D

    layer = Conv1D(3, 5)
    assert base_weight(layer).shape == (3, 5)
