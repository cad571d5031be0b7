import json
import subprocess
import sys
import types

import pytest

from constrained_adapters.config.run import DomainConfig
from constrained_adapters.data.examples import Example, fingerprint_examples
from constrained_adapters.data.load import load_domain
from constrained_adapters.errors import ConfigError, DataError

CITIES = [
    f"{a}{b}{c}" for a in ("kor", "mel", "tun", "sab") for b in ("ia", "ov", "ek") for c in ("d", "ly", "ns")
]


def rows(start, stop):
    return [{"question": f"Where is {CITIES[n]}-{CITIES[-n]}?", "answer": str(n)} for n in range(start, stop)]


def write(path, items):
    path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    return str(path)


def test_one_file_is_split_noted_and_fingerprinted(tmp_path):
    source = write(tmp_path / "law.jsonl", rows(0, 30) + rows(0, 3))
    domain = load_domain(DomainConfig(name="law", data=source), seed=1)
    assert [len(part) for part in (domain.train, domain.validation, domain.test)] == [24, 3, 3]
    assert domain.name == "law" and domain.form == "completion" and domain.source == source
    assert domain.fingerprint == fingerprint_examples(domain.train, domain.validation, domain.test)
    assert domain.notes[0] == "Form completion, found by name: prompt from 'question', answer."
    assert domain.notes[1].startswith("3 exact duplicates of 33")
    assert load_domain(DomainConfig(name="law", data=source), seed=1) == domain
    assert load_domain(DomainConfig(name="law", data=source), seed=2).fingerprint != domain.fingerprint


def test_files_of_a_split_are_kept_and_leaks_leave_train(tmp_path):
    config = DomainConfig(
        name="law",
        train=write(tmp_path / "a.jsonl", rows(0, 20)),
        validation=write(tmp_path / "b.jsonl", rows(18, 24)),
        test=write(tmp_path / "c.jsonl", rows(23, 30)),
    )
    domain = load_domain(config, seed=0)
    assert [e.answer for e in domain.train] == [str(n) for n in range(18)]
    assert [e.answer for e in domain.validation] == [str(n) for n in range(18, 23)]
    assert [e.answer for e in domain.test] == [str(n) for n in range(23, 30)]
    assert any(note.startswith("2 train examples stand in validation") for note in domain.notes)
    assert domain.source.count("jsonl") == 3


def test_a_missing_validation_part_is_taken_from_train(tmp_path):
    config = DomainConfig(
        name="law",
        train=write(tmp_path / "a.jsonl", rows(0, 20)),
        test=write(tmp_path / "c.jsonl", rows(20, 30)),
    )
    domain = load_domain(config, seed=0)
    assert [len(part) for part in (domain.train, domain.validation, domain.test)] == [18, 2, 10]
    assert "validation taken from train." in domain.notes


def test_caps_are_noted(tmp_path):
    source = write(tmp_path / "law.jsonl", rows(0, 30))
    domain = load_domain(
        DomainConfig(name="law", data=source, max_train=5, max_validation=9, max_test=1), seed=0
    )
    assert [len(part) for part in (domain.train, domain.validation, domain.test)] == [5, 3, 1]
    assert [note for note in domain.notes if "max_" in note] == [
        "train: 5 of 24 examples chosen (max_train).",
        "test: 1 of 3 examples chosen (max_test).",
    ]


def test_too_few_examples_say_how_many(tmp_path):
    source = write(tmp_path / "law.jsonl", rows(0, 7) + rows(0, 7))
    with pytest.raises(DataError, match="too few") as caught:
        load_domain(DomainConfig(name="law", data=source), seed=0)
    assert caught.value.got.startswith("7 different ones")


def test_a_train_file_that_is_all_held_out_is_an_error(tmp_path):
    path = write(tmp_path / "a.jsonl", rows(0, 12))
    with pytest.raises(DataError, match="no examples are left for train") as caught:
        load_domain(DomainConfig(name="law", train=path, test=path), seed=0)
    assert "12 train examples stand in test" in caught.value.got


@pytest.fixture
def packaged(monkeypatch):
    module = types.ModuleType("constrained_adapters.data.packaged")
    examples = [Example(prompt=row["question"], answer=row["answer"]) for row in rows(0, 20)]
    module.load_packaged = lambda name: {
        "train": examples[:16],
        "validation": examples[16:18],
        "test": examples[18:] if name == "cities" else [],
    }
    monkeypatch.setitem(sys.modules, "constrained_adapters.data.packaged", module)


def test_packaged_data_keeps_its_split(packaged):
    domain = load_domain(DomainConfig(name="geography", data="packaged:cities", max_train=4), seed=0)
    assert [len(part) for part in (domain.train, domain.validation, domain.test)] == [4, 2, 2]
    assert domain.source == "packaged:cities" and domain.notes[0] == "Form completion, as packaged."


@pytest.mark.parametrize("setting", [{"prompt": "a"}, {"subset": "main"}, {"validation": "b.jsonl"}])
def test_settings_without_effect_are_refused(packaged, setting):
    with pytest.raises(ConfigError, match="no effect"):
        load_domain(DomainConfig(name="law", data="packaged:cities", **setting), seed=0)


def test_loading_data_needs_no_torch():
    code = "import sys, constrained_adapters.data.load; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
