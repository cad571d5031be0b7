"""The detector and the time share: pure decisions, on made-up readings and a made-up clock."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from constrained_adapters.config.collapse import PreventCollapseConfig
from constrained_adapters.evaluation.diversity import Diversity
from constrained_adapters.guards.collapse_detector import CollapseDetector, Reading
from constrained_adapters.guards.time_share import FEWEST_TOKENS, TimeShare

START = Reading(
    step=0,
    diversity=Diversity(
        unique_trigram_ratio=0.95,
        distinct_2=0.8,
        self_bleu=0.1,
        repetition_ratio=0.05,
        identical_ratio=1 / 16,
        mean_words=14.0,
    ),
    output_entropy_nats=1.8,
    num_tokens=16,
)


def reading(step: int = 5, entropy: float = 1.8, **measures: float | None) -> Reading:
    return replace(
        START, step=step, output_entropy_nats=entropy, diversity=replace(START.diversity, **measures)
    )


def test_answers_as_at_the_start_are_healthy():
    verdict = CollapseDetector(PreventCollapseConfig()).judge(START, START)
    assert (verdict.state, dict(verdict.raised)) == ("healthy", {})


def test_two_measures_past_their_limits_are_an_alarm_at_once():
    detector = CollapseDetector(PreventCollapseConfig())
    verdict = detector.judge(reading(identical_ratio=0.9, self_bleu=0.95), START)
    assert verdict.state == "collapsed"
    assert set(verdict.raised) == {"identical_ratio", "self_bleu"}
    said = verdict.reason(reading(identical_ratio=0.9, self_bleu=0.95), START)
    assert said.startswith("identical_ratio 0.9 (limit 0.5, at the start 0.0625); self_bleu 0.95")


def test_one_measure_is_suspect_and_an_alarm_only_where_it_stays():
    detector = CollapseDetector(PreventCollapseConfig(patience=3))
    bad = reading(self_bleu=0.75)
    assert [detector.judge(bad, START).state for _ in range(3)] == ["suspect", "suspect", "collapsed"]


def test_one_noisy_number_between_good_ones_is_no_alarm():
    detector = CollapseDetector(PreventCollapseConfig())
    values = [0.1, 0.75, 0.2, 0.71, 0.1]
    states = [detector.judge(reading(self_bleu=value), START).state for value in values]
    assert states == ["healthy", "suspect", "healthy", "suspect", "healthy"]


def test_a_raised_measure_is_lowered_only_well_inside_its_limit():
    detector = CollapseDetector(PreventCollapseConfig(hysteresis=0.2, patience=9))
    states = [detector.judge(reading(self_bleu=each), START).state for each in (0.75, 0.69, 0.57, 0.69, 0.55)]
    assert states == ["suspect", "suspect", "suspect", "suspect", "healthy"]
    assert detector.judge(reading(self_bleu=0.69), START).state == "healthy"


def test_a_weak_start_is_no_alarm():
    weak = replace(START, diversity=replace(START.diversity, unique_trigram_ratio=0.28, self_bleu=0.75))
    detector = CollapseDetector(PreventCollapseConfig())
    assert detector.judge(weak, weak).state == "healthy"
    worse = replace(weak, diversity=replace(weak.diversity, unique_trigram_ratio=0.2, self_bleu=0.85))
    assert detector.judge(worse, weak).state == "collapsed"


def test_a_sharp_fall_of_the_entropy_is_measured_against_the_start():
    detector = CollapseDetector(PreventCollapseConfig(min_entropy_ratio=0.25))
    assert detector.judge(reading(entropy=0.46), START).state == "healthy"
    assert detector.judge(reading(entropy=0.44), START).state == "suspect"


@pytest.mark.parametrize("entropy", [math.nan, math.inf])
def test_what_is_not_finite_is_raised(entropy):
    verdict = CollapseDetector(PreventCollapseConfig(patience=1)).judge(reading(entropy=entropy), START)
    assert verdict.state == "collapsed"


def test_answers_too_short_for_trigrams_are_judged_by_the_rest():
    detector = CollapseDetector(PreventCollapseConfig())
    assert detector.judge(reading(unique_trigram_ratio=None, mean_words=1.0), START).state == "healthy"


MEASURES = st.fixed_dictionaries(
    {
        "self_bleu": st.floats(0, 1),
        "identical_ratio": st.floats(1 / 16, 1),
        "repetition_ratio": st.floats(0, 0.99),
        "unique_trigram_ratio": st.floats(0.01, 1) | st.none(),
    }
)


@given(MEASURES, MEASURES)
def test_the_start_itself_never_raises_anything(first, other):
    start = reading(0, **first)
    assert CollapseDetector(PreventCollapseConfig()).judge(start, start).state == "healthy"
    detector = CollapseDetector(PreventCollapseConfig())
    states = [detector.judge(reading(step, **other), start).state for step in (1, 2)]
    # Whatever is raised once stays raised on the same answers, and the second look decides.
    assert states in (["healthy", "healthy"], ["suspect", "collapsed"], ["collapsed", "collapsed"])


# ---- time


def drive(share: TimeShare, num_steps: int, step_seconds: float, token_seconds: float) -> list[int]:
    """Checks of a run at constant speeds, by step."""
    share.note_check(token_seconds * share.max_tokens, share.max_tokens)
    plan, made = None, []
    for step in range(1, num_steps + 1):
        share.note_step(step_seconds)
        plan = plan or share.plan(step - 1, num_steps)
        if plan.step is not None and step >= plan.step and share.is_affordable(plan.num_tokens):
            share.note_check(token_seconds * plan.num_tokens, plan.num_tokens)
            assert plan.num_tokens >= FEWEST_TOKENS
            made.append(step)
            plan = share.plan(step, num_steps)
    return made


@given(
    st.floats(0.01, 0.5),
    st.integers(20, 400),
    st.floats(0.01, 10.0),
    st.floats(0.001, 2.0),
)
def test_the_share_is_kept_at_any_speed_but_for_the_start(share, num_steps, step_seconds, token_seconds):
    clock = TimeShare(share, max_tokens=16, max_checks=40)
    made = drive(clock, num_steps, step_seconds, token_seconds)
    start = 16 * token_seconds
    assert clock.taken <= share + 1e-9 or clock.spent == pytest.approx(start)
    assert len(made) <= 40


def test_checks_are_spread_over_the_run_and_the_last_is_at_its_end():
    made = drive(TimeShare(0.1, 16, 40), 400, 1.0, 0.1)
    gaps = [later - earlier for earlier, later in zip([0, *made], made, strict=False)]
    assert made[-1] == 400
    assert max(gaps) <= 2.5 * 400 / len(made)


def test_a_short_run_gets_shorter_answers_rather_than_none():
    clock = TimeShare(0.1, 16, 40)
    made = drive(clock, 60, 1.0, 0.2)
    assert made and made[-1] == 60


def test_a_slow_model_is_looked_at_less_often_than_a_fast_one():
    fast = drive(TimeShare(0.1, 16, 1000), 200, 1.0, 0.01)
    slow = drive(TimeShare(0.1, 16, 1000), 200, 1.0, 0.1)
    assert len(fast) > 3 * len(slow) > 0


def test_what_cannot_be_afforded_is_not_done():
    assert drive(TimeShare(0.1, 16, 40), 10, 0.1, 1.0) == []


def test_a_suspicion_halves_the_wait():
    clock = TimeShare(0.1, 16, 40)
    clock.note_check(0.1, 16)
    clock.note_step(1.0)
    calm, hasty = clock.plan(0, 400), clock.plan(0, 400, sooner=True)
    assert hasty.step == calm.step // 2
