"""Gradients of kept examples against automatic differentiation, and GEM and A-GEM on a whole tiny model."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor
from torch.optim import SGD

from constrained_adapters.constraints.attach import attach
from constrained_adapters.constraints.example_gradients import logit_gradients, loss_gradient
from constrained_adapters.constraints.kept import KeptExamples, KeptGradientConstraint
from constrained_adapters.errors import TrainingError
from constrained_adapters.memory.reservoir import pad_rows

Rows = list[tuple[Tensor, Tensor]]


def rows(seed: int, count: int = 5) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for index in range(count):
        ids = torch.randint(3, 264, (6 + 2 * index,), generator=generator)
        labels = ids.clone()
        labels[: 3 + index % 2] = -100
        made.append((ids, labels))
    return made


def flat(gradient) -> Tensor:
    return torch.cat([g.flatten() for g in gradient])


def stock_gradient(model, parameters, examples: Rows) -> Tensor:
    """Of transformers' own loss: the mean over the label tokens of the batch."""
    return flat(torch.autograd.grad(model(**pad_rows(examples, "cpu")).loss, parameters))


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_the_loss_gradient_is_that_of_the_model_whatever_the_batch(tiny_llama, batch_size):
    model = tiny_llama.double()
    parameters = list(model.parameters())
    silent = [(ids, torch.full_like(ids, -100)) for ids, _ in rows(9, 1)]
    found = loss_gradient(model, parameters, [*silent, *rows(0)], batch_size=batch_size)
    assert all(
        g.dtype == torch.float32 and g.shape == p.shape for g, p in zip(found, parameters, strict=True)
    )
    wanted = stock_gradient(model, parameters, rows(0))
    torch.testing.assert_close(flat(found).double(), wanted, rtol=1e-5, atol=1e-7 * float(wanted.norm()))


def test_the_logit_gradients_are_those_of_the_right_tokens_by_brute_force(tiny_llama):
    model = tiny_llama.double()
    weights = {name: p for name, p in model.named_parameters() if "q_proj" in name or "norm" in name}
    silent = [(ids, torch.full_like(ids, -100)) for ids, _ in rows(9, 1)]
    found = list(logit_gradients(model, weights, [*silent, *rows(0)]))
    assert len(found) == 5
    for gradient, (ids, labels) in zip(found, rows(0), strict=True):
        logits = model(input_ids=ids[None]).logits[0]
        places = [t for t in range(1, len(ids)) if labels[t] != -100]
        mean = sum(logits[t - 1, labels[t]] for t in places) / len(places)
        for name, wanted in zip(weights, torch.autograd.grad(mean, list(weights.values())), strict=True):
            torch.testing.assert_close(gradient[name].double(), wanted, rtol=1e-5, atol=1e-6)


def test_modes_gradients_and_random_state_are_left_and_dropout_is_off(tiny_llama):
    model, parameters = tiny_llama, list(tiny_llama.parameters())
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    calm = flat(loss_gradient(model, parameters, rows(0)))
    model.train()
    model.model.layers[0].eval()
    parameters[0].grad = torch.ones_like(parameters[0])
    state = torch.random.get_rng_state()
    with torch.no_grad():  # as an optimizer's own step is
        found = flat(loss_gradient(model, parameters, rows(0)))
    assert torch.equal(found, calm)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.training and model.model.layers[1].training and not model.model.layers[0].training
    assert bool((parameters[0].grad == 1.0).all()) and all(p.grad is None for p in parameters[1:])


def test_what_has_no_loss_or_is_not_finite_is_refused(tiny_llama):
    parameters = list(tiny_llama.parameters())
    silent = [(ids, torch.full_like(ids, -100)) for ids, _ in rows(0)]
    with pytest.raises(TrainingError, match="kept examples of domain 'law' carries loss"):
        loss_gradient(tiny_llama, parameters, silent, domain="law")
    with pytest.raises(TrainingError, match="no token of the kept examples carries loss"):
        list(logit_gradients(tiny_llama, dict(tiny_llama.named_parameters()), silent))
    with torch.no_grad():
        tiny_llama.lm_head.weight[0, 0] = float("nan")
    with pytest.raises(TrainingError, match="gradient of kept examples of domain 'law' is not finite"):
        loss_gradient(tiny_llama, parameters, rows(0), domain="law")


def against_both(model) -> Tensor:
    """A gradient that would raise the losses of both finished domains."""
    parameters = list(model.parameters())
    old = [stock_gradient(model, parameters, rows(seed)) for seed in (1, 2)]
    noise = torch.randn(len(old[0]), generator=torch.Generator().manual_seed(5))
    return -(old[0] / old[0].norm() + old[1] / old[1].norm()) + noise / noise.norm()


def put(parameters, gradient: Tensor) -> None:
    start = 0
    for p in parameters:
        p.grad = gradient[start : start + p.numel()].view_as(p).clone()
        start += p.numel()


def test_after_gem_a_small_step_raises_no_old_loss(tiny_llama):
    model, parameters = tiny_llama.double(), list(tiny_llama.parameters())
    put(parameters, against_both(model).double())
    sources = [KeptExamples(model, parameters, rows(seed), batch_size=2) for seed in (1, 2)]
    constraint = KeptGradientConstraint(parameters, sources)

    def losses() -> list[float]:
        with torch.no_grad():
            return [float(model(**pad_rows(rows(seed), "cpu")).loss) for seed in (1, 2)]

    before = losses()
    attachment = attach(constraint, domain="law")
    SGD(parameters, lr=1e-4).step()
    attachment.remove()
    assert 0.5 < float(constraint.measurements()["removed_ratio"]) < 1.0
    for seed in (1, 2):
        old = stock_gradient(model, parameters, rows(seed))
        assert float(old @ flat([p.grad for p in parameters])) > -1e-6 * float(old.norm())
    assert all(after <= at + 1e-7 for after, at in zip(losses(), before, strict=True))
    assert constraint.describe() == {"num_old_gradients": 2.0}


def test_a_margin_lowers_the_old_losses(tiny_llama):
    model, parameters = tiny_llama.double(), list(tiny_llama.parameters())
    lower = []
    for margin in (0.0, 1.0):
        put(parameters, against_both(model).double())
        sources = [KeptExamples(model, parameters, rows(seed)) for seed in (1, 2)]
        KeptGradientConstraint(parameters, sources, margin=margin).before_step()
        old = stock_gradient(model, parameters, rows(1))
        lower.append(float(old @ flat([p.grad for p in parameters]) / old.norm()))
    assert abs(lower[0]) < 1e-4 < lower[1]


def test_a_gem_draws_its_batch_from_the_state_that_checkpoints_hold(tiny_llama):
    parameters = list(tiny_llama.parameters())
    source = KeptExamples(tiny_llama, parameters, rows(0, 12), rows_per_step=3)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first, second = flat(source()), flat(source())
    assert not torch.equal(first, second)
    torch.set_rng_state(state)
    assert torch.equal(flat(source()), first)
    torch.set_rng_state(state)
    drawn = torch.randperm(12)[:3].tolist()
    wanted = stock_gradient(tiny_llama, parameters, [rows(0, 12)[index] for index in drawn])
    torch.testing.assert_close(first, wanted, rtol=1e-4, atol=1e-6)
    whole = KeptExamples(tiny_llama, parameters, rows(0, 3), rows_per_step=3)
    assert torch.equal(flat(whole()), flat(whole()))


def test_of_one_domain_whole_gem_is_a_gem(tiny_llama):
    parameters, found = list(tiny_llama.parameters()), []
    for rows_per_step in (None, 5):
        put(parameters, against_both(tiny_llama))
        source = KeptExamples(tiny_llama, parameters, rows(1), rows_per_step=rows_per_step)
        KeptGradientConstraint(parameters, [source]).before_step()
        found.append(flat([p.grad for p in parameters]))
    assert torch.equal(*found)


def test_the_model_is_not_kept_alive(tiny_llama):
    import copy

    model = copy.deepcopy(tiny_llama)
    alive = weakref.ref(model)
    parameters = list(model.parameters())
    source = KeptExamples(model, parameters, rows(0))
    del model
    gc.collect()
    assert alive() is None and source is not None
