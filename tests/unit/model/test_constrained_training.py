"""What training under the memories keeps closed and fixed, whoever makes the steps."""

from __future__ import annotations

import copy

import pytest
import torch

from constrained_adapters.adapters.lora import adapter_pairs, delta_weight
from constrained_adapters.errors import TrainingError
from constrained_adapters.memory.merge import merge_memories
from constrained_adapters.memory.protected import ProtectedSpace


def largest_inside(model, name: str, *memories) -> float:
    """The largest share of a row of A that lies in what the memories protect."""
    bases = ProtectedSpace("sensitivity", model.crma_config.constraint_strength).bases(memories)
    shares = []
    for pair in adapter_pairs(model, name):
        assert bases[pair.module].shape[1] > 0
        a = pair.a.detach()
        shares.append(((a @ bases[pair.module]).norm(dim=1) / a.norm(dim=1)).max())
    return float(torch.stack(shares).max())


@pytest.mark.parametrize("way", ["trainer", "sft_trainer", "loop"])
def test_memory_directions_stay_closed(make_model, rows, train, finish, weights_of, way):
    model = make_model(constraint_strength=0.8)
    finish(model, "law", rows(0))
    model.create_adapter("medicine")
    model.set_active_adapters(["law", "medicine"])
    memory = model.gradient_memory("law")
    assert largest_inside(model, "medicine", memory) > 0.3
    law = weights_of(model, "law")
    model.enable_constrained_training(True)
    start = weights_of(model, "medicine")
    train(model, rows(1), way)
    assert largest_inside(model, "medicine", memory) < 1e-5
    assert all(not torch.equal(value, start[key]) for key, value in weights_of(model, "medicine").items())
    assert all(torch.equal(value, law[key]) for key, value in weights_of(model, "law").items())
    assert 0.0 < model.last_measurements["removed_ratio"] < 1.0
    assert 0.0 < model.constraint_facts()["closed_ratio"] < 1.0


def test_without_the_switch_they_do_not_stay_closed(make_model, rows, train, finish):
    model = make_model(constraint_strength=0.8)
    finish(model, "law", rows(0))
    model.create_adapter("medicine")
    model.set_active_adapters(["law", "medicine"])
    train(model, rows(1))
    assert largest_inside(model, "medicine", model.gradient_memory("law")) > 0.3
    assert model.constraint_facts() == {}


def test_an_optimizer_that_is_older_than_the_switch_obeys(make_model, rows, finish):
    model = make_model(constraint_strength=0.8)
    finish(model, "law", rows(0))
    model.create_adapter("medicine")
    model.set_active_adapters(["law", "medicine"])
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    model.enable_constrained_training(True)
    model.train()
    batch = {key: torch.tensor([row[key] for row in rows(1)]) for key in rows(1)[0]}
    for _ in range(3):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert largest_inside(model, "medicine", model.gradient_memory("law")) < 1e-5


def test_the_base_is_the_first_domain(make_model, rows, train):
    model = make_model(constraint_strength=0.8, protect_base=True)
    model.create_adapter("law")
    model.set_active_adapter("law")
    model.enable_constrained_training(True)
    train(model, rows(0))
    assert largest_inside(model, "law", model.base_memory) < 1e-5
    assert model.predicted_increase_nats("law").keys() == {"base"}


def test_the_prediction_is_the_sketch_s_where_there_is_one_and_k_fac_s_else(make_model, rows, finish):
    model = make_model(constraint_strength=0.8)
    finish(model, "law", rows(0))
    finish(model, "medicine", rows(1))
    memory = model.gradient_memory("law")
    deltas = {pair.module: delta_weight(pair) for pair in adapter_pairs(model, "medicine")}
    by_sketch = memory.sketch.predicted_increase_nats(deltas, first_order=True)
    by_kfac = memory.predicted_increase_nats(deltas)
    assert by_sketch != pytest.approx(by_kfac, rel=0.01)
    assert model.predicted_increase_nats("medicine")["law"] == by_sketch
    model._states["law"].memory = merge_memories([memory])
    assert model.predicted_increase_nats("medicine")["law"] == pytest.approx(by_kfac, rel=0.05)


@pytest.mark.parametrize("constraint_type", ["fisher", "orthogonal", "diagonal", "gem", "agem"])
def test_every_type_binds_a_trainer_and_leaves_finished_adapters_alone(
    make_model, rows, train, finish, weights_of, constraint_type
):
    model = make_model(constraint_strength=0.9, constraint_type=constraint_type)
    finish(model, "law", rows(0))
    model.create_adapter("medicine")
    model.set_active_adapters(["law", "medicine"])
    model.enable_constrained_training(True)
    law = weights_of(model, "law")
    train(model, rows(1), "trainer", max_steps=3)
    assert "removed_ratio" in model.last_measurements
    assert all(torch.equal(value, law[key]) for key, value in weights_of(model, "law").items())


def test_a_frozen_adapter_survives_a_sequence_bit_for_bit(make_model, rows, train, finish, weights_of):
    model = make_model(constraint_strength=0.8)
    finish(model, "law", rows(0))
    law = weights_of(model, "law")
    for number, name in enumerate(["medicine", "finance"], start=1):
        model.create_adapter(name)
        model.set_active_adapters(model.adapter_names)
        model.enable_constrained_training(True)
        train(model, rows(number), weight_decay=0.1)
        model.freeze_adapter(name)
        model.update_gradient_memory(name)
    with model.base_only():
        pass
    assert not [name for name, p in model.named_parameters() if p.requires_grad]
    assert all(torch.equal(value, law[key]) for key, value in weights_of(model, "law").items())


@pytest.mark.parametrize("by", ["trainer", "config"])
def test_gradient_checkpointing_changes_nothing(make_model, rows, train, weights_of, by):
    found = []
    for checkpointing in (False, True):
        model = make_model(gradient_checkpointing=checkpointing and by == "config")
        model.create_adapter("law")
        model.set_active_adapter("law")
        start = weights_of(model, "law")
        recomputed = []
        # Before, not after: recomputing stops within the last layer that is needed.
        handle = (
            model.get_base_model()
            .model.layers[0]
            .mlp.register_forward_pre_hook(lambda *_args, seen=recomputed: seen.append(True))
        )
        train(
            model, rows(0), "trainer", max_steps=2,
            activation_checkpointing=checkpointing and by == "trainer",
        )  # fmt: skip
        handle.remove()
        assert len(recomputed) == (4 if checkpointing else 2)
        assert all(not torch.equal(value, start[key]) for key, value in weights_of(model, "law").items())
        model.freeze_adapter("law")
        found.append((weights_of(model, "law"), model.update_gradient_memory("law").to_bytes()))
    (plain, plain_memory), (checkpointed, memory) = found
    assert all(torch.equal(checkpointed[key], value) for key, value in plain.items())
    assert memory == plain_memory


def test_a_memory_does_not_depend_on_the_batch_size_and_leaves_no_trace(make_model, rows, train, weights_of):
    model = make_model()
    model.create_adapter("law")
    model.set_active_adapter("law")
    train(model, rows(0))
    before, state = weights_of(model, "law"), torch.get_rng_state()
    one = model.update_gradient_memory("law", batch_size=1)
    many = model.update_gradient_memory("law", batch_size=16)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[key]) for key, value in weights_of(model, "law").items())
    assert all(p.grad is None for p in model.parameters())
    assert one.num_examples == many.num_examples == 24
    for key, kinds in one.inputs.items():
        torch.testing.assert_close(
            kinds["energy"].dense(), many.inputs[key]["energy"].dense(), rtol=0.02, atol=1e-3
        )


def test_a_copy_is_bound_by_itself(make_model, rows, train, finish):
    model = make_model()
    finish(model, "law", rows(0))
    memory = model.gradient_memory("law")
    model.create_adapter("medicine")
    model.set_active_adapter("medicine")
    model.enable_constrained_training(True)
    other = copy.deepcopy(model)
    for each in (model, other):
        train(each, rows(1))
        assert largest_inside(each, "medicine", memory) < 1e-5
    other.enable_constrained_training(False)
    train(model, rows(1))
    assert largest_inside(model, "medicine", memory) < 1e-5


def test_a_frozen_adapter_stays_where_an_optimizer_still_holds_it(make_model, rows, weights_of):
    """Gradients that are zeroed but not dropped let momentum and weight decay go on."""
    model = make_model()
    model.create_adapter("law")
    model.set_active_adapter("law")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)

    def step(domain: int) -> None:
        model.train()
        optimizer.zero_grad(set_to_none=False)
        ids = torch.tensor([row["input_ids"] for row in rows(domain)])
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()

    step(0)
    model.freeze_adapter("law")
    frozen = weights_of(model, "law")
    model.create_adapter("medicine")
    model.set_active_adapter("medicine")
    optimizer.add_param_group({"params": [p for p in model.parameters() if p.requires_grad]})
    start = weights_of(model, "medicine")
    step(1)
    assert all(torch.equal(value, frozen[key]) for key, value in weights_of(model, "law").items())
    assert not any(torch.equal(value, start[key]) for key, value in weights_of(model, "medicine").items())


def test_a_broken_gradient_of_the_first_domain_stops_too(make_model, rows, train, weights_of):
    """No memory binds its steps yet."""
    model = make_model()
    model.create_adapter("law")
    model.set_active_adapter("law")
    model.enable_constrained_training(True)
    start = weights_of(model, "law")
    next(iter(adapter_pairs(model, "law"))).b.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(TrainingError, match=r"domain 'law' is not finite at step 1\n.*lora_B.law.weight"):
        train(model, rows(0))
    assert all(torch.equal(value, start[key]) for key, value in weights_of(model, "law").items())
