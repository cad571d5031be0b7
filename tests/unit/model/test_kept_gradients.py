"""Gradients of kept examples through a model with frozen adapters, beside its own sample and memories."""

from __future__ import annotations

import torch

from constrained_adapters.constraints.example_gradients import loss_gradient
from constrained_adapters.constraints.kept import KeptExamples, KeptGradientConstraint


def test_they_are_those_of_the_loss_and_the_sample_of_the_new_domain_does_not_see_them(make_model, rows):
    model = make_model(constraint_strength=0.0)
    model.create_adapter("law", domain_id=1)
    model.freeze_adapter("law")
    model.create_adapter("medicine", domain_id=2)
    model.set_active_adapters(["law", "medicine"])
    parameters = [p for p in model.parameters() if p.requires_grad]
    assert len(parameters) == 2 * len(model._layers())
    kept = [(torch.tensor(row["input_ids"]), torch.tensor(row["labels"])) for row in rows(1, 4)]
    found = loss_gradient(model, parameters, kept, batch_size=2)
    assert model._states["medicine"].reservoir.num_seen == 0
    model.train()
    batch = torch.stack([ids for ids, _ in kept])
    wanted = torch.autograd.grad(model(input_ids=batch, labels=batch).loss, parameters)
    assert model._states["medicine"].reservoir.num_seen == 4
    for own, stock in zip(found, wanted, strict=True):
        torch.testing.assert_close(own, stock, rtol=1e-4, atol=1e-7)
    for p, g in zip(parameters, wanted, strict=True):
        p.grad = -g.clone()
    constraint = KeptGradientConstraint(parameters, [KeptExamples(model, parameters, kept)])
    constraint.before_step()
    left = sum(float((p.grad * g).sum()) for p, g in zip(parameters, wanted, strict=True))
    assert abs(left) < 1e-4 * sum(float(g.square().sum()) for g in wanted)
    assert float(constraint.measurements()["removed_ratio"]) > 0.99
