"""A finished tiny run, and a base with adapters, scored again."""

from __future__ import annotations

import json
import math

import pytest

from constrained_adapters.assessment.asked import read_sets, scoring_of
from constrained_adapters.assessment.assess import ADAPTED, BASE, Asked, assess_adapters
from constrained_adapters.assessment.of_run import GENERAL, assess_run
from constrained_adapters.assessment.record import load_assessment
from constrained_adapters.assessment.scoring import Scoring
from constrained_adapters.assessment.sets import read_set
from constrained_adapters.config.run import DomainConfig
from constrained_adapters.errors import ConfigError, DataError, UnknownNameError, WorkspaceError
from constrained_adapters.evaluation.significance import paired_differences
from constrained_adapters.results import Assessment
from constrained_adapters.training.run import run_config
from constrained_adapters.workspace import Workspace

from ..training.conftest import DOMAINS

NAMES = DOMAINS[:2]


def quiet(text: str) -> None:
    """Progress is not looked at here."""


def write_rows(path, rows):
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def own_set(tmp_path) -> str:
    rows = [
        {"prompt": f"which letter is {i}?", "answer": "xyz"[i % 3], "choices": ["x", "y", "z"]}
        for i in range(6)
    ]
    return write_rows(tmp_path / "mine.jsonl", [{**rows[0], "superseded": True}, *rows[1:]])


@pytest.mark.parametrize("recipe", ["crma", "separate", "joint"])
def test_a_run_is_scored_again_as_it_was_measured(tiny_run, recipe):
    before = tiny_run(recipe, names=NAMES).methods[0]
    found = assess_run(Workspace(tiny_run.folder / "out" / recipe), Asked(Scoring()), quiet)
    assert found.domains == NAMES and found.models == [BASE, ADAPTED]
    for metric in ("loss", "exact_match"):
        for mine, theirs in zip(found.matrices[metric], before.matrices[metric], strict=True):
            assert mine == pytest.approx(theirs, rel=1e-4)
    assert found.matrices["perplexity"][0][0] == pytest.approx(math.exp(found.matrices["loss"][0][0]))
    assert found.general_nats[0] == pytest.approx(before.general_nats[0], rel=1e-4)
    for key, value in found.summary.items():
        assert value == pytest.approx(before.summary[key], rel=1e-3, abs=1e-3), key
    assert set(found.intervals) == set(before.intervals) >= {"accuracy", "drift_percent"}
    assert {each.name: each.group for each in found.sets} == {
        "old domains": "old",
        "new domain": "new",
        "all domains": "mixed",
        "law": "domain",
        "数学": "domain",
        GENERAL: "general",
    }
    assert found.items[ADAPTED]["law"].keys == before.items["law"].keys
    assert Assessment.model_validate_json(found.model_dump_json()) == found


def test_a_set_of_the_users_is_scored_with_f1_and_its_superseded_facts_apart(tiny_run, own_set):
    tiny_run("lora", names=["law"])
    sets = read_sets([f"mine={own_set}"])
    scoring = scoring_of(
        ["loss", "choice_accuracy", "token_f1", "exact_match"], batch_size=4, max_new_tokens=2
    )
    asked = Asked(scoring, sets, own_sets=False, general=False)
    found = assess_run(Workspace(tiny_run.folder / "out" / "lora"), asked, quiet)
    assert found.domains == [] and found.matrices == {} and found.summary == {}
    scores = found.sets[0].scores[ADAPTED]
    assert {"loss", "choice_accuracy", "token_f1", "superseded_exact_match", "perplexity"} <= set(scores)
    assert 0.0 <= scores["token_f1"].value <= 1.0
    assert scores["loss"].low <= scores["loss"].value <= scores["loss"].high
    assert found.sets[0].num_items == 6 and found.items[BASE]["mine"].superseded[0]


def test_a_base_with_adapters_is_scored_beside_the_base(tiny_run, own_set, tmp_path):
    tiny_run("lora", names=["law"])
    home = tiny_run.folder / "out" / "lora" / "adapters" / "law"
    asked = Asked(Scoring(max_length=48), read_sets([f"mine={own_set}"]))
    found = assess_adapters(str(tiny_run.folder / "base"), [home], asked, quiet)
    assert found.models == [BASE, ADAPTED] and [each.group for each in found.sets] == ["given"]
    loss = [found.sets[0].scores[model]["loss"].value for model in (BASE, ADAPTED)]
    assert loss[0] != loss[1]
    alone = assess_adapters(str(tiny_run.folder / "base"), [], asked, quiet)
    assert alone.models == [BASE]
    assert alone.sets[0].scores[BASE]["loss"].value == pytest.approx(loss[0])
    differences = paired_differences(found.items[ADAPTED], alone.items[BASE])
    assert {each.metric for each in differences} == {"loss", "exact_match", "choice_accuracy"}
    file = tmp_path / "record.json"
    file.write_text(found.model_dump_json(), encoding="utf-8")
    assert load_assessment(file) == found


def test_what_was_trained_on_is_refused_or_told(tiny_run):
    tiny_run("lora", names=["law"])
    workspace = Workspace(tiny_run.folder / "out" / "lora")
    sets = read_sets([f"again={tiny_run.folder / 'law.jsonl'}"])
    with pytest.raises(DataError, match="set 'again' overlaps the training data"):
        assess_run(workspace, Asked(Scoring(), sets), quiet)
    found = assess_run(workspace, Asked(Scoring(), sets, allow_overlap=True, own_sets=False), quiet)
    assert "of 24 items of again" in found.notes[0] and "stand in the training data" in found.notes[0]


def test_a_changed_file_is_told(tiny_run):
    tiny_run("lora", names=["law"])
    path = tiny_run.folder / "law.jsonl"
    path.write_text(path.read_text("utf-8").replace("law 3?", "law three?"), "utf-8")
    found = assess_run(Workspace(tiny_run.folder / "out" / "lora"), Asked(Scoring()), quiet)
    assert any("data of law has changed" in note for note in found.notes)


def test_sets_that_cannot_be_are_refused(tiny_run, own_set, tmp_path):
    with pytest.raises(ConfigError, match="a set is NAME=DATA"):
        read_sets([own_set])
    with pytest.raises(ConfigError, match="a set's name"):
        read_set("a/b", own_set)
    with pytest.raises(DataError, match="no such data file"):
        read_set("mine", str(tmp_path / "mine.jsnl"))
    with pytest.raises(UnknownNameError, match="no metric named 'exact'"):
        scoring_of(["exact"], batch_size=1, max_new_tokens=1)
    base = str(tiny_run.folder / "base")
    with pytest.raises(DataError, match="nothing to score"):
        assess_adapters(base, [], Asked(Scoring()), quiet)
    both = read_sets([f"mine={own_set}", f"mine={own_set}"])
    with pytest.raises(DataError, match="one name"):
        assess_adapters(base, [], Asked(Scoring(), both), quiet)
    text = write_rows(tmp_path / "text.jsonl", [{"text": "It rained."}])
    with pytest.raises(DataError, match="'exact_match' does not fit set 'text'"):
        assess_adapters(base, [], Asked(Scoring(("exact_match",)), read_sets([f"text={text}"])), quiet)


def test_a_record_of_another_kind_is_told(tmp_path):
    file = tmp_path / "a.json"
    with pytest.raises(WorkspaceError, match="no assessment here"):
        load_assessment(file)
    file.write_text('{"kind": "other"}', encoding="utf-8")
    with pytest.raises(WorkspaceError, match="damaged or of another version"):
        load_assessment(file)


def test_a_packaged_set_is_its_test_split():
    found = read_set("sums", "packaged:programming")
    assert len(found.examples) > 100 and found.kind == "given"


def test_a_run_scores_superseded_facts_apart(tiny_run):
    rows = [json.loads(line) for line in (tiny_run.folder / "law.jsonl").read_text("utf-8").splitlines()]
    write_rows(
        tiny_run.folder / "test.jsonl", [{**row, "superseded": i > 0} for i, row in enumerate(rows[:3])]
    )
    write_rows(tiny_run.folder / "train.jsonl", rows[3:])
    config = tiny_run.config("lora", names=["law"])
    parts = {part: str(tiny_run.folder / f"{part}.jsonl") for part in ("train", "test")}
    config.domains = [DomainConfig(name="law", **parts)]
    found = run_config(config).methods[0]
    assert {"exact_match", "superseded_exact_match", "superseded_loss"} <= set(found.matrices)
    assert found.items["law"].superseded == [False, True, True]
    assert found.matrices["loss"][1][0] == pytest.approx(found.items["law"].loss[0], rel=1e-5)
    assert 0.0 <= found.summary["superseded_kept"] <= 1.0
    again = assess_run(Workspace(tiny_run.folder / "out" / "lora"), Asked(Scoring()), quiet)
    assert again.matrices["superseded_loss"][1] == pytest.approx(
        found.matrices["superseded_loss"][1], rel=1e-4
    )
