"""The parts of a run that need no training: checkpoints found, settings translated, scores averaged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from constrained_adapters.config.run import AdapterConfig, BaseConfig, MethodConfig, TrainingConfig
from constrained_adapters.errors import ConfigError, UnknownNameError
from constrained_adapters.recipes import RECIPES, find_recipe, model_config
from constrained_adapters.training.callbacks import WHOLE, CurveRecorder, last_whole_checkpoint
from constrained_adapters.training.domain import check_optimizer, training_arguments
from constrained_adapters.training.peak import peak_memory_bytes, reset_peak_memory


def test_the_newest_whole_checkpoint_is_found_and_torn_ones_go(tmp_path):
    assert last_whole_checkpoint(tmp_path) is None
    for step in (8, 10, 12):
        (tmp_path / f"checkpoint-{step}").mkdir()
    for step in (8, 10):
        (tmp_path / f"checkpoint-{step}" / WHOLE).touch()
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-10"  # by number, not by letter
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-8"]


def test_curves_come_back_from_a_checkpoint():
    recorder = CurveRecorder([1, 2], {"seconds": [0.1, 0.2], "removed_ratio": [0.3, 0.4]})
    again = CurveRecorder(**recorder.state()["args"])
    assert (again.step_numbers, again.curves) == (recorder.step_numbers, recorder.curves)
    assert CurveRecorder().curves == {"seconds": []}


def test_every_setting_of_training_reaches_the_trainer(tmp_path):
    settings = TrainingConfig(
        steps=7,
        batch_size=3,
        gradient_accumulation_steps=2,
        schedule="linear",
        warmup_ratio=0.2,
        weight_decay=0.05,
        max_grad_norm=0.5,
        precision="bf16",
        gradient_checkpointing=True,
        optimizer="sgd",
        checkpoint_every_steps=4,
    )
    made = training_arguments(settings, learning_rate=3e-4, seed=5, folder=tmp_path, on_cpu=True)
    assert (made.max_steps, made.per_device_train_batch_size, made.gradient_accumulation_steps) == (7, 3, 2)
    assert (made.lr_scheduler_type, made.weight_decay, made.max_grad_norm) == ("linear", 0.05, 0.5)
    assert made.get_warmup_steps(100) == 20
    assert (made.bf16, made.fp16, made.activation_checkpointing) == (True, False, True)
    assert (made.optim, made.save_steps, made.seed, made.data_seed, made.learning_rate) == (
        "sgd",
        4,
        5,
        5,
        3e-4,
    )
    assert made.report_to == []
    assert made.device.type == "cpu"
    by_epochs = training_arguments(
        TrainingConfig(epochs=1.5), learning_rate=1e-3, seed=0, folder=tmp_path, on_cpu=True
    )
    assert (by_epochs.max_steps, by_epochs.num_train_epochs) == (-1, 1.5)


@pytest.mark.parametrize(("ratio", "steps"), [(0.0, 0), (0.3, 30), (0.995, 100), (1.0, 100)])
def test_a_warm_up_is_a_share_of_the_steps_up_to_all_of_them(tmp_path, ratio, steps):
    settings = TrainingConfig(steps=100, warmup_ratio=ratio)
    made = training_arguments(settings, learning_rate=1.0, seed=0, folder=tmp_path, on_cpu=True)
    assert made.get_warmup_steps(100) == steps


def test_an_unknown_optimizer_is_told_with_the_nearest():
    check_optimizer("adamw_torch")
    with pytest.raises(
        UnknownNameError, match=r"'adamw_torc' \(training.optimizer\)(?s:.*)Try: +adamw_torch"
    ):
        check_optimizer("adamw_torc")


@pytest.mark.parametrize(
    "setting", ["constraint_strength", "constraint_type", "gradient_memory_size", "protect_base"]
)
def test_a_setting_without_effect_is_refused(setting):
    values = {
        "constraint_strength": 0.8,
        "constraint_type": "gem",
        "gradient_memory_size": 9,
        "protect_base": True,
    }
    with pytest.raises(ConfigError, match=f"'{setting}' has no effect on the recipe 'lora'"):
        find_recipe(MethodConfig(recipe="lora", **{setting: values[setting]}))
    assert find_recipe(MethodConfig(recipe="crma", **{setting: values[setting]})).name == "crma"


def test_a_method_overrides_its_recipe_and_takes_the_rest_of_it():
    base, adapter = BaseConfig(model="m"), AdapterConfig(rank=3, residual_scaling=1.5)
    assert model_config(MethodConfig(recipe="lora"), base, adapter).effective_strength == 0.0
    default = model_config(MethodConfig(recipe="crma"), base, adapter)
    assert (default.constraint_strength, default.constraint_type) == (RECIPES["crma"].strength, "fisher")
    assert (default.adapter_dim, default.residual_scaling, default.base_model_name) == (3, 1.5, "m")
    own = model_config(
        MethodConfig(recipe="crma", constraint_strength=0.0, constraint_type="gem", protect_base=False),
        base,
        adapter,
    )
    assert (own.constraint_strength, own.constraint_type, own.protect_base) == (0.0, "gem", False)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_the_peak_of_one_method_does_not_count_for_the_next():
    reset_peak_memory()
    before = peak_memory_bytes()
    block = torch.ones(30_000_000)
    assert peak_memory_bytes() > before + 80_000_000
    del block
    reset_peak_memory()
    assert peak_memory_bytes() < before + 60_000_000
