"""A run under the forgetting guard, its figures in TensorBoard, and losses that are not finite."""

from __future__ import annotations

import re

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import set_seed

from constrained_adapters.config.run import TrainingConfig
from constrained_adapters.data.examples import Example
from constrained_adapters.data.tokens import TokenDataset, encode_example
from constrained_adapters.errors import MissingExtraError, TrainingError, UnknownNameError
from constrained_adapters.training import trackers
from constrained_adapters.training.domain import train_domain
from constrained_adapters.training.observer import SilentObserver
from constrained_adapters.training.trackers import check_trackers

from .conftest import DOMAINS, StopAt, StopError

WATCHING = {"every_steps": 1, "max_time_ratio": 1.0, "max_increase": 1000.0, "probe_rows": 2}


def curves(record):
    return {
        name: curve for name, curve in record.curves.items() if name.startswith(("probe", "start", "drift"))
    }


def test_what_the_guard_sees_is_recorded_and_the_same_after_a_stop(tiny_run):
    whole = tiny_run("lora", guard=WATCHING, output="whole")
    first, second, third = whole.methods[0].records
    assert "probe_old_nats" not in first.curves
    assert first.curves["probe_new_nats"].steps == [0, 1, 2, 3, 4]
    assert first.guard["learnt_nats"] == first.curves["probe_new_nats"].values[-1]
    # The second domain is judged by what the first was learnt to: no reading of the old ones at step 0.
    assert second.curves["probe_old_nats"].steps == [1, 2, 3, 4]
    before, after = first.guard["learnt_nats"], second.curves["probe_old_nats"].values
    drift = second.curves["drift_percent_law"].values
    assert drift == pytest.approx([100 * (nats / before - 1) for nats in after], rel=1e-5)
    assert {f"drift_percent_{name}" for name in DOMAINS[:2]} < set(third.curves)
    assert 0.0 < third.guard["time_ratio"] < 1.0 and third.events == []
    assert whole.ledger[2]["guard"]["learnt_nats"] == third.guard["learnt_nats"]
    with pytest.raises(StopError):
        tiny_run("lora", guard=WATCHING, output="stopped", observer=StopAt(step=("数学", 3)))
    stopped = tiny_run("lora", guard=WATCHING, output="stopped").methods[0].records
    for one, other in zip(stopped, whole.methods[0].records, strict=True):
        kl = one.curves["start_kl_nats"].steps
        assert kl in (other.curves["start_kl_nats"].steps, [0, 1, 2])  # the start is gone with its process
        assert one.guard["learnt_nats"] == other.guard["learnt_nats"]
        assert {**curves(one), "start_kl_nats": 0} == {**curves(other), "start_kl_nats": 0}


def test_a_stopped_domain_is_remembered_measured_and_the_run_goes_on(tiny_run):
    result = tiny_run("lora", "separate", guard={**WATCHING, "max_increase": 1e-9}).methods
    events = [event for record in result[0].records for event in record.events]
    assert events and {event["action"] for event in events} <= {"stop", "alarm"}
    assert all(len(record.curves["loss"].steps) >= 1 for record in result[0].records)
    stopped = next(record for record in result[0].records if record.events)
    assert stopped.curves["loss"].steps[-1] == stopped.events[-1]["step"]
    assert len(result[0].matrices["loss"]) == len(DOMAINS) + 1
    assert all(not record.guard for record in result[1].records)  # each domain has an adapter of its own


def test_strengthening_raises_the_strength_of_crma(tiny_run):
    guard = {**WATCHING, "action": "strengthen", "max_increase": 1e-9, "max_actions": 2}
    records = tiny_run("crma", guard=guard).methods[0].records
    raised = [event for record in records for event in record.events if event["action"] == "strengthen"]
    assert raised[0]["numbers"]["constraint_strength"] == pytest.approx(0.9)
    assert raised[0]["numbers"]["penalty_weight"] == pytest.approx(200.0)


def test_figures_of_training_constraint_and_guard_reach_tensorboard(tiny_run):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    training = {"report_to": ["tensorboard"]}
    result = tiny_run("crma", names=DOMAINS[:2], guard=WATCHING, training=training)
    record = result.methods[0].records[1]
    seen = events.EventAccumulator(str(tiny_run.folder / "out" / "crma" / "trackers" / "数学"))
    seen.Reload()
    for tag, curve in (
        ("loss", "loss"),
        ("constraint/removed_ratio", "removed_ratio"),
        ("guard/drift_percent_law", "drift_percent_law"),
        ("guard/start_kl_nats", "start_kl_nats"),
    ):
        written = {each.step: each.value for each in seen.Scalars(f"train/{tag}")}
        kept = dict(zip(record.curves[curve].steps, record.curves[curve].values, strict=True))
        assert {step: kept[step] for step in written if step > 1} == pytest.approx(
            {step: value for step, value in written.items() if step > 1}, rel=1e-4, abs=1e-6
        )
        assert max(written) == 4


def test_an_unknown_or_missing_tracker_is_refused_before_training(tiny_run, monkeypatch):
    with pytest.raises(UnknownNameError, match="no tracker named 'tensorbord'"):
        tiny_run("lora", training={"report_to": ["tensorbord"]})
    assert not (tiny_run.folder / "out").exists()
    monkeypatch.setattr(trackers, "get_available_reporting_integrations", list)
    with pytest.raises(MissingExtraError, match=r"constrained-adapters\[track\]"):
        check_trackers(["tensorboard"])
    with pytest.raises(MissingExtraError, match="pip install mlflow"):
        check_trackers(["mlflow"])


def trained_on(model, tokenizer, questions, folder):
    rows = [encode_example(Example(prompt=each, answer="yes"), tokenizer, 48) for each in questions]
    settings = TrainingConfig(steps=8, batch_size=2, max_length_tokens=48, learning_rate=1e-3)
    set_seed(0)
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"]))
    return train_domain(
        model,
        tokenizer,
        TokenDataset(rows),
        settings,
        method="lora",
        domain="law",
        learning_rate=1e-3,
        seed=0,
        folder=folder,
        observer=SilentObserver(),
    )


def test_a_loss_that_is_not_finite_names_step_batch_and_example(tiny_llama, tiny_tokenizer, tmp_path):
    with torch.no_grad():
        broken = tiny_tokenizer("~", add_special_tokens=False)["input_ids"]
        tiny_llama.get_input_embeddings().weight[broken] = float("nan")
    questions = [*(f"law {i}?" for i in range(6)), "law ~?", "law 7?"]
    with pytest.raises(TrainingError) as caught:
        trained_on(tiny_llama, tiny_tokenizer, questions, tmp_path)
    assert re.fullmatch(r"the loss of domain 'law' is not finite at step [1-4]", caught.value.what)
    expected = r"example 7 \('.*law ~\?.*yes'\) in a batch of examples (\d, 7|7, \d) of 8"
    assert re.fullmatch(expected, caught.value.got, re.DOTALL), caught.value.got


def test_broken_weights_are_not_blamed_on_an_example(tiny_llama, tiny_tokenizer, tmp_path):
    with torch.no_grad():
        tiny_llama.model.norm.weight.fill_(float("nan"))
    with pytest.raises(TrainingError) as caught:
        trained_on(tiny_llama, tiny_tokenizer, ["law 1?", "law 2?"], tmp_path)
    assert caught.value.got.endswith("of which none by itself has a finite loss")
    assert caught.value.got.startswith("a batch of examples ")


def test_a_limit_for_a_domain_that_the_run_lacks_is_told(tiny_run):
    told: list[str] = []
    observer = SilentObserver()
    observer.message = told.append
    guard = {**WATCHING, "max_increase": {DOMAINS[0]: 0.2, "lwa": 0.1}}
    tiny_run("lora", names=DOMAINS[:1], guard=guard, observer=observer)
    assert "guard.max_increase names lwa: no domain of this run" in told
