"""The constraint reaches every optimizer of its parameters, no other, and leaves no trace."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim import optimizer as torch_optimizer

from constrained_adapters.adapters.lora import adapter_pairs, lora_config, start_small
from constrained_adapters.constraints import SubspaceConstraint
from constrained_adapters.constraints.attach import attach, is_bound, strengthen
from constrained_adapters.constraints.ewc import EWCConstraint
from constrained_adapters.constraints.finite import LastGood, first_not_finite
from constrained_adapters.constraints.kept import KeptGradientConstraint
from constrained_adapters.errors import TrainingError


def num_global_hooks() -> tuple[int, int]:
    return (
        len(torch_optimizer._global_optimizer_pre_hooks),
        len(torch_optimizer._global_optimizer_post_hooks),
    )


@pytest.fixture(autouse=True)
def no_hook_is_left():
    before = num_global_hooks()
    yield
    assert num_global_hooks() == before


@pytest.fixture
def force(request):
    """Attach a constraint that comes off after the test."""

    def put(constraint, **arguments):
        attachment = attach(constraint, **{"domain": "law", **arguments})
        request.addfinalizer(attachment.remove)
        return attachment

    return put


def bases_of(pairs) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    return {
        pair.module: torch.linalg.qr(torch.randn(pair.a.shape[1], 3, generator=generator)).Q for pair in pairs
    }


def subspace(pairs) -> SubspaceConstraint:
    constraint = SubspaceConstraint(
        {pair.module: pair.a for pair in pairs}, bases_of(pairs), free=[pair.b for pair in pairs]
    )
    constraint.after_step()
    return constraint


def leak(pairs) -> float:
    return max(float((pair.a.detach() @ bases_of(pairs)[pair.module]).abs().max()) for pair in pairs)


def parameters(pairs) -> list[nn.Parameter]:
    return [p for pair in pairs for p in (pair.a, pair.b)]


@pytest.mark.parametrize("order", ["optimizer first", "constraint first"])
def test_an_optimizer_is_bound_whether_made_before_or_after(make_pairs, set_gradients, force, order):
    pairs = make_pairs()
    if order == "optimizer first":
        optimizer = AdamW(parameters(pairs), lr=0.1)
        force(subspace(pairs))
    else:
        force(subspace(pairs))
        optimizer = AdamW(parameters(pairs), lr=0.1)
    set_gradients(pairs)
    optimizer.step()
    assert leak(pairs) < 1e-5


def test_parameters_added_to_an_optimizer_later_are_bound_too(make_pairs, set_gradients, force):
    pairs, other = make_pairs(), nn.Parameter(torch.zeros(2))
    force(subspace(pairs))
    optimizer = SGD([other], lr=0.1)
    other.grad = torch.ones(2)
    optimizer.step()
    optimizer.add_param_group({"params": parameters(pairs)})
    set_gradients(pairs)
    optimizer.step()
    assert leak(pairs) < 1e-5


def test_optimizers_of_other_parameters_are_untouched(make_pairs, set_gradients, force):
    calls = []
    force(subspace(make_pairs()), on_step=calls.append)
    stepped = []
    for bound in (False, True):
        others = make_pairs(seed=9)
        attachment = force(subspace(make_pairs())) if bound else None
        optimizer = AdamW(parameters(others), lr=0.1)
        set_gradients(others)
        optimizer.step()
        stepped.append([p.detach() for p in parameters(others)])
        assert attachment is None or not calls
    assert all(torch.equal(a, b) for a, b in zip(*stepped, strict=True))
    assert leak(others) > 0.1
    broken = nn.Parameter(torch.ones(2))
    broken.grad = torch.full((2,), float("nan"))
    SGD([broken], lr=0.1).step()  # somebody else's problem


def test_after_remove_steps_are_free_and_removing_twice_is_harmless(make_pairs, set_gradients, force):
    pairs = make_pairs()
    attachment = force(subspace(pairs))
    attachment.remove()
    attachment.remove()
    optimizer = SGD(parameters(pairs), lr=0.1)
    set_gradients(pairs)
    optimizer.step()
    assert leak(pairs) > 0.01


def test_it_comes_off_when_its_owner_is_freed(make_pairs):
    class Owner:
        pass

    before, owner, pairs = num_global_hooks(), Owner(), make_pairs()
    constraint = subspace(pairs)
    attach(constraint, domain="law", owner=owner)
    assert num_global_hooks() != before
    alive = weakref.ref(constraint)
    del owner, constraint
    gc.collect()
    assert num_global_hooks() == before and alive() is None


def test_measurements_arrive_once_per_optimizer_step(make_pairs, set_gradients, force):
    pairs, seen = make_pairs(), []
    force(subspace(pairs), on_step=lambda measured: seen.append(float(measured["removed_ratio"])))
    optimizer = AdamW(parameters(pairs), lr=0.1)
    for step in range(3):
        set_gradients(pairs, step)
        optimizer.step()
    assert len(seen) == 3 and all(0.0 < ratio < 1.0 for ratio in seen)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", [0, 1], ids=["bound A", "free B"])
def test_a_gradient_that_is_not_finite_stops_before_anything_changes(
    make_pairs, set_gradients, force, bad, where
):
    pairs = make_pairs()
    force(subspace(pairs))
    optimizer = AdamW(parameters(pairs), lr=0.1)
    set_gradients(pairs)
    optimizer.step()
    before = [p.detach().clone() for p in parameters(pairs)]
    parameters(pairs)[where].grad[0, 0] = bad
    found = rf"1 of \d+ values of .*parameter {where + 1}"
    with pytest.raises(
        TrainingError, match=rf"the gradient of domain 'law' is not finite at step 2\n.*{found}"
    ):
        optimizer.step()
    assert all(torch.equal(p, was) for p, was in zip(parameters(pairs), before, strict=True))


def test_a_step_is_named_by_the_number_that_a_checkpoint_holds(make_pairs, set_gradients, force):
    """A run that goes on, or whose constraint was made anew on its way, does not count from one."""
    pairs = make_pairs()
    optimizer = AdamW(parameters(pairs), lr=0.1)
    for step in range(4):
        set_gradients(pairs, step)
        optimizer.step()
    force(subspace(pairs))
    parameters(pairs)[0].grad[0, 0] = float("nan")
    with pytest.raises(TrainingError, match="the gradient of domain 'law' is not finite at step 5"):
        optimizer.step()
    set_gradients(pairs)
    optimizer.state[parameters(pairs)[0]]["exp_avg"][0, 0] = float("inf")
    with pytest.raises(TrainingError, match="step 5 of domain 'law' made a weight that is not finite"):
        optimizer.step()


@pytest.mark.parametrize("where", [0, 1], ids=["bound A", "free B"])
def test_a_step_that_breaks_a_weight_is_taken_back(make_pairs, set_gradients, force, where):
    pairs, seen = make_pairs(), []
    force(subspace(pairs), on_step=seen.append)
    optimizer = AdamW(parameters(pairs), lr=0.1)
    for step in range(2):
        set_gradients(pairs, step)
        optimizer.step()
    before = [p.detach().clone() for p in parameters(pairs)]
    optimizer.state[parameters(pairs)[where]]["exp_avg"][0, 0] = float("inf")
    with pytest.raises(
        TrainingError, match=r"step 3 of domain 'law' made a weight that is not finite"
    ) as error:
        optimizer.step()
    assert f"the optimizer's parameter {where + 1}, shape {tuple(before[where].shape)}" in str(error.value)
    assert "the weights before this step are back" in str(error.value)
    assert all(torch.equal(p, was) for p, was in zip(parameters(pairs), before, strict=True))
    assert len(seen) == 2


def test_weights_too_large_to_copy_only_stop_the_run(make_pairs, set_gradients, force):
    pairs = make_pairs()
    attachment = force(subspace(pairs))
    attachment._last_good = LastGood(limit_bytes=8)
    optimizer = SGD(parameters(pairs), lr=float("inf"))
    set_gradients(pairs)
    with pytest.raises(TrainingError, match=r"step 1 .*not finite(?s:.*)too large to copy"):
        optimizer.step()


def test_large_values_are_finite():
    """A norm overflows where no value does."""
    assert first_not_finite([torch.full((4,), 1e38), torch.full((4,), -3e38)]) is None
    assert first_not_finite([]) is None


def test_what_is_bound_is_known_until_it_comes_off(make_pairs, force):
    pairs, others = make_pairs(), make_pairs(seed=9)
    attachment = force(subspace(pairs))
    assert is_bound(parameters(pairs)) and not is_bound(parameters(others))
    attachment.remove()
    assert not is_bound(parameters(pairs))


@pytest.mark.parametrize("fused", [False, True])
def test_the_overflow_of_scaled_float16_gradients_is_left_to_the_scaler(
    make_pairs, set_gradients, force, fused
):
    """Its first scales are meant to overflow: the step is skipped and the next scale is smaller."""
    pairs, scaler = make_pairs(), torch.amp.GradScaler("cpu", init_scale=1024.0)
    force(subspace(pairs))
    optimizer = AdamW(parameters(pairs), lr=0.1, fused=fused)
    before = [p.detach().clone() for p in parameters(pairs)]
    for overflows in (True, False):
        scaler.scale(torch.zeros(()))  # makes the scale
        set_gradients(pairs)
        for p in parameters(pairs):
            p.grad.mul_(float("inf") if overflows else scaler.get_scale())
        scaler.step(optimizer)
        scaler.update()
        still = [torch.allclose(p, was, atol=1e-5) for p, was in zip(parameters(pairs), before, strict=True)]
        assert all(still) if overflows else not any(still)
    assert scaler.get_scale() == 512.0
    assert leak(pairs) < 1e-5


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("clipped", [False, True])
def test_a_penalty_weighs_the_same_beside_scaled_gradients(force, fused, clipped):
    """A fused optimizer is given scaled gradients unless the loop has unscaled them to clip."""
    p = nn.Parameter(torch.tensor([3.0, 1.0]))
    force(EWCConstraint({"p": p}, {"p": torch.ones(2)}, {"p": torch.zeros(2)}, 0.0, 1.0))
    optimizer, scaler = SGD([p], lr=0.1, fused=fused), torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.zeros(()))
    p.grad = scaler.get_scale() * torch.tensor([2.0, -1.0])
    if clipped:
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    assert p.tolist() == pytest.approx([3.0 - 0.1 * (2.0 + 3.0), 1.0 - 0.1 * (-1.0 + 1.0)])
    assert not hasattr(optimizer, "grad_scale")


@pytest.mark.parametrize("way", ["positional", "keyword"])
@pytest.mark.parametrize("optimizer_class", [SGD, AdamW])
def test_a_gradient_that_a_closure_makes_is_bound(force, optimizer_class, way):
    """Before the step there is none, or that of the step before."""
    found = []
    for by_closure in (False, True):
        p = nn.Parameter(torch.tensor([3.0, 1.0]))
        attachment = force(EWCConstraint({"p": p}, {"p": torch.ones(2)}, {"p": torch.zeros(2)}, 0.0, 1.0))
        optimizer = optimizer_class([p], lr=0.1)

        def backward(p=p, optimizer=optimizer) -> float:
            optimizer.zero_grad()
            loss = (p * torch.tensor([2.0, -1.0])).sum()
            loss.backward()
            return float(loss.detach())

        for _ in range(3):
            if not by_closure:
                backward()
                optimizer.step()
            elif way == "positional":
                assert optimizer.step(backward) is not None
            else:
                assert optimizer.step(closure=backward) is not None
        attachment.remove()
        found.append(p.detach())
    assert torch.equal(*found)


def test_lbfgs_is_bound_and_what_breaks_within_its_step_is_taken_back(make_pairs, force):
    pairs = make_pairs()
    force(subspace(pairs))
    optimizer, count = torch.optim.LBFGS(parameters(pairs), lr=0.1, max_iter=4), [0]

    def closure() -> torch.Tensor:
        count[0] += 1
        optimizer.zero_grad()
        loss = sum(((p - 1.0) ** 2).sum() for p in parameters(pairs))
        (loss * (float("nan") if count[0] == 7 else 1.0)).backward()
        return loss

    optimizer.step(closure)
    assert count[0] > 1 and leak(pairs) < 1e-5
    before = [p.detach().clone() for p in parameters(pairs)]
    count[0] = 5
    with pytest.raises(TrainingError, match="the gradient of domain 'law' is not finite at step 2"):
        optimizer.step(closure)
    assert count[0] == 7
    assert all(torch.equal(p, was) for p, was in zip(parameters(pairs), before, strict=True))


def test_of_two_optimizers_each_binds_its_own_parameters(force):
    """A penalty must not be added once more to what another optimizer is still to step."""
    ps = [nn.Parameter(torch.tensor([3.0, 1.0])), nn.Parameter(torch.tensor([2.0]))]
    weights = dict(zip("ab", ps, strict=True))
    ones = {name: torch.ones_like(p) for name, p in weights.items()}
    zeros = {name: torch.zeros_like(p) for name, p in weights.items()}
    force(EWCConstraint(weights, ones, zeros, 0.0, 1.0))
    for p in ps:
        p.grad = torch.ones_like(p)
    for p in ps:
        SGD([p], lr=0.1).step()
    assert ps[0].tolist() == pytest.approx([3.0 - 0.1 * 4.0, 1.0 - 0.1 * 2.0])
    assert ps[1].tolist() == pytest.approx([2.0 - 0.1 * 3.0])
    assert ps[1].grad.tolist() == [3.0]


def test_a_step_without_any_gradient_does_nothing(make_pairs, force):
    pairs = make_pairs()
    force(subspace(pairs))
    before = [p.detach().clone() for p in parameters(pairs)]
    AdamW(parameters(pairs), lr=0.1).step()
    for p, was in zip(parameters(pairs), before, strict=True):
        torch.testing.assert_close(p.detach(), was, rtol=1e-5, atol=1e-6)


@pytest.fixture
def adapted(tiny_llama):
    from peft import get_peft_model

    targets = ["q_proj", "v_proj", "o_proj"]
    torch.manual_seed(3)
    model = get_peft_model(
        tiny_llama, lora_config(rank=4, residual_scaling=2.0, targets=targets, layers_to_transform=None)
    )
    start_small(model, "default", 0.01)
    return model


@pytest.fixture
def token_rows():
    ids = torch.randint(3, 259, (8, 10), generator=torch.Generator().manual_seed(8)).tolist()
    return [{"input_ids": row, "labels": row} for row in ids]


def run_trainer(model, rows, folder, **arguments) -> None:
    from transformers import Trainer, TrainingArguments, default_data_collator

    settings = {"max_steps": 4, "per_device_train_batch_size": 2, "learning_rate": 0.01, "use_cpu": True}
    settings |= {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "weight_decay": 0.1}
    settings |= {"dataloader_pin_memory": False, "logging_strategy": "no", **arguments}
    args = TrainingArguments(output_dir=str(folder), **settings)
    Trainer(model=model, args=args, train_dataset=rows, data_collator=default_data_collator).train()


@pytest.mark.parametrize("optim", ["adamw_torch", "adafactor"])
def test_the_plain_trainer_is_bound_once_per_accumulated_step(adapted, token_rows, tmp_path, force, optim):
    pairs, seen = list(adapter_pairs(adapted, "default")), []
    force(subspace(pairs), on_step=seen.append)
    start = [p.detach().clone() for p in parameters(pairs)]
    run_trainer(adapted, token_rows, tmp_path, gradient_accumulation_steps=2, optim=optim)
    assert len(seen) == 4
    assert leak(pairs) < 1e-5
    assert all(not torch.equal(p, was) for p, was in zip(parameters(pairs), start, strict=True))


def test_accumulation_of_a_bare_loop_equals_one_large_batch(adapted, token_rows, force):
    ids = torch.tensor([row["input_ids"] for row in token_rows])
    pairs = list(adapter_pairs(adapted, "default"))
    force(subspace(pairs))
    start = [p.detach().clone() for p in parameters(pairs)]
    ends = []
    for num_parts in (1, 4):
        for p, was in zip(parameters(pairs), start, strict=True):
            p.data.copy_(was)
        optimizer = SGD(parameters(pairs), lr=0.5, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            for part in ids.chunk(num_parts):
                (adapted(input_ids=part, labels=part).loss / num_parts).backward()
            optimizer.step()
        assert leak(pairs) < 1e-5
        ends.append([p.detach().clone() for p in parameters(pairs)])
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_a_broken_example_stops_the_trainer_before_the_weights_break(adapted, token_rows, tmp_path, force):
    pairs = list(adapter_pairs(adapted, "default"))
    force(subspace(pairs), owner=adapted)
    pairs[0].a.register_hook(lambda gradient: gradient * float("nan"))
    name = r"base_model\.model\.model\.layers\.0\.self_attn\.q_proj\.lora_A\.default\.weight"
    with pytest.raises(TrainingError, match=rf"not finite at step 1\n.*values of {name}"):
        run_trainer(adapted, token_rows, tmp_path, max_grad_norm=0.0)
    assert all(bool(torch.isfinite(p).all()) for p in parameters(pairs))


@pytest.mark.parametrize("first", ["penalty", "projection"])
def test_what_projects_acts_after_what_adds_whichever_was_attached_first(force, first):
    """Else the penalty would put back what the projection took away."""
    p = nn.Parameter(torch.zeros(2))
    weights, ones = {"p": p}, {"p": torch.ones(2)}
    penalty = EWCConstraint(weights, ones, {"p": torch.tensor([0.0, 5.0])}, 0.0, 1.0)
    projection = KeptGradientConstraint([p], [lambda: [torch.tensor([0.0, 1.0])]])
    order = [penalty, projection] if first == "penalty" else [projection, penalty]
    attachments = [force(constraint) for constraint in order]
    other = force(KeptGradientConstraint([p], []))  # does nothing, and does not change the order
    p.grad = torch.tensor([2.0, 1.0])
    SGD([p], lr=0.1).step()
    assert p.grad.tolist() == [2.0, 0.0]
    for attachment in [*attachments, other]:
        attachment.remove()


def test_strengthen_doubles_what_a_penalty_adds_and_says_so_and_leaves_others_alone():
    weight = torch.nn.Parameter(torch.tensor([3.0, 1.0]))
    weight.grad = torch.zeros(2)
    anchor = {"w": torch.tensor([1.0, 1.0])}
    constraint = EWCConstraint({"w": weight}, {"w": torch.ones(2)}, anchor, 0.0, weight=0.5)
    held = attach(constraint, domain="law")
    try:
        assert strengthen([torch.nn.Parameter(torch.zeros(1))], 2.0) == {}
        constraint.before_step()
        added, penalty = weight.grad.clone(), float(constraint.measurements()["penalty"])
        weight.grad.zero_()
        assert strengthen([weight], 2.0) == {"penalty_factor": 2.0}
        constraint.before_step()
        assert torch.equal(weight.grad, 2.0 * added)
        assert float(constraint.measurements()["penalty"]) == pytest.approx(2.0 * penalty)
    finally:
        held.remove()
    assert strengthen([weight], 2.0) == {}
