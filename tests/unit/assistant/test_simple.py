"""The simplest door: subjects in any script, learnt one after another, each answered by its own adapters."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from peft import PeftModel

from constrained_adapters.assistant import SimpleDomainAdapter
from constrained_adapters.assistant import simple as module
from constrained_adapters.assistant.simple_data import read_examples
from constrained_adapters.data.examples import Example
from constrained_adapters.errors import (
    AdapterStateError,
    ConfigError,
    DataError,
    UnknownNameError,
    WorkspaceError,
)
from constrained_adapters.model.opened import open_workspace
from constrained_adapters.training.undo import remove, rollback
from constrained_adapters.workspace import find_workspace

from .conftest import pairs


def logits(made: SimpleDomainAdapter) -> torch.Tensor:
    with torch.no_grad():
        return made._model(torch.tensor([[5, 6, 7, 8]])).logits


def test_each_subject_has_a_plain_lora_in_its_folder(learnt, tmp_path, tiny_llama):
    assert learnt.domains == ("数学", "law")
    folder = tmp_path / "work" / "adapters" / "数学"
    assert {"adapter_model.safetensors", "adapter_config.json"} <= {each.name for each in folder.iterdir()}
    learnt.switch_to("数学")
    learnt.answer("数学 3?")
    found = logits(learnt)
    stock = PeftModel.from_pretrained(tiny_llama, str(folder)).eval()
    with torch.no_grad():
        wanted = stock(torch.tensor([[5, 6, 7, 8]])).logits
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_later_subjects_are_trained_under_the_memories_of_earlier_ones(learnt):
    assert learnt._model.gradient_memory("数学") is not None
    assert (learnt.workspace.memory / "base.safetensors").is_file()
    facts = json.loads((learnt.workspace.adapter("law") / "crma.json").read_text(encoding="utf-8"))
    assert facts["config"]["constraint_strength"] == 0.8


def test_questions_find_their_subject_and_are_answered(learnt):
    assert learnt.auto_detect_domain("law 7?") == "law"
    assert learnt.auto_detect_domain("%%%% 几何 %%%%") == "数学"
    assert learnt.auto_detect_domain("%" * 40) is None
    pieces: list[str] = []
    answer = learnt.answer_with_domain("law 7?", on_text=pieces.append)
    assert learnt.current == "law" and "".join(pieces).strip() == answer
    assert learnt.answer("law 7?") == answer
    learnt.answer_with_domain("%" * 40)
    assert learnt.current is None and learnt._model.active_names == []


def test_a_switch_changes_what_acts_and_loads_nothing(learnt, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("loaded again")

    monkeypatch.setattr(module, "load_base", refuse)
    monkeypatch.setattr(learnt._model, "load_adapter", refuse)
    active = {}
    for name in ("数学", "law", None):
        learnt.switch_to(name)
        learnt.answer("7?")
        active[name] = learnt._model.active_names
    assert active == {"数学": ["数学"], "law": ["数学", "law"], None: []}
    with pytest.raises(UnknownNameError, match="no subject named 'laws'") as caught:
        learnt.switch_to("laws")
    assert caught.value.hint == "law"


def test_a_new_object_goes_on_with_what_the_folder_has(learnt, make):
    learnt.switch_to("law")
    learnt.answer("law 3?")
    before = logits(learnt)
    again = make("work")
    assert again.domains == learnt.domains and again.current is None
    again.switch_to("law")
    again.answer("law 3?")
    assert torch.equal(logits(again), before)
    weights = (learnt.workspace.adapter("law") / "adapter_model.safetensors").read_bytes()
    again.train_domain("law", pairs("law"))  # the same data: nothing to do
    assert (learnt.workspace.adapter("law") / "adapter_model.safetensors").read_bytes() == weights
    with pytest.raises(AdapterStateError, match="learnt from other data"):
        again.train_domain("law", pairs("other"))
    again.train_domain("Право", pairs("Право"))
    assert again.domains == ("数学", "law", "Право")
    assert (learnt.workspace.adapter("law") / "adapter_model.safetensors").read_bytes() == weights


def test_subjects_can_be_undone_and_learnt_again_from_other_data(learnt, make):
    folder = learnt.workspace.root
    weights = (learnt.workspace.adapter("law") / "adapter_model.safetensors").read_bytes()
    assert [undo.removed for undo in rollback(folder)] == [("law",)]
    assert learnt.domains == ("数学",)
    again = make("work")
    again.train_domain("law", pairs("law"))
    assert (again.workspace.adapter("law") / "adapter_model.safetensors").read_bytes() == weights
    assert [undo.removed for undo in remove("law", folder)] == [("law",)]
    again = make("work")
    again.train_domain("law", pairs("other"))
    assert again.domains == ("数学", "law")
    assert (again.workspace.adapter("law") / "adapter_model.safetensors").read_bytes() != weights
    remove("数学", folder)
    again = make("work")
    again.switch_to("law")
    again.answer("law 3?")
    assert again._model.active_names == ["law"]


def test_what_was_stopped_goes_on_with_the_same_weights(learnt, make, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    whole = make("work")
    whole.train_domain("新", pairs("新"))
    wanted = (whole.workspace.adapter("新") / "adapter_model.safetensors").read_bytes()
    other = whole.workspace.root.parent / "other"
    shutil.copytree(whole.workspace.root, other)
    shutil.rmtree(other / "adapters" / "新")
    ledger = other / "ledger.jsonl"
    lines = ledger.read_text(encoding="utf-8").splitlines(keepends=True)
    ledger.write_text("".join(lines[:-1]), encoding="utf-8")
    stopped = make("other")
    monkeypatch.setattr(type(stopped._learner), "remember", stop)
    with pytest.raises(KeyboardInterrupt):
        stopped.train_domain("新", pairs("新"))
    monkeypatch.undo()
    fresh = make("other")
    assert fresh.domains == ("数学", "law")
    fresh.train_domain("新", pairs("新"))
    assert (other / "adapters" / "新" / "adapter_model.safetensors").read_bytes() == wanted
    assert fresh._model.gradient_memory("新") is not None


def test_the_folder_is_a_workspace_for_the_other_commands(learnt):
    workspace = find_workspace(learnt.workspace.root)
    opened = open_workspace(workspace)
    assert opened.domains == ("数学", "law")
    assert opened.adapters_for("law") == {"数学": 1.0, "law": 1.0}


def test_another_base_is_refused(learnt, tiny_llama, tiny_tokenizer, tmp_path):
    with torch.no_grad():
        tiny_llama.model.norm.weight.add_(1.0)
    tiny_llama.save_pretrained(tmp_path / "another")
    tiny_tokenizer.save_pretrained(tmp_path / "another")
    with pytest.raises(WorkspaceError, match="base model is not the one"):
        SimpleDomainAdapter(tmp_path / "another", tmp_path / "work")


def test_mistakes_of_order_and_names(make):
    made = make("empty")
    with pytest.raises(AdapterStateError, match="no subject was learnt"):
        made.auto_detect_domain("law?")
    with pytest.raises(ConfigError):
        made.train_domain("../x", pairs("x"))
    assert made.answer("anything") is not None  # the base
    assert not (made.workspace.root / "adapters").exists()


TURNS = [{"role": "user", "content": "law?"}, {"role": "assistant", "content": "aa"}]


@pytest.mark.parametrize(
    "row, form",
    [
        (("law?", "aa"), "completion"),
        (["law?", "aa"], "completion"),
        ({"question": "law?", "answer": "aa"}, "completion"),
        (TURNS, "messages"),
        ({"messages": TURNS}, "messages"),
        ("running text", "text"),
        (Example(prompt="law?", answer="aa"), "completion"),
    ],
)
def test_rows_of_any_kind_are_read(row, form):
    examples, source = read_examples("law", [row], max_examples=None, seed=0)
    assert [each.form for each in examples] == [form] and source == "a list"


def test_files_are_read_and_cut(tmp_path):
    file = tmp_path / "a.jsonl"
    rows = [{"prompt": f"law {n}?", "answer": "aa"} for n in range(30)]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    examples, source = read_examples("law", file, max_examples=5, seed=0)
    assert len(examples) == 5 and source == str(file)


@pytest.mark.parametrize("data", [[], None, 7, [("a", "b", "c")], [7], [("a", 1)]])
def test_what_is_no_data_is_refused(data):
    with pytest.raises(DataError):
        read_examples("law", data, max_examples=None, seed=0)
