"""Distances, threshold and probabilities, on Gaussian domains whose truth is known."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from constrained_adapters.routing import discriminant as module
from constrained_adapters.routing.discriminant import Discriminant
from constrained_adapters.routing.statistics import PromptStatistics

WIDTH = 10


def draw(shift: float, axis: int, count: int = 200, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, WIDTH, generator=generator, dtype=torch.float64)
    rows[:, axis] += shift
    return rows


def lengths(rows: torch.Tensor, tokens: float = 20.0) -> torch.Tensor:
    return torch.full((len(rows),), tokens, dtype=torch.float64)


def statistics(rows: torch.Tensor) -> PromptStatistics:
    return PromptStatistics.of(rows, lengths(rows), made_from="test")


def fitted(num: int = 3, rate: float = 0.05, **kwargs) -> Discriminant:
    domains = [statistics(draw(8.0, axis, seed=axis + 1)) for axis in range(num)]
    own = draw(0.0, 0, seed=99)
    return Discriminant.fit(domains, (own, lengths(own)), false_choice_rate=rate, **kwargs)


def test_prompts_are_found_and_other_text_is_left_alone():
    found = fitted()
    for axis in range(3):
        fresh = draw(8.0, axis, seed=50 + axis)
        likely = found.probabilities(found.distances(fresh), lengths(fresh))
        assert (likely.argmax(1) == axis).double().mean() > 0.97
    for other in (draw(0.0, 0, seed=70), draw(8.0, 7, seed=71)):
        likely = found.probabilities(found.distances(other), lengths(other))
        assert (likely.argmax(1) == 3).double().mean() > 0.9


def test_distances_are_mahalanobis_in_the_directions_from_own_text_to_the_domains(monkeypatch):
    monkeypatch.setattr(module, "SHRINKAGE", 0.0)
    monkeypatch.setattr(module, "PRIOR_PROMPTS", 0)
    rows = [draw(6.0, axis, count=40, seed=axis) for axis in range(2)]
    own = draw(0.0, 0, count=40, seed=9)
    found = Discriminant.fit([statistics(each) for each in rows], (own, lengths(own)), false_choice_rate=1.0)
    shared = sum(each.sub(each.mean(0)).T @ each.sub(each.mean(0)) for each in (*rows, own)) / (3 * 39)
    inverse = torch.linalg.inv(shared)
    shifts = torch.stack([each.mean(0) - own.mean(0) for each in rows], 1)
    # Onto the span of the shifts, orthogonally in the metric of the inverse covariance.
    onto = shifts @ torch.linalg.inv(shifts.T @ inverse @ shifts) @ shifts.T @ inverse

    def squared(at: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        gap = (at - mean) @ onto.T
        return (gap @ inverse * gap).sum(1)

    fresh = draw(3.0, 1, count=5, seed=33)
    for number, each in enumerate(rows):
        spread = squared(each, each.mean(0)).sum() / 39 * (41 / 39)
        wanted = squared(fresh, each.mean(0)) / spread
        torch.testing.assert_close(found.distances(fresh)[:, number], wanted, rtol=1e-3, atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(st.floats(0.0, 1.0), st.integers(1, 4))
def test_no_more_of_the_own_text_is_chosen_than_the_rate_says(rate, num):
    found = fitted(num, rate)
    own = draw(0.0, 0, seed=99)
    chosen = found.probabilities(found.distances(own), lengths(own)).argmax(1) < num
    assert chosen.double().mean() <= rate + 1 / len(own)
    assert found.threshold <= fitted(num, min(1.0, rate + 0.1)).threshold


def test_probabilities_add_up_and_at_the_threshold_none_is_as_likely_as_the_best():
    found = fitted()
    at = torch.full((1, 3), 50.0, dtype=torch.float64)
    at[0, 1] = found.threshold
    likely = found.probabilities(at, torch.tensor([20.0]))
    assert float(likely.sum()) == pytest.approx(1.0)
    assert float(likely[0, 1]) == pytest.approx(float(likely[0, 3]))
    shorter = found.probabilities(at, torch.tensor([5.0]))
    assert shorter[0, 1] > shorter[0, 3]  # few tokens scatter more
    assert float(found.widening(torch.tensor([5.0]))[0, 0]) == pytest.approx(math.sqrt(4.0))
    assert float(found.widening(torch.tensor([80.0]))[0, 0]) == 1.0


def test_what_pulls_to_a_domain_adds_up_to_where_the_prompt_is():
    found = fitted()
    parts = draw(8.0, 1, count=4, seed=5) / 4
    pulls = found.pull(parts, 1)
    place = (parts.sum(0) - found.centre) @ found.projection.T
    wanted = place @ found.centres[1] / found.centres[1].square().sum()
    assert float(pulls.sum()) == pytest.approx(float(wanted))
    assert float(found.pull(found.centre[None] / 1.0, 1)) == pytest.approx(0.0)


@pytest.mark.parametrize("count", [1, 2])
def test_few_or_equal_prompts_do_not_make_it_fail(count):
    rows = draw(8.0, 0, count=count)
    same = torch.ones(4, WIDTH, dtype=torch.float64)
    own = draw(0.0, 0, seed=9)
    found = Discriminant.fit(
        [statistics(rows), statistics(same), statistics(same)], (own, lengths(own)), false_choice_rate=0.05
    )
    likely = found.probabilities(found.distances(own), lengths(own))
    assert bool(torch.isfinite(likely).all())
