"""The switch of a run and the one line on a script: what prevents a collapse, and that it acts."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import PrinterCallback, Trainer, TrainingArguments
from transformers.trainer_pt_utils import LabelSmoother

from constrained_adapters import PreventCollapse, prevent_collapse
from constrained_adapters.config.collapse import PreventCollapseConfig
from constrained_adapters.config.run import MethodConfig, TrainingConfig
from constrained_adapters.data.tokens import IGNORED
from constrained_adapters.errors import AdapterStateError, ConfigError, ConstrainedAdaptersError
from constrained_adapters.objectives import CrossEntropy
from constrained_adapters.training.prevention import prevented_settings, prevented_smoothing

from .conftest import StopAt, StopError, numbers  # isort: skip


@pytest.fixture
def general(tmp_path):
    path = tmp_path / "texts.jsonl"
    lines = [json.dumps({"text": f"The sea is wide, and wave {n} comes in."}) for n in range(30)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


@pytest.fixture
def trainer(tiny_llama, tiny_tokenizer, tmp_path):
    ids = [tiny_tokenizer(f"question {n}? yes")["input_ids"] for n in range(10, 46)]
    rows = [{"input_ids": each, "labels": [IGNORED] * 4 + each[4:]} for each in ids]
    made = Trainer(
        model=tiny_llama,
        args=TrainingArguments(
            output_dir=str(tmp_path / "out"),
            num_train_epochs=5,
            per_device_train_batch_size=6,
            learning_rate=1e-3,
            use_cpu=True,
            save_strategy="no",
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=rows,
        data_collator=lambda rows: {key: torch.tensor([row[key][:12] for row in rows]) for key in rows[0]},
        processing_class=tiny_tokenizer,
    )
    made.remove_callback(PrinterCallback)
    return made


def test_the_line_puts_on_stages_warm_up_and_smoothing_and_keeps_the_number_of_steps(trainer, general):
    stages = [0.3, 1.0, 0.3, 0.1]
    guard = prevent_collapse(
        trainer, general_text=general, general_ratio=0.1, guard=False, stage_ratios=stages
    )
    trainer.train()
    rates = [each["learning_rate"] for each in trainer.state.log_history if "loss" in each]
    assert len(rates) == 30  # 36 rows, 6 a step, 5 passes; the text takes the place of rows
    assert rates[:8] == pytest.approx([3e-4 * step / 9 for step in range(8)])
    assert (rates[9], rates[15], rates[29]) == pytest.approx((1e-3, 3e-4, 1e-4))
    assert guard.events == []


def test_a_tenth_of_the_rows_is_general_text(trainer, general, tiny_tokenizer):
    prevent_collapse(trainer, general_text=general, general_ratio=0.1, guard=False)
    data = trainer.train_dataset
    texts = [tiny_tokenizer.decode(data[index]["input_ids"]) for index in range(len(data))]
    assert len(data) == 40
    assert sum("The sea is wide" in text for text in texts) == 4
    assert data[39]["labels"] == data[39]["input_ids"]


def test_smoothing_leaves_masked_labels_alone():
    """Trainer's smoother, which the line puts on, is the objective of a run, on the labels alone."""
    torch.manual_seed(0)
    logits, ids = torch.randn(2, 6, 11), torch.randint(0, 11, (2, 6))
    labels = ids.clone()
    labels[:, :3] = IGNORED
    found = LabelSmoother(epsilon=0.1)({"logits": logits}, labels, shift_labels=True)
    kept = labels[:, 1:] != IGNORED
    expected = CrossEntropy(0.1).loss(logits[:, :-1][kept], ids[:, 1:][kept], {}) / kept.sum()
    assert found == pytest.approx(float(expected), rel=1e-5)
    logits[:, :2] += 100.0 * torch.randn(2, 2, 11)  # what predicts masked labels
    assert LabelSmoother(epsilon=0.1)({"logits": logits}, labels, shift_labels=True) == pytest.approx(
        float(found)
    )


def test_a_second_line_is_refused(trainer, general):
    prevent_collapse(trainer, general_text=general, general_ratio=0.1)
    with pytest.raises(AdapterStateError, match="watched already"):
        prevent_collapse(trainer)


def test_what_is_no_trainer_is_refused(tiny_llama):
    with pytest.raises(ConfigError, match="takes a Trainer"):
        prevent_collapse(tiny_llama)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda each: setattr(each, "lr_scheduler", object()), "stage_ratios=None"),
        (lambda each: setattr(each, "compute_loss_func", len), "label_smoothing=0"),
        (lambda each: setattr(each, "label_smoother", LabelSmoother()), "label_smoothing=0"),
        (lambda each: setattr(each, "train_dataset", iter([])), "general_ratio=0"),
        (lambda each: setattr(each, "processing_class", None), "general_ratio=0"),
        (lambda each: each.train_dataset[0].update(weight=1.0), "general_ratio=0"),
    ],
)
def test_a_part_that_does_not_fit_says_how_it_is_left_out(trainer, spoil, said):
    spoil(trainer)
    with pytest.raises(ConstrainedAdaptersError) as caught:
        prevent_collapse(trainer, stage_ratios=[0.1, 1.0], label_smoothing=0.1, general_ratio=0.1)
    assert caught.value.hint == said
    assert not any(isinstance(each, PreventCollapse) for each in trainer.callback_handler.callbacks)
    assert trainer.label_smoother is None or said == "label_smoothing=0"


def test_trls_trainer_takes_the_line(tiny_llama, tiny_tokenizer, tmp_path, general):
    datasets, trl = pytest.importorskip("datasets"), pytest.importorskip("trl")
    rows = [
        {
            "prompt": [{"role": "user", "content": f"hi {n}"}],
            "completion": [{"role": "assistant", "content": "yes yes yes yes"}],
        }
        for n in range(40)
    ]
    trainer = trl.SFTTrainer(
        model=tiny_llama,
        args=trl.SFTConfig(
            output_dir=str(tmp_path / "out"),
            max_steps=30,
            per_device_train_batch_size=8,
            learning_rate=0.1,
            use_cpu=True,
            bf16=False,
            activation_checkpointing=False,
            dataloader_pin_memory=False,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tiny_tokenizer,
    )
    with pytest.warns(UserWarning, match="answers have collapsed; back to step"):
        guard = prevent_collapse(trainer, general_text=general, general_ratio=0.1, check_every_steps=6)
        trainer.train()
    assert {"rolled_back", "finished"} <= {event["action"] for event in guard.events}


# ---- prevent_collapse of crma.yaml


def test_the_runs_own_settings_give_way_only_where_asked():
    settings = TrainingConfig(steps=9, schedule="cosine", warmup_ratio=0.1)
    staged = prevented_settings(settings, PreventCollapseConfig(stage_ratios=[0.1, 1.0]))
    assert (staged.schedule, staged.stage_ratios, staged.warmup_ratio) == ("staged", [0.1, 1.0], 0.3)
    mild = prevented_settings(settings, PreventCollapseConfig())
    assert (mild.schedule, mild.stage_ratios, mild.warmup_ratio) == ("cosine", None, 0.3)
    assert prevented_settings(settings, None) == settings
    assert prevented_settings(settings, PreventCollapseConfig(warmup_ratio=None)) == settings


def test_a_methods_own_smoothing_comes_first():
    method = MethodConfig(recipe="lora", label_smoothing=0.0)
    smoothed = PreventCollapseConfig(label_smoothing=0.1)
    assert prevented_smoothing(method, smoothed) == 0.0
    assert prevented_smoothing(MethodConfig(recipe="lora"), smoothed) == 0.1
    assert prevented_smoothing(MethodConfig(recipe="lora"), PreventCollapseConfig()) == 0.0
    assert prevented_smoothing(MethodConfig(recipe="lora"), None) == 0.0


@pytest.fixture
def switch(tiny_run):
    text = str(tiny_run.folder / "general.jsonl")
    return {"check_every_steps": 2, "general_text": text, "general_ratio": 0.1, "label_smoothing": 0.1}


def test_a_run_with_the_switch_records_curves_and_events(tiny_run, switch):
    stages = {"stage_ratios": [0.3, 1.0, 0.3, 0.1]}
    record = tiny_run("crma", names=["law"], prevent_collapse={**switch, **stages}).methods[0].records[0]
    assert record.curves["self_bleu"].steps == [0, 2, 4]
    assert record.curves["learning_rate"].values == pytest.approx([0.0, 5e-3, 3e-3, 1e-3])
    assert record.events[-1]["action"] == "finished"
    assert record.events[-1]["numbers"]["checks"] == 3


def test_a_run_that_collapses_goes_back(tiny_run, switch):
    record = (
        tiny_run(
            {"recipe": "full", "learning_rate": 0.3},
            names=["law"],
            training={"steps": 12},
            prevent_collapse={**switch, "check_every_steps": 3},
        )
        .methods[0]
        .records[0]
    )
    assert "rolled_back" in {event["action"] for event in record.events}


def test_a_run_that_was_stopped_ends_as_one_that_was_not(tiny_run, switch):
    expected = tiny_run("crma", prevent_collapse=switch, names=["law", "数学"], output="whole")
    with pytest.raises(StopError):
        tiny_run("crma", prevent_collapse=switch, names=["law", "数学"], observer=StopAt(step=("数学", 3)))
    found = tiny_run("crma", prevent_collapse=switch, names=["law", "数学"])
    kept = [numbers(each.model_dump()["methods"]) for each in (found, expected)]
    for each in kept:
        for record in each[0]["records"]:
            record["events"] = record.pop("events")[:-1]  # the last says how long looking took
    assert kept[0] == kept[1]
