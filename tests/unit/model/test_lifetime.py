"""A model under constraint does not outlive its last reference."""

from __future__ import annotations

import gc
import weakref

from torch.optim import optimizer as torch_optimizer


def test_a_dropped_model_takes_its_constraint_and_hooks_along(make_model):
    hooks = len(torch_optimizer._global_optimizer_pre_hooks)
    model = make_model()
    model.enable_constrained_training(True)
    for name in ("law", "finance"):  # each change of the active set makes the constraint anew
        model.create_adapter(name)
        model.set_active_adapter(name)
        assert len(torch_optimizer._global_optimizer_pre_hooks) == hooks + 1
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None
    assert len(torch_optimizer._global_optimizer_pre_hooks) == hooks
