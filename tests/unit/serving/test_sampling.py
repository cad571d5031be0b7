"""The draw against its definition: frequencies, the nucleus, seeds."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from constrained_adapters.errors import ModelError
from constrained_adapters.serving.sampling import Sampling, choose, generator_for

LOGITS = torch.tensor([2.0, 1.0, 0.5, -1.0, -3.0])


def test_greedy_takes_the_largest_and_draws_nothing():
    generator = generator_for(Sampling(seed=1), 0)
    before = generator.get_state()
    assert choose(LOGITS, Sampling(temperature=0), generator).token == 0
    assert torch.equal(before, generator.get_state())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_come_as_often_as_their_probability(temperature):
    sampling = Sampling(temperature=temperature, seed=0)
    generator = generator_for(sampling, 0)
    count = 4000
    drawn = Counter(choose(LOGITS, sampling, generator).token for _ in range(count))
    expected = torch.softmax(LOGITS / temperature, dim=0)
    for token, probability in enumerate(expected.tolist()):
        spread = math.sqrt(probability * (1 - probability) / count)
        assert abs(drawn[token] / count - probability) < 4 * spread + 1e-9


@settings(deadline=None, max_examples=60)
@given(
    logits=st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=30),
    top_p=st.floats(0.01, 1.0),
    temperature=st.floats(1e-4, 2.0),
    seed=st.integers(0, 2**40),
)
def test_a_draw_is_of_the_fewest_tokens_that_hold_top_p(logits, top_p, temperature, seed):
    sampling = Sampling(temperature=temperature, top_p=top_p, seed=seed)
    token = choose(torch.tensor(logits), sampling, generator_for(sampling, 0)).token
    scaled = torch.tensor(logits).double() / temperature
    probabilities = torch.softmax(scaled, dim=0)
    more_probable = float(probabilities[probabilities > probabilities[token]].sum())
    assert more_probable < top_p + 1e-9  # otherwise the nucleus was full before this token


def test_log_probabilities_are_those_of_the_model_before_temperature():
    sampling = Sampling(temperature=0.3, seed=3, top_logprobs=2)
    chosen = choose(LOGITS, sampling, generator_for(sampling, 0))
    expected = torch.log_softmax(LOGITS, dim=0)
    assert chosen.logprob == pytest.approx(float(expected[chosen.token]))
    assert [token for token, _ in chosen.alternatives] == [0, 1]
    assert chosen.alternatives[1][1] == pytest.approx(float(expected[1]))


def test_the_answers_of_one_request_draw_otherwise():
    draws = [
        [choose(LOGITS, Sampling(seed=1), generator).token for _ in range(20)]
        for generator in (generator_for(Sampling(seed=1), index) for index in (0, 0, 1))
    ]
    assert draws[0] == draws[1] != draws[2]
    assert generator_for(Sampling(seed=-(2**63)), 0)
    assert generator_for(Sampling(), 0).initial_seed() != generator_for(Sampling(), 0).initial_seed()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_output_that_is_not_finite_is_an_error(value):
    with pytest.raises(ModelError, match="not finite"):
        choose(torch.tensor([0.0, value]), Sampling(), generator_for(Sampling(), 0))
