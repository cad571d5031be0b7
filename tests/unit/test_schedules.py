"""Rates over the steps and over the parts of a model."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from constrained_adapters.errors import ConfigError
from constrained_adapters.schedules import divide_groups, importance_ratios, stage_factor, staged_schedule


def rates(num_steps: int, stages: list[float], num_warmup: int = 0, rate: float = 1e-5) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=rate)
    schedule = staged_schedule(optimizer, stages, num_steps=num_steps, num_warmup=num_warmup)
    seen = []
    for _ in range(num_steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


def test_stages_follow_one_another_in_equal_parts_under_a_warm_up():
    assert rates(6, [0.1, 0.3, 1.0]) == pytest.approx([1e-6, 1e-6, 3e-6, 3e-6, 1e-5, 1e-5])
    warm = rates(9, [0.1, 0.3, 1.0], num_warmup=4)
    assert warm == pytest.approx([0, 0.25e-6, 0.5e-6, 2.25e-6, 3e-6, 3e-6, 1e-5, 1e-5, 1e-5])


@given(num_steps=st.integers(1, 200), num_stages=st.integers(1, 6))
def test_no_stage_is_longer_than_another_by_more_than_a_step(num_steps, num_stages):
    ratios = [(k + 1) / num_stages for k in range(num_stages)]
    factors = [stage_factor(i, ratios=ratios, num_steps=num_steps, num_warmup=0) for i in range(num_steps)]
    lengths = [factors.count(ratio) for ratio in ratios]
    assert factors == sorted(factors) and sum(lengths) == num_steps
    assert max(lengths) - min(lengths) <= 1


def test_a_schedule_goes_on_from_its_state():
    def make():
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        return optimizer, staged_schedule(optimizer, [0.1, 1.0], num_steps=8, num_warmup=2)

    optimizer, schedule = make()
    for _ in range(5):
        optimizer.step()
        schedule.step()
    again, resumed = make()
    again.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(schedule.state_dict())
    for each in (schedule, resumed):
        each.optimizer.step()
        each.step()
    assert again.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"] == 1.0


@pytest.mark.parametrize("stages", [[], [0.0, 1.0], [0.5, 1.5], [float("nan")]])
def test_stages_out_of_range_are_refused(stages):
    with pytest.raises(ConfigError, match="stages of the learning rate are out of range"):
        rates(3, stages)


LAYERS = [f"model.layers.{i}.{part}.weight" for i in range(3) for part in ("q_proj", "v_proj")]


def test_the_less_important_half_is_free_and_the_rest_slower_by_the_root():
    importance = {name: torch.full((4,), 4.0**k) for k, name in enumerate(LAYERS)}
    ratios = importance_ratios(LAYERS, importance, by="parameter", slowest_ratio=0.2)
    middle = (4.0**2 + 4.0**3) / 2
    expected = [1.0, 1.0, 1.0, (middle / 64) ** 0.5, (middle / 256) ** 0.5, 0.2]
    assert [ratios[name] for name in LAYERS] == pytest.approx(expected)
    scaled = {name: 1e-7 * value for name, value in importance.items()}
    assert importance_ratios(LAYERS, scaled, by="parameter", slowest_ratio=0.2) == pytest.approx(ratios)
    same = {name: torch.ones(4) for name in LAYERS}
    assert set(importance_ratios(LAYERS, same, by="parameter").values()) == {1.0}
    assert importance_ratios(LAYERS, {}, by="layer") == {}


def test_a_layer_has_one_rate_by_the_mean_over_its_weights():
    importance = {
        LAYERS[0]: torch.full((3,), 2.0),
        LAYERS[1]: torch.full((1,), 10.0),  # layer 0: 16 / 4 = 4
        LAYERS[2]: torch.ones(2),
        LAYERS[3]: torch.ones(2),
        LAYERS[4]: torch.full((2,), 16.0),
        LAYERS[5]: torch.full((2,), 16.0),
    }
    ratios = importance_ratios([*LAYERS, "lm_head.weight"], importance, by="layer")
    assert [ratios[name] for name in LAYERS] == [1.0] * 4 + [0.5] * 2
    assert "lm_head.weight" not in ratios


def test_an_adapter_takes_the_importance_of_its_module():
    modules = {"model.layers.0.q_proj": torch.ones(2), "model.layers.10.q_proj": torch.full((2,), 9.0)}
    names = [
        f"base_model.model.model.layers.{i}.q_proj.lora_{side}.law.weight" for i in (0, 10) for side in "AB"
    ]
    ratios = importance_ratios(names, modules, by="layer")
    assert [ratios[name] for name in names] == pytest.approx([1.0, 1.0, (5 / 9) ** 0.5, (5 / 9) ** 0.5])


def test_a_layer_of_inserted_modules_has_a_rate_of_its_own():
    importance = {
        f"sets.0.{layer}_{place}.{side}.weight": torch.full((2,), value)
        for layer, value in ((1, 1.0), (11, 9.0))
        for place in ("attention", "mlp")
        for side in ("down", "up")
    }
    ratios = importance_ratios(importance, importance, by="layer")
    assert list(ratios.values()) == pytest.approx([1.0] * 4 + [(5 / 9) ** 0.5] * 4)


@pytest.mark.parametrize("ratio", [0.0, 1.1, float("nan")])
def test_a_slowest_rate_out_of_range_is_refused(ratio):
    with pytest.raises(ConfigError, match="slowest rate is out of range"):
        importance_ratios([], {}, by="layer", slowest_ratio=ratio)


def test_groups_keep_their_decay_and_every_parameter_its_rate():
    a, b, c, d = (torch.zeros(2, requires_grad=True) for _ in range(4))
    optimizer = torch.optim.AdamW(
        [{"params": [a, b, c], "weight_decay": 0.1}, {"params": [d], "weight_decay": 0.0}], lr=1e-2
    )
    names = {a: "a", b: "b", c: "c", d: "d"}
    divide_groups(optimizer, names, {"a": 0.1, "d": 0.5})
    groups = [(group["params"], group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
    assert groups == [([b, c], 1e-2, 0.1), ([a], pytest.approx(1e-3), 0.1), ([d], 5e-3, 0.0)]
    for parameter in (a, b, c, d):
        parameter.grad = torch.ones(2)
    optimizer.step()
    moved = [-float(parameter.detach()[0]) for parameter in (a, b, c, d)]
    assert moved == pytest.approx([1e-3, 1e-2, 1e-2, 5e-3], rel=1e-4)
