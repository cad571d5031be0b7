"""The trial adapter: it learns, leaves no trace, and its ΔW is what it does."""

from __future__ import annotations

import pytest
import torch

from constrained_adapters.data.examples import Example
from constrained_adapters.data.tokens import encode_example
from constrained_adapters.diagnosis.trial import TrialAdapter
from constrained_adapters.errors import TrainingError
from constrained_adapters.evaluation.row_losses import mean_row_nats
from constrained_adapters.models.targets import resolve_targets


@pytest.fixture
def modules(tiny_llama):
    return {name: tiny_llama.get_submodule(name) for name in resolve_targets(tiny_llama)}


@pytest.fixture
def rows(tiny_tokenizer):
    return [
        encode_example(Example(prompt=f"what is {i}?", answer="four"), tiny_tokenizer, 64) for i in range(4)
    ]


def test_a_trial_learns_and_leaves_the_model_bit_identical(tiny_llama, modules, rows):
    before = {name: value.clone() for name, value in tiny_llama.state_dict().items()}
    ids = torch.tensor([rows[0].input_ids])
    logits = tiny_llama(ids).logits
    trial = TrialAdapter(modules)
    start = trial.loss_nats(tiny_llama, rows)
    assert start == pytest.approx(mean_row_nats(tiny_llama, rows), abs=1e-6)  # B is 0
    losses = trial.learn(tiny_llama, rows, num_steps=12, batch_size=4, learning_rate=2e-2)
    assert losses[0] == pytest.approx(start, abs=1e-5)
    assert trial.loss_nats(tiny_llama, rows) < 0.7 * start
    assert torch.equal(tiny_llama(ids).logits, logits)
    assert all(torch.equal(value, before[name]) for name, value in tiny_llama.state_dict().items())
    assert all(parameter.grad is None for parameter in tiny_llama.parameters())


def test_a_state_can_be_gone_back_to_and_a_seed_repeats(tiny_llama, modules, rows):
    def learn(trial: TrialAdapter) -> list[float]:
        return trial.learn(tiny_llama, rows, num_steps=3, batch_size=2, learning_rate=1e-2)

    trial = TrialAdapter(modules, seed=3)
    state = trial.state()
    first = learn(trial)
    trial.restore(state)
    assert learn(trial) == first
    assert learn(TrialAdapter(modules, seed=3)) == first


def test_delta_weights_put_into_the_model_do_what_the_hooks_do(tiny_llama, modules, rows):
    trial = TrialAdapter(modules)
    trial.learn(tiny_llama, rows, num_steps=3, batch_size=2, learning_rate=1e-2)
    with_hooks = trial.loss_nats(tiny_llama, rows)
    with torch.no_grad():
        for name, delta in trial.delta_weights().items():
            modules[name].weight += delta.dense()
    assert mean_row_nats(tiny_llama, rows) == pytest.approx(with_hooks, abs=1e-5)


def test_a_loss_that_is_not_finite_is_an_error(tiny_llama, modules, rows):
    with torch.no_grad():
        tiny_llama.model.norm.weight.fill_(float("nan"))
    with pytest.raises(TrainingError, match="loss of a trial is not finite at step 1"):
        TrialAdapter(modules).learn(tiny_llama, rows, num_steps=1, batch_size=2, learning_rate=1e-3)
    with pytest.raises(TrainingError, match="loss of the model is not finite"):
        mean_row_nats(tiny_llama, rows)
