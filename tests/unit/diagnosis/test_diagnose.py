"""A whole diagnosis of a tiny model: old against new, the base's own text, memories, and the command."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from constrained_adapters.cli.main import app
from constrained_adapters.config.crma import CRMAConfig
from constrained_adapters.data.examples import Domain, Example
from constrained_adapters.diagnosis.beliefs import denied_beliefs
from constrained_adapters.diagnosis.diagnose import diagnose, diagnose_sequence
from constrained_adapters.diagnosis.probe import Probe
from constrained_adapters.diagnosis.settings import DiagnosisSettings
from constrained_adapters.diagnosis.texts import TextProbe
from constrained_adapters.errors import DataError
from constrained_adapters.model import CRMAModel
from constrained_adapters.models.targets import resolve_targets

SMALL = {"trial_steps": 8, "trial_rate": 2e-2, "batch_size": 4, "probe_examples": 4, "max_length_tokens": 64}


def domain(name: str, answer: str, *, asked: str | None = None) -> Domain:
    rows = tuple(Example(prompt=f"{asked or name} {i} is?", answer=answer) for i in range(12))
    return Domain(name, rows[:8], rows[8:10], rows[10:], "completion", name, "f")


@pytest.fixture
def probe(tiny_llama, tiny_tokenizer):
    modules = {name: tiny_llama.get_submodule(name) for name in resolve_targets(tiny_llama)}
    return Probe(tiny_llama, tiny_tokenizer, modules, DiagnosisSettings(**SMALL))


def test_opposite_answers_are_found_by_the_trial_and_by_the_facts(probe):
    olds = domain("law", "aaaa"), domain("kin", "aaaa", asked="Law:"), domain("foe", "zzzz", asked="law")
    sides = [probe.domain(each) for each in olds]
    kin, foe = diagnose(probe, sides[:1], sides[1]), diagnose(probe, sides[:1], sides[2])
    assert kin.pairs[0].signals.gradient_cosine > foe.pairs[0].signals.gradient_cosine
    assert foe.pairs[0].signals.trial_increase > 0.25 > kin.pairs[0].signals.trial_increase
    assert (foe.level, kin.level) == ("high", "low")
    assert len(foe.pairs[0].contradictions) == 12 and not kin.pairs[0].contradictions
    assert foe.num_examples == {"law": 12, "foe": 12}


def test_a_diagnosis_repeats_and_leaves_the_model_as_it_was(probe, tiny_llama):
    before = {name: value.clone() for name, value in tiny_llama.state_dict().items()}
    sides = [probe.domain(domain("law", "aa")), probe.domain(domain("med", "bb"))]
    modules = dict(probe.modules)
    again = Probe(tiny_llama, probe.tokenizer, modules, probe.settings)
    first, second = (diagnose(each, sides[:1], sides[1]).plain() for each in (probe, again))
    assert first == second
    assert all(torch.equal(value, before[name]) for name, value in tiny_llama.state_dict().items())
    json.dumps(first)


def test_without_old_data_the_base_writes_what_stands_in(probe):
    found = diagnose(probe, [], probe.domain(domain("med", "bb")))
    (pair,) = found.pairs
    assert pair.old == "base" and pair.signals.trial_before_nats == pytest.approx(
        pair.signals.old_nats, abs=1e-4
    )
    assert found.advice.recipe in {"lora", "crma"}  # nothing could be replayed


def test_no_trial_leaves_the_level_to_the_distances(tiny_llama, tiny_tokenizer, probe):
    settings = DiagnosisSettings(**{**SMALL, "trial_steps": 0}, low_jaccard=1.0, conflict_cosine=-1.0)
    quick = Probe(tiny_llama, tiny_tokenizer, probe.modules, settings)
    sides = [quick.domain(domain("law", "aa")), quick.domain(domain("med", "bb"))]
    found = diagnose(quick, sides[:1], sides[1])
    assert found.pairs[0].signals.trial_increase is None
    assert found.level == "medium"


def test_texts_alone_are_compared_without_a_model(tiny_tokenizer):
    probe = TextProbe(tiny_tokenizer, DiagnosisSettings(**SMALL))
    sides = [probe.domain(each) for each in (domain("law", "aaaa"), domain("foe", "zzzz", asked="law"))]
    first, second = diagnose_sequence(probe, sides)
    assert first.pairs == () and first.level is None and first.advice is None
    (pair,) = second.pairs
    assert pair.level == second.level == "high" and len(pair.contradictions) == 12
    assert pair.signals.gradient_cosine is pair.signals.trial_increase is None
    assert pair.signals.jaccard > 0.5


def test_memories_speak_without_data(tiny_llama, tiny_tokenizer):
    config = CRMAConfig(base_model_name="tiny", adapter_dim=2, protect_base=False, gradient_memory_size=8)
    model = CRMAModel(tiny_llama, config, tokenizer=tiny_tokenizer)
    model.create_adapter("law")
    model.set_active_adapter("law")
    old = Probe(model, tiny_tokenizer, model._layers(), DiagnosisSettings(**SMALL)).domain(
        domain("law", "aa")
    )
    rows = [(torch.tensor(row.input_ids), torch.tensor(row.labels)) for row in old.probe]
    memory = model.update_gradient_memory("law", rows)
    model.freeze_adapter("law")
    model.eval()
    probe = Probe(model, tiny_tokenizer, model._layers(), DiagnosisSettings(**SMALL))
    found = diagnose(probe, [], probe.domain(domain("med", "bb")), memories={"law": memory})
    assert 0.0 < found.remembered["law"].closed_share <= 1.0
    assert found.remembered["law"].predicted_increase_nats is not None


def test_a_sequence_is_diagnosed_domain_by_domain_and_the_same_data_is_refused(probe):
    sides = [probe.domain(domain(name, name)) for name in ("law", "med", "art")]
    found = diagnose_sequence(probe, sides)
    assert [[pair.old for pair in each.pairs] for each in found] == [["base"], ["law"], ["law", "med"]]
    with pytest.raises(DataError, match="all of the new data is old data"):
        diagnose(probe, sides[:1], sides[0])


def test_shared_examples_and_answers_that_are_all_the_same_are_said(probe):
    old, new = domain("law", "yes"), domain("med", "yes")
    mixed = Domain("mix", (*new.train, old.train[0]), new.validation, new.test, "completion", "mix", "f")
    notes = diagnose(probe, [probe.domain(old)], probe.domain(mixed)).notes["mix"]
    assert "All 13 answers are the same." in notes
    assert any(note.startswith("1 examples (8%) stand in law too") for note in notes)


def test_beliefs_are_the_models_sure_answers_and_its_habits_are_none(tiny_llama, tiny_tokenizer):
    questions = [Example(prompt=f"{i}?", answer="a", choices=("a", "b")) for i in "qwertyui"]

    def beliefs(examples, least=0.0):
        return denied_beliefs(tiny_llama, tiny_tokenizer, examples, min_confidence=least, max_length=64)

    swapped = [Example(prompt=each.prompt, answer="b", choices=each.choices) for each in questions]
    said = {each.question: each.belief for each in (*beliefs(questions), *beliefs(swapped))}
    assert set(said.values()) <= {"a", "b"} and len(set(said.values())) < 2  # the other is said too often
    assert all(0.5 <= each.confidence <= 1.0 for each in beliefs(questions))
    assert beliefs(questions, least=1.0) == []
    assert beliefs([Example(text="running text")]) == []


def write(path, name: str, answer: str) -> str:
    rows = [{"prompt": f"{name} {i} is?", "answer": answer + "bcdefghijklm"[i]} for i in range(12)]
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def command(tmp_path, tiny_llama, tiny_tokenizer):
    tiny_llama.save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")

    def run(*arguments: str):
        sizes = [f"--set={name}={value}" for name, value in SMALL.items()]
        names_its_base = "--run" in arguments or arguments[:1] == (str(tmp_path / "crma.yaml"),)
        base = [] if names_its_base else ["--base", str(tmp_path / "base")]
        return CliRunner().invoke(app, ["diagnose", *arguments, *base, *sizes])

    return run


def test_the_command_says_why_and_writes_settings_that_read(command, tmp_path):
    from constrained_adapters.config.yaml_file import read_config

    old, new = write(tmp_path / "law.jsonl", "law", "a"), write(tmp_path / "med.jsonl", "law", "z")
    done = command("--old", old, "--new", new, "--write", str(tmp_path / "crma.yaml"))
    assert done.exit_code == 0, done.output
    assert "med: HIGH risk" in done.output and "Contradictions (12)" in done.output
    config = read_config(tmp_path / "crma.yaml")
    assert [each.data for each in config.domains] == [old, new]
    again = command("--old", old, "--new", new, "--write", str(tmp_path / "crma.yaml"))
    assert again.exit_code == 2 and "there already" in again.output
    plain = command("--old", old, "--new", new, "--json")
    (found,) = json.loads(plain.stdout)
    assert found["level"] == "high" and found["pairs"][0]["signals"]["trial_increase"] > 0
    sequence = command(str(tmp_path / "crma.yaml"))
    assert sequence.exit_code == 0 and "against law" in sequence.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "needs new data"),
        (("--new", "a.jsonl", "--set", "high_increas=1"), "no setting named 'high_increas'"),
        (("--new", "a.jsonl", "--set", "trial_steps"), "NAME=VALUE"),
        (("--new", "a.jsonl", "--old", "b.jsonl", "--run", "x"), "--old has no effect"),
        (("--new", "nowhere.jsonl"), "no such data file"),
    ],
)
def test_wrong_wishes_are_refused(command, arguments, message):
    done = command(*arguments)
    assert done.exit_code == 2
    assert message in done.output
