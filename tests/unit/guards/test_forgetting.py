"""The forgetting guard on a stock Trainer: what it sees, when it looks, and each of its actions."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from constrained_adapters import ForgettingGuard, protect
from constrained_adapters.data.examples import Example
from constrained_adapters.data.tokens import collate, encode_example
from constrained_adapters.errors import ConfigError, DataError, TrainingError
from constrained_adapters.evaluation.row_losses import mean_row_nats
from constrained_adapters.guards.probes import encode_probe

OLD = [Example(prompt=f"law {i}?", answer="court") for i in range(4)]
NEW = [Example(prompt=f"med {i}?", answer="nerve") for i in range(4)]
TRAINED = [Example(prompt=f"med {i}!", answer="nerve") for i in range(4)]


def lora(model):
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    set_seed(0)
    return get_peft_model(model, config)


class Steps(TrainerCallback):
    """Keeps each step's rate and A."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.weights: list[torch.Tensor] = []

    def on_step_end(self, args, state, control, **kwargs):
        self.rates.append(kwargs["optimizer"].param_groups[0]["lr"])
        weight = next(p for p in kwargs["model"].parameters() if p.requires_grad)
        self.weights.append(weight.detach().clone())


def trainer_of(model, tokenizer, folder, *, rate=1e-2, steps=6, **options):
    rows = [encode_example(each, tokenizer, 64) for each in options.pop("trained", TRAINED) * 4]
    data = [{"input_ids": row.input_ids, "labels": row.labels} for row in rows]
    set_seed(1)
    return Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(folder),
            max_steps=steps,
            per_device_train_batch_size=4,
            learning_rate=rate,
            lr_scheduler_type="constant",
            logging_steps=1,
            report_to=options.pop("report_to", "none"),
            use_cpu=True,
            dataloader_pin_memory=False,
            disable_tqdm=True,
            remove_unused_columns=False,
            save_strategy=options.pop("save_strategy", "no"),
            **{key: options.pop(key) for key in ("save_steps",) if key in options},
        ),
        train_dataset=data,
        data_collator=lambda features: collate(features, 0),
        processing_class=tokenizer,
        **options,
    )


def guard_of(**settings):
    return ForgettingGuard({"law": OLD}, NEW, **{"every_steps": 2, "max_time_ratio": 1.0, **settings})


def test_readings_are_those_of_the_model_and_no_step_is_read_twice(tiny_llama, tiny_tokenizer, tmp_path):
    model = lora(tiny_llama)
    rows = encode_probe(OLD, "law", tiny_tokenizer, most=8)
    before = mean_row_nats(model, rows)
    guard = guard_of(max_increase=100.0)
    trainer_of(model, tiny_tokenizer, tmp_path, callbacks=[guard]).train()
    steps, values = guard.curves["probe_old_nats"]
    assert steps == [0, 2, 4, 6]
    assert values[0] == pytest.approx(before, abs=1e-5)
    assert values[-1] == pytest.approx(mean_row_nats(model, rows), abs=1e-5)
    drift = 100 * (values[-1] - before) / before
    assert guard.curves["drift_percent_law"][1][-1] == pytest.approx(drift, rel=1e-4)
    new = encode_probe(NEW, "med", tiny_tokenizer, most=8)
    assert guard.last_new_nats == pytest.approx(mean_row_nats(model, new), abs=1e-5)
    assert guard.curves["probe_new_nats"][1][-1] < guard.curves["probe_new_nats"][1][0]
    mixed = mean_row_nats(model, [*rows, *new])
    assert guard.curves["probe_mixed_nats"][1][-1] == pytest.approx(mixed, abs=1e-5)
    assert guard.events == []


def test_the_divergence_from_the_start_is_that_of_the_whole_distributions(
    tiny_llama, tiny_tokenizer, tmp_path
):
    start = copy.deepcopy(tiny_llama)
    model = lora(tiny_llama)
    guard = guard_of(max_increase=100.0)
    trainer_of(model, tiny_tokenizer, tmp_path, callbacks=[guard]).train()
    expected = []
    with torch.no_grad():
        for row in encode_probe(NEW, "med", tiny_tokenizer, most=8):
            ids, labels = torch.tensor([row.input_ids]), torch.tensor(row.labels[1:])
            p, q = (each(ids).logits[0, :-1][labels >= 0].log_softmax(-1) for each in (start, model.eval()))
            expected += (p.exp() * (p - q)).sum(-1).tolist()
    assert guard.curves["start_kl_nats"][1][0] == pytest.approx(0.0, abs=1e-6)
    assert guard.curves["start_kl_nats"][1][-1] == pytest.approx(sum(expected) / len(expected), rel=1e-3)


def test_watching_changes_nothing(tiny_llama, tiny_tokenizer, tmp_path):
    twin = copy.deepcopy(tiny_llama)
    watched, free = Steps(), Steps()
    callbacks = [guard_of(max_increase=100.0), watched]
    trainer_of(lora(tiny_llama), tiny_tokenizer, tmp_path / "a", callbacks=callbacks).train()
    trainer_of(lora(twin), tiny_tokenizer, tmp_path / "b", callbacks=[free]).train()
    assert all(torch.equal(a, b) for a, b in zip(watched.weights, free.weights, strict=True))


def test_stop_ends_the_training_where_it_is(tiny_llama, tiny_tokenizer, tmp_path):
    guard = guard_of(action="stop", max_increase={"law": 1e-6}, baseline={"law": 1e-3})
    trainer = trainer_of(lora(tiny_llama), tiny_tokenizer, tmp_path, callbacks=[guard])
    trainer.train()
    assert trainer.state.global_step == 2
    (event,) = guard.events
    assert (event["step"], event["action"], event["guard"]) == (2, "stop", "forgetting")
    assert "the loss of law is" in event["reason"]
    assert guard.curves["probe_old_nats"][0] == [2]  # the baseline was given


def test_roll_back_returns_to_the_last_good_state_at_a_lower_rate(tiny_llama, tiny_tokenizer, tmp_path):
    # From step 4 on every reading is too high: the state after step 2 is gone back to.
    guard, seen = guard_of(action="roll_back", max_increase=100.0, rate_factor=0.25), Steps()
    take = guard._take

    def worse_from_four(model, step, **options):
        if step >= 4:
            guard.settings.max_increase = 1e-9
            guard._baseline["law"] = 1e-3
        return take(model, step, **options)

    guard._take = worse_from_four
    trainer_of(lora(tiny_llama), tiny_tokenizer, tmp_path, callbacks=[seen, guard]).train()
    assert [event["action"] for event in guard.events] == ["roll_back", "roll_back"]
    assert [event["numbers"]["to_step"] for event in guard.events] == [2.0, 2.0]
    assert seen.rates == pytest.approx([1e-2] * 4 + [2.5e-3] * 2)
    assert guard.events[1]["numbers"]["learning_rate"] == pytest.approx(1e-2 / 16)
    moved_at_full_rate = (seen.weights[3] - seen.weights[1]).abs().max()
    moved_at_quarter = (seen.weights[4] - seen.weights[1]).abs().max()
    assert 0 < moved_at_quarter < 0.5 * moved_at_full_rate  # one quarter step from the state after step 2


def test_after_so_many_roll_backs_it_stops_in_the_good_state(tiny_llama, tiny_tokenizer, tmp_path):
    model = lora(tiny_llama)
    start = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    guard = guard_of(
        action="roll_back", max_increase=1e-6, baseline={"law": 1e-3}, every_steps=1, max_actions=2
    )
    trainer = trainer_of(model, tiny_tokenizer, tmp_path, callbacks=[guard])
    trainer.train()
    assert [event["action"] for event in guard.events] == ["roll_back"] * 3 + ["stop"]
    assert trainer.state.global_step == 3
    assert all(torch.equal(p, start[name]) for name, p in model.named_parameters() if name in start)


def test_strengthen_asks_the_protection_and_stops_where_it_cannot(tiny_llama, tiny_tokenizer, tmp_path):
    trainer = trainer_of(lora(tiny_llama), tiny_tokenizer, tmp_path)
    protection = protect(trainer, num_texts=4)
    guard = guard_of(
        action="strengthen",
        max_increase=1e-6,
        baseline={"law": 1e-3},
        max_actions=1,
        strengthen=protection.strengthen,
    )
    guard.add_to(trainer)
    trainer.train()
    assert guard.events[0]["action"] == "strengthen"
    assert guard.events[0]["numbers"]["penalty_factor"] == 2.0
    nothing = guard_of(action="strengthen", max_increase=1e-6, baseline={"law": 1e-3}, strengthen=dict)
    trainer.remove_callback(guard)
    nothing.add_to(trainer)
    trainer.train()
    assert [event["action"] for event in nothing.events] == ["stop"]
    assert "no constraint that could be strengthened" in nothing.events[0]["reason"]


def test_strengthen_without_a_constraint_is_refused(tiny_llama, tiny_tokenizer, tmp_path):
    guard = guard_of(action="strengthen")
    with pytest.raises(ConfigError, match="no constraint that could be strengthened"):
        trainer_of(lora(tiny_llama), tiny_tokenizer, tmp_path, callbacks=[guard]).train()


def test_it_keeps_its_share_of_the_time(tiny_llama, tiny_tokenizer, tmp_path):
    guard = guard_of(every_steps=1, max_time_ratio=1e-9, max_increase=100.0)
    trainer_of(lora(tiny_llama), tiny_tokenizer, tmp_path, callbacks=[guard]).train()
    assert guard.curves["probe_old_nats"][0] == [0, 6]  # the first and the last, no other
    assert 0.0 < guard.time_ratio < 1.0


def test_a_restart_goes_on_with_what_was_seen(tiny_llama, tiny_tokenizer, tmp_path):
    twin = copy.deepcopy(tiny_llama)
    first = guard_of(max_increase=100.0)
    saved = {"save_strategy": "steps", "save_steps": 4}
    trainer_of(lora(tiny_llama), tiny_tokenizer, tmp_path, callbacks=[first], **saved).train()
    kept = json.loads((tmp_path / "checkpoint-4" / "forgetting_guard.json").read_text())
    assert kept["curves"]["probe_old_nats"][0] == [0, 2, 4]
    assert "court" not in json.dumps(kept)
    again = guard_of(max_increase=100.0)
    trainer = trainer_of(lora(twin), tiny_tokenizer, tmp_path, callbacks=[again])
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert again.curves["probe_old_nats"][0] == [0, 2, 4, 6]
    assert again.curves["probe_old_nats"][1] == pytest.approx(first.curves["probe_old_nats"][1], abs=1e-5)


def test_a_restart_strengthens_as_often_as_before(tiny_llama, tiny_tokenizer, tmp_path):
    settings = {"action": "strengthen", "max_increase": 1e-6, "baseline": {"law": 1e-3}, "max_actions": 9}
    saved = {"save_strategy": "steps", "save_steps": 4}
    calls: list[int] = []
    twin = copy.deepcopy(tiny_llama)

    def stronger():
        calls.append(len(calls))
        return {"penalty_factor": 2.0 ** len(calls)}

    first = guard_of(strengthen=stronger, **settings)
    trainer_of(lora(tiny_llama), tiny_tokenizer, tmp_path, callbacks=[first], **saved).train()
    before = sum(event["action"] == "strengthen" and event["step"] <= 4 for event in first.events)
    calls.clear()
    again = guard_of(strengthen=stronger, **{**settings, "every_steps": 100})
    trainer = trainer_of(lora(twin), tiny_tokenizer, tmp_path, callbacks=[again])
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert len(calls) == before > 0


def test_its_figures_reach_tensorboard(tiny_llama, tiny_tokenizer, tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    guard = guard_of(max_increase=100.0)
    trainer = trainer_of(lora(tiny_llama), tiny_tokenizer, tmp_path, report_to="tensorboard")
    guard.add_to(trainer)
    trainer.train()
    (folder,) = {path.parent for path in tmp_path.rglob("events.out.tfevents.*")}
    seen = events.EventAccumulator(str(folder))
    seen.Reload()
    written = seen.Scalars("train/guard/drift_percent_law")
    assert [each.step for each in written] == [1, 2, 4, 6]  # the reading before step 1 is logged with it
    assert [each.value for each in written] == pytest.approx(guard.curves["drift_percent_law"][1])
    assert "train/guard/start_kl_nats" in seen.Tags()["scalars"]


def test_a_broken_model_stops_the_run_by_name(tiny_llama, tiny_tokenizer, tmp_path):
    model = lora(tiny_llama)
    with torch.no_grad():
        tiny_llama.model.norm.weight.fill_(float("nan"))
    with pytest.raises(TrainingError, match="loss of the domain in training is not finite"):
        trainer_of(model, tiny_tokenizer, tmp_path, callbacks=[guard_of()]).train()


def test_rows_that_are_trained_on_are_warned_of_with_their_share(tiny_llama, tiny_tokenizer, tmp_path):
    trained = [*TRAINED[:3], NEW[0]]
    trainer = trainer_of(
        lora(tiny_llama), tiny_tokenizer, tmp_path, steps=1, trained=trained, callbacks=[guard_of()]
    )
    with pytest.warns(UserWarning, match=r"1 of 4 rows that watch 'the new domain' are trained on \(25%\)"):
        trainer.train()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"every_step": 2}, "no setting named 'every_step'"), ({"max_increase": {"lew": 0.1}}, "'lew'")],
)
def test_wrong_settings_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        ForgettingGuard({"law": OLD}, NEW, **options)


def test_an_empty_probe_set_is_refused(tiny_tokenizer):
    with pytest.raises(DataError, match="nothing to watch 'law' by"):
        encode_probe([], "law", tiny_tokenizer, most=8)
    with pytest.raises(DataError, match="without a tokenizer"):
        encode_probe(OLD, "law", None, most=8)
