"""The collapse guard on a stock Trainer: it sees, goes back, changes something, and leaves nothing behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import chain, repeat
from pathlib import Path

import pytest
import torch
from transformers import Trainer, TrainerCallback

from constrained_adapters.errors import AdapterStateError, ConfigError, ModelError, TrainingError
from constrained_adapters.guards.collapse import PreventCollapse
from constrained_adapters.guards.collapse_detector import Verdict
from constrained_adapters.guards.healthy_checkpoints import FOLDER, MANIFEST

DROPPING = {"attention_dropout": 0.2, "residual_dropout": 0.1, "mlp_dropout": 0.1}


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def make_guard(told):
    def make(**settings):
        return PreventCollapse(
            **{"check_every_steps": 5, "checkpoint_every_steps": 5, **settings}, tell=told.append
        )

    return make


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


class WeightsAt(TrainerCallback):
    """Notes the weights after some steps, the last time that they are reached."""

    def __init__(self) -> None:
        self.seen: dict[int, dict[str, torch.Tensor]] = {}
        self.losses: dict[int, list[float]] = {}

    def on_step_end(self, args, state, control, **kwargs):
        self.seen[state.global_step] = {k: v.clone() for k, v in kwargs["model"].state_dict().items()}

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "loss" in logs:
            self.losses.setdefault(state.global_step, []).append(logs["loss"])


@pytest.fixture
def script(monkeypatch):
    """Give the guard its verdicts, one after the other; the last goes on for ever."""

    def give(states: list[str], before: Callable[[str], None] = lambda state: None) -> None:
        act, told = PreventCollapse._act, chain(states, repeat(states[-1]))

        def scripted(self, verdict, *rest):
            state = next(told)
            before(state)
            act(self, Verdict(state, {}), *rest)

        monkeypatch.setattr(PreventCollapse, "_act", scripted)

    return give


def actions(guard: PreventCollapse) -> list[tuple[int, str, int | None]]:
    return [(each["step"], each["action"], each.get("to_step")) for each in guard.events]


def test_a_healthy_training_is_the_training_without_the_guard(make_trainer, make_guard, tiny_llama):
    begun = {name: value.clone() for name, value in tiny_llama.state_dict().items()}
    plain = make_trainer(learning_rate=1e-4)
    plain.train()
    expected = weights(plain)
    tiny_llama.load_state_dict(begun)
    guard = make_guard()
    watched = make_trainer(guard, learning_rate=1e-4)
    watched.train()
    assert same(weights(watched), expected)
    assert [event["action"] for event in guard.events] == ["finished"]
    assert guard.curves["self_bleu"][0] == [0, 5, 10, 15, 20]


def test_a_collapse_is_seen_and_undone(make_trainer, make_guard, told):
    guard = make_guard()
    trainer = make_trainer(guard, learning_rate=0.1, max_steps=30, lr_scheduler_type="constant")
    output = trainer.train()
    first = next(event for event in guard.events if event["action"] == "rolled_back")
    assert first["remedies"] == ["lower_rate"]
    assert first["step"] > first["to_step"]
    assert first["numbers"]["identical_ratio"] > 0.5 or first["numbers"]["self_bleu"] > 0.7
    assert "answers have collapsed; back to step" in told[0]
    assert output.global_step == trainer.state.global_step
    assert guard.events[-1]["action"] == "finished"


def test_going_back_restores_the_whole_state_of_the_training(make_trainer, make_guard, script):
    """Where remedies change nothing, the steps after a return are those that were undone, bit by bit."""
    first, again = WeightsAt(), WeightsAt()

    def note(state: str) -> None:
        if state == "collapsed":
            first.seen = dict(again.seen)

    script(["healthy", "healthy", "collapsed", "healthy"], before=note)
    guard = make_guard(remedies=["lower_rate"], rate_factor=1.0 - 1e-16)
    trainer = make_trainer(again, guard, learning_rate=1e-2, max_steps=20, weight_decay=0.1)
    trainer.train()
    assert actions(guard)[0] == (15, "rolled_back", 10)
    assert same(again.seen[12], first.seen[12]) and same(again.seen[15], first.seen[15])
    assert again.losses[12][0] == again.losses[12][1]  # so model, data, optimizer, scheduler and draws agree


def test_the_rate_is_lowered_for_the_steps_asked_for_and_logged_as_it_was(make_trainer, make_guard, script):
    script(["healthy", "collapsed", "healthy"])
    trainer = make_trainer(make_guard(low_rate_steps=4), lr_scheduler_type="constant", learning_rate=1e-3)
    trainer.train()
    rates = {each["step"]: each["learning_rate"] for each in trainer.state.log_history if "loss" in each}
    assert [rates[step] for step in (5, 6, 9, 10, 20)] == pytest.approx([1e-3, 1e-4, 1e-4, 1e-3, 1e-3])
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3)


def test_remedies_are_added_one_by_one_and_then_it_ends_with_the_healthy_model(
    make_trainer, make_guard, script, told
):
    script(["healthy", "collapsed"])
    guard, at = make_guard(), WeightsAt()
    trainer = make_trainer(guard, at, learning_rate=1e-3)
    rows = trainer.train_dataset
    begun = weights(trainer)
    trainer.train()
    rolled = [event for event in guard.events if event["action"] == "rolled_back"]
    assert [event["remedies"] for event in rolled] == [
        ["lower_rate"],
        ["lower_rate", "new_order"],
        ["lower_rate", "new_order", "embedding_noise"],
    ]
    # Back to 5; a second alarm casts doubt on that one, and the start is all that is older.
    assert [event["to_step"] for event in rolled] == [5, 0, 0]
    assert guard.events[-2]["action"] == "stopped"
    assert same(weights(trainer), begun)
    assert trainer.state.global_step == 0
    assert trainer.train_dataset is rows
    assert "training ends with the model of step 0" in told[-1] and "Try: a lower learning rate" in told[-1]


def test_nothing_of_the_guard_stays_on_the_model(make_trainer, tiny_llama):
    rates = []

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            rates.append(tiny_llama.config.attention_dropout)

    make_trainer(PreventCollapse(check_every_steps=5, **DROPPING), Look()).train()
    assert rates == [0.2] * 20
    assert tiny_llama.config.attention_dropout == 0.0
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in tiny_llama.modules())
    assert "generate" not in vars(tiny_llama)


def test_nothing_of_the_guard_stays_on_the_model_that_broke_off(make_trainer, tiny_llama):
    class Breaks(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            raise RuntimeError("broken")

    trainer = make_trainer(PreventCollapse(check_every_steps=5, **DROPPING), Breaks())
    with pytest.raises(RuntimeError, match="broken"):
        trainer.train()
    assert tiny_llama.config.attention_dropout == 0.0
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in tiny_llama.modules())


def test_rotation_leaves_the_healthy_checkpoints_alone(make_trainer, make_guard, tmp_path):
    kept = []

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            kept.append(sorted(path.name for path in (tmp_path / "out" / FOLDER).glob("checkpoint-*")))

    make_trainer(
        make_guard(), Look(), learning_rate=1e-4, save_strategy="steps", save_steps=3, save_total_limit=1
    ).train()
    assert kept[18] == ["checkpoint-10", "checkpoint-15"]  # Trainer's own is checkpoint-18 by then
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-20"]
    assert not (tmp_path / "out" / FOLDER).exists()


def test_checkpoints_of_the_collapsed_model_are_removed(make_trainer, make_guard, script, tmp_path):
    script(["healthy", "collapsed", "healthy"])
    earlier = tmp_path / "out" / "checkpoint-99"  # of another training in the same folder
    earlier.mkdir(parents=True)
    guard = make_guard()
    make_trainer(guard, save_strategy="steps", save_steps=3).train()
    assert guard.events[0]["removed"] == ["checkpoint-6", "checkpoint-9"]
    assert earlier.is_dir()


def test_a_damaged_checkpoint_is_passed_over_for_an_older_one(make_trainer, make_guard, script, tmp_path):
    def damage(state: str) -> None:
        if state == "collapsed":
            (tmp_path / "out" / FOLDER / "checkpoint-10" / "optimizer.pt").write_bytes(b"torn")

    script(["healthy", "healthy", "collapsed", "healthy"], before=damage)
    guard = make_guard()
    make_trainer(guard).train()
    assert actions(guard)[0] == (15, "rolled_back", 5)


def test_where_every_checkpoint_has_gone_nothing_is_restored(make_trainer, make_guard, script, tmp_path):
    script(["collapsed"], before=lambda state: shutil.rmtree(tmp_path / "out" / FOLDER))
    at = WeightsAt()
    trainer = make_trainer(at, make_guard())
    with pytest.raises(TrainingError, match="no healthy checkpoint to go back to; the training was left"):
        trainer.train()
    assert same(weights(trainer), at.seen[5])


def test_a_killed_training_goes_on_with_its_remedies(make_trainer, make_guard, script, tmp_path):
    class KilledError(Exception):
        pass

    class Kill(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 9 and guard.events:
                raise KilledError

    script(["healthy", "collapsed", "healthy"])
    settings = {"lr_scheduler_type": "constant", "save_strategy": "steps", "save_steps": 2}
    guard = make_guard()
    with pytest.raises(KilledError):
        make_trainer(guard, Kill(), **settings).train()
    later = make_guard()
    trainer = make_trainer(later, **settings)
    trainer.train(resume_from_checkpoint=True)
    assert actions(later)[0] == (10, "rolled_back", 5)
    rates = {each["step"]: each["learning_rate"] for each in trainer.state.log_history if "loss" in each}
    assert rates[20] == pytest.approx(1e-4)
    assert later.curves["self_bleu"][0] == [0, 5, 10, 15, 20]


def test_a_trainer_that_stands_already_needs_the_line_instead(make_trainer):
    trainer = make_trainer()
    trainer.add_callback(PreventCollapse())
    with pytest.raises(AdapterStateError, match=r"prevent_collapse\(trainer\)"):
        trainer.train()


def test_a_training_too_short_for_a_look_says_so(make_trainer, told):
    guard = PreventCollapse(time_share=1e-6, tell=told.append)
    make_trainer(guard).train()
    assert guard.events[-1]["numbers"]["checks"] == 1
    assert "has seen the start only" in told[-1] and "check_every_steps" in told[-1]


def test_one_guard_is_for_one_trainer(make_trainer):
    guard = PreventCollapse()
    make_trainer(guard)
    with pytest.raises(AdapterStateError, match="watches a Trainer already"):
        make_trainer(guard)


def test_a_model_that_cannot_generate_is_refused(make_trainer, tiny_llama, monkeypatch):
    monkeypatch.setattr(type(tiny_llama), "can_generate", classmethod(lambda cls: False))
    with pytest.raises(ModelError, match="cannot generate"):
        make_trainer(PreventCollapse()).train()


def test_without_a_tokenizer_nothing_can_be_asked(make_trainer):
    trainer = make_trainer(PreventCollapse())
    trainer.processing_class = trainer.callback_handler.processing_class = None
    with pytest.raises(ConfigError, match="needs the tokenizer"):
        trainer.train()


def test_checkpoints_of_the_model_only_are_refused(make_trainer):
    with pytest.raises(ConfigError, match="from a model alone"):
        make_trainer(PreventCollapse(), save_only_model=True)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_self_blue": 0.5}, "no setting named 'max_self_blue'"),
        ({"min_unique_trigram_ratio": 1.0}, "contradicts what healthy answers reach"),
        ({"max_identical_ratio": 0.06}, "contradicts what healthy answers reach"),
        ({"min_entropy_ratio": 0.95}, "contradicts what healthy answers reach"),
        ({"check_every_steps": 5, "time_share": 0.2}, "'time_share' has no effect with check_every_steps"),
        ({"guard": False, "patience": 3}, "'patience' has no effect with guard: false"),
        ({"remedies": [], "rate_factor": 0.5}, "'rate_factor' has no effect"),
        ({"remedies": ["new_order", "new_order"]}, "names 'new_order' twice"),
        ({"prompts": ["why?"] * 9}, "1 different ones are too few for a stable estimate: give 8 or more"),
    ],
)
def test_settings_that_contradict_are_refused(settings, said):
    with pytest.raises(ConfigError, match="PreventCollapse") as caught:
        PreventCollapse(**settings)
    assert said in str(caught.value)


def test_what_is_kept_on_disk_says_its_files(make_trainer, make_guard, tmp_path):
    sizes = {}

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            path = tmp_path / "out" / FOLDER / "checkpoint-0" / MANIFEST
            if path.is_file():
                sizes.update(json.loads(path.read_text()))

    make_trainer(make_guard(), Look()).train()
    assert {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} < set(sizes)
    assert all(isinstance(size, int) and size > 0 for size in sizes.values())
    assert not list(Path(tmp_path / "out").glob("checkpoint-*"))
