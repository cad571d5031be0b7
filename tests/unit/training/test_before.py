"""A run begins with a diagnosis: once, without a trace in its numbers, and kept where the report finds it."""

from __future__ import annotations

import json

import pytest
import torch

from constrained_adapters.config.run import RunConfig
from constrained_adapters.errors import WorkspaceError
from constrained_adapters.results import load_results
from constrained_adapters.training import before
from constrained_adapters.training.observer import SilentObserver

from .conftest import DOMAINS, numbers


class Listener(SilentObserver):
    def __init__(self) -> None:
        self.told: list[str] = []

    def message(self, text: str) -> None:
        self.told.append(text)


def contradict(tiny_run) -> None:
    """The second domain asks some of the first one's questions and answers otherwise."""
    rows = [{"prompt": f"law {i}?", "answer": "other" if i < 6 else "zz" + "abcd"[i % 4]} for i in range(6)]
    rows += [{"prompt": f"数学 {i}?", "answer": "abcd"[i % 4] * 2} for i in range(18)]
    (tiny_run.folder / "数学.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def test_by_default_the_data_alone_is_looked_at(tiny_run):
    contradict(tiny_run)
    listener = Listener()
    result = tiny_run("lora", names=DOMAINS[:2], observer=listener)
    first, second = result.diagnosis.domains
    assert result.diagnosis.mode == "data" and first.pairs == [] and first.level is None
    assert (
        first.num_examples == 24 and first.num_train == 20 and any("Split by" in note for note in first.notes)
    )
    assert second.num_contradictions == second.pairs[0].num_contradictions == 6
    assert second.contradictions[0].where == "law" and second.contradictions[0].answer == "other"
    assert second.level == "high" and second.advice == ""
    assert set(second.pairs[0].signals) == {"kl_nats", "jaccard"}
    (line,) = [text for text in listener.told if "contradictions" in text]
    assert line.startswith("数学: 6 contradictions with law: 'law ")
    assert load_results(tiny_run.folder / "out" / "results.json").diagnosis == result.diagnosis


def test_a_full_diagnosis_changes_no_number_of_the_run(tiny_run):
    state = torch.get_rng_state()
    whole = tiny_run("crma", names=DOMAINS[:2], diagnosis="full", output="full")
    torch.set_rng_state(state)
    off = tiny_run("crma", names=DOMAINS[:2], diagnosis="off", output="off")
    assert numbers(whole.methods[0].model_dump()) == numbers(off.methods[0].model_dump())
    assert off.diagnosis.domains == [] and off.diagnosis.mode == "off"
    first, second = whole.diagnosis.domains
    assert [pair.old for pair in first.pairs] == ["base"] and [pair.old for pair in second.pairs] == ["law"]
    assert second.pairs[0].signals["trial_increase"] is not None and second.num_asked == 24
    assert second.level in {"low", "medium", "high"} and second.advice and second.reasons
    assert not (tiny_run.folder / "off" / before.FILE).exists()


def test_a_diagnosis_leaves_the_random_state_alone(tiny_run, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "constrained_adapters.training.run.diagnose_before",
        lambda *args, **more: (
            seen.append((torch.get_rng_state(), found(*args, **more), torch.get_rng_state())[0::2])
            or before.DiagnosisRecord()
        ),
    )
    found = before.diagnose_before
    tiny_run("base", names=DOMAINS[:2], diagnosis="full")
    ((one, other),) = seen
    assert torch.equal(one, other)


def test_it_is_done_once_and_only_new_domains_are_added(tiny_run, monkeypatch):
    tiny_run("lora", names=DOMAINS[:2])
    whole = tiny_run("lora", output="whole").diagnosis.domains
    done = []

    def diagnose(probe, olds, new):
        done.append(new.name)
        return original(probe, olds, new)

    original = before.diagnose
    monkeypatch.setattr(before, "diagnose", diagnose)
    again = tiny_run("lora")
    assert done == [DOMAINS[2]]
    assert numbers([each.model_dump() for each in again.diagnosis.domains]) == numbers(
        [each.model_dump() for each in whole]
    )
    tiny_run("lora")
    assert done == [DOMAINS[2]]
    (tiny_run.folder / "out" / before.FILE).write_text("torn", encoding="utf-8")
    assert len(tiny_run("lora").diagnosis.domains) == 3 and done == [DOMAINS[2], *DOMAINS]


def test_changed_settings_are_refused_before_anything_is_diagnosed(tiny_run, monkeypatch):
    tiny_run("lora", names=DOMAINS[:2])
    monkeypatch.setattr(before, "diagnose", None)
    with pytest.raises(WorkspaceError, match="settings changed"):
        tiny_run("lora", names=DOMAINS[:2], diagnosis="full", seed=1)


def test_a_private_run_keeps_counts_and_no_text(tiny_run):
    contradict(tiny_run)
    result = tiny_run("lora", names=DOMAINS[:2], private=True)
    second = result.diagnosis.domains[1]
    assert second.num_contradictions == 6 and second.contradictions == []
    assert "other" not in (tiny_run.folder / "out" / before.FILE).read_text(encoding="utf-8")


def test_a_record_of_before_there_was_a_diagnosis_still_reads(tiny_run):
    result = tiny_run("base", names=DOMAINS[:2], diagnosis="off")
    file = tiny_run.folder / "old.json"
    content = json.loads(result.model_dump_json())
    for old in ({**content, "diagnosis": {}}, {key: v for key, v in content.items() if key != "diagnosis"}):
        file.write_text(json.dumps(old), encoding="utf-8")
        assert load_results(file).diagnosis.domains == []


def test_the_setting_is_one_of_three():
    with pytest.raises(ValueError, match="diagnosis"):
        RunConfig(domains=[{"name": "law", "data": "law.jsonl"}], diagnosis="some")
