"""What holds for every type of constraint that a config can name."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch.optim import AdamW

import constrained_adapters.constraints as room
from constrained_adapters.config import ConstraintType, CRMAConfig
from constrained_adapters.constraints.attach import attach
from constrained_adapters.errors import ModelError
from constrained_adapters.model.binding import make_constraint

TYPES = [kind for kind in get_args(ConstraintType) if kind != "none"]


def config(kind: str, **settings) -> CRMAConfig:
    return CRMAConfig(base_model_name="none", constraint_type=kind, **settings)


def test_the_room_lists_every_type_of_the_config_once():
    assert sorted([*room.SUBSPACE_TYPES, *room.PREDICTED_TYPES]) == sorted(TYPES)


def test_none_has_no_strength():
    assert config("none").effective_strength == 0.0


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_is_described_where_it_stands(kind):
    subspace = kind in room.SUBSPACE_TYPES
    source = room.subspace if subspace else room.predicted
    assert f"``{kind}``" in source.__doc__


def steps(pairs, set_gradients, constraint=None) -> list[torch.Tensor]:
    attachment = attach(constraint, domain="law") if constraint is not None else None
    optimizer = AdamW([p for pair in pairs for p in (pair.a, pair.b)], lr=0.05, weight_decay=0.1)
    for step in range(3):
        set_gradients(pairs, step)
        optimizer.step()
    if attachment is not None:
        attachment.remove()
    return [p.detach() for pair in pairs for p in (pair.a, pair.b)]


@pytest.mark.parametrize("kind", TYPES)
def test_without_memories_training_is_plain_bit_for_bit(make_pairs, set_gradients, kind):
    plain = steps(make_pairs(), set_gradients)
    pairs = make_pairs()
    constraint = make_constraint(pairs, [], config(kind))
    constraint.after_step()
    bound = steps(pairs, set_gradients, constraint)
    assert all(torch.equal(a, b) for a, b in zip(bound, plain, strict=True))
    assert float(constraint.measurements()["removed_ratio"]) == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", TYPES)
def test_with_memories_it_binds_and_keeps_dtypes_shapes_and_memories(
    make_pairs, make_memory, set_gradients, kind, dtype
):
    memories = [make_memory(0), make_memory(1)]
    stored = [memory.to_bytes() for memory in memories]
    pairs = make_pairs(dtype=dtype)
    constraint = make_constraint(pairs, memories, config(kind))
    set_gradients(pairs)
    for pair in pairs:
        pair.a.grad.copy_(-pair.a.grad.abs())
    before = [p.detach().clone() for pair in pairs for p in (pair.a, pair.b)]
    constraint.before_step()
    if kind not in room.SUBSPACE_TYPES:  # they may change the gradient only
        constraint.after_step()
        after = [p for pair in pairs for p in (pair.a, pair.b)]
        assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    for pair, other in zip(pairs, make_pairs(dtype=dtype), strict=True):
        for name in ("a", "b"):
            p = getattr(pair, name)
            assert p.dtype == p.grad.dtype == dtype
            assert p.shape == p.grad.shape == getattr(other, name).shape
            assert bool(torch.isfinite(p.grad).all())
    measured = constraint.measurements()
    assert all(value.ndim == 0 for value in measured.values())
    assert 0.0 <= float(measured["removed_ratio"]) <= 1.0
    assert all(isinstance(value, float) for value in constraint.describe().values())
    assert {id(p) for p in constraint.parameters} <= {id(p) for pair in pairs for p in (pair.a, pair.b)}
    assert [memory.to_bytes() for memory in memories] == stored


@pytest.mark.parametrize("kind", TYPES)
def test_a_gradient_against_the_memory_loses_a_good_part_of_itself(
    make_pairs, make_memory, set_gradients, kind
):
    pairs, memories = make_pairs(), [make_memory(0)]
    for pair in pairs:
        inner = memories[0].inputs[memories[0].groups[pair.module]]["energy"].dense()
        outer = memories[0].outputs[pair.module].dense()
        pair.a.grad = -(pair.b.T @ outer @ pair.b @ pair.a @ inner).detach()
        pair.b.grad = torch.zeros_like(pair.b)
    constraint = make_constraint(pairs, memories, config(kind, constraint_strength=0.99))
    constraint.before_step()
    assert float(constraint.measurements()["removed_ratio"]) > 0.2


@pytest.mark.parametrize("kind", TYPES)
def test_a_memory_of_other_layers_is_refused(make_pairs, make_memory, kind):
    memory = make_memory(0)
    del memory.groups["v"]
    memory.groups.update()
    with pytest.raises(ModelError, match="made for other layers"):
        make_constraint(make_pairs(), [memory], config(kind))
