"""What was known before training, and what was evaluated afterwards, on the page."""

from __future__ import annotations

import re

import pytest
from typer.testing import CliRunner

from constrained_adapters.cli.main import app
from constrained_adapters.report import render_report
from constrained_adapters.report.before import before_training
from constrained_adapters.report.several import combined
from constrained_adapters.results import DiagnosisRecord

from .factory import ATTACK, make_assessment, make_diagnosis, make_result


def plain(html: str) -> str:
    return re.sub(r"[ \n]+", " ", re.sub(r"<[^>]+>", " ", html))


def test_a_full_diagnosis_shows_all_that_was_measured():
    found = before_training(make_diagnosis())
    assert found.pairs.headings == [
        "Domain",
        "Against",
        "Risk",
        "Trial: rise of the earlier loss",
        "Contradictions",
        "Base’s loss, earlier / new, nats",
        "Gradients’ cosine",
        "KL of tokens, nats",
        "Shared vocabulary (Jaccard)",
    ]
    assert found.pairs.rows[0] == [
        "medicine", "text of the base", "high", "+62\u00a0%", "0", "2.50 / 3.50", "−0.25", "1.25", "0.12"
    ]  # fmt: skip
    assert [row[:2] for row in found.pairs.rows[1:]] == [
        ["数学", "medicine"],
        ["Право", "medicine"],
        ["Право", "数学"],
    ]
    assert found.domains.headings[-1] == "Base is sure of another answer"
    assert found.domains.rows[2] == ["Право", "1,000", "1,300", "1", "11", "1 of 32"]
    assert [each.recipe for each in found.advice] == ["replay + ewc_lora"] * 3


def test_a_diagnosis_of_data_alone_leaves_out_what_only_a_model_can_say():
    found = before_training(make_diagnosis(mode="data"))
    headings = ["Domain", "Against", "Contradictions", "KL of tokens, nats", "Shared vocabulary (Jaccard)"]
    assert found.pairs.headings == headings and len(found.pairs.rows) == 3
    assert len(found.domains.headings) == 5 and found.advice == [] and found.beliefs == []


def test_contradictions_are_pairs_with_the_changed_words_marked():
    found = before_training(make_diagnosis())
    assert (len(found.contradictions), len(found.more_contradictions), found.num_contradictions) == (8, 2, 12)
    first, second = found.contradictions[:2]
    assert (first.domain, first.where, first.other_answer) == ("Право", "medicine", "other 0")
    assert [piece.kind for piece in first.other_question] == ["same"]
    assert second.where == "Право too" and second.other_question[-1].kind == "added"
    assert first.language is not None


@pytest.mark.parametrize("mode", ["data", "full"])
def test_the_page_has_the_section_and_a_link_to_it(mode):
    html = render_report(make_result(diagnosis=make_diagnosis(mode=mode)))
    assert '<a href="#before">Before training</a>' in html and 'id="before"' in html
    assert "Contradictions" in plain(html) and "mark as superseded" in html
    assert ("What was advisable" in html) == ("sure of and the data denies" in html) == (mode == "full")


def test_nothing_diagnosed_leaves_no_trace():
    html = render_report(make_result(diagnosis=DiagnosisRecord()))
    assert "Before training" not in html


def test_a_private_run_shows_counts_only():
    record = make_diagnosis()
    domains = [each.model_copy(update={"contradictions": [], "beliefs": []}) for each in record.domains]
    html = render_report(make_result(diagnosis=DiagnosisRecord(mode="full", domains=domains)))
    assert "12 were found; a private run lists none." in html


def test_what_attacks_is_text():
    record = make_diagnosis()
    last = record.domains[-1]
    attack = last.contradictions[0].model_copy(update=dict.fromkeys(("question", "answer", "where"), ATTACK))
    domains = [last.model_copy(update={"name": ATTACK, "notes": [ATTACK], "contradictions": [attack]})]
    html = render_report(make_result(diagnosis=DiagnosisRecord(mode="data", domains=domains)))
    assert "<script" not in html and "<img" not in html


def test_several_runs_of_the_same_domains_say_it_once():
    runs = [("march", make_result(diagnosis=DiagnosisRecord())), ("may", make_result())]
    assert combined(runs).diagnosis == runs[1][1].diagnosis


def test_tasks_and_sets_that_were_evaluated_stand_beside_the_base():
    html = render_report(make_result(), [make_assessment()])
    section = plain(html[html.index('id="assessed"') :])
    assert "colours 12 acc 25.0\u00a0% 75.0\u00a0% [65.0, 85.0]" in section
    assert "texts – word_perplexity 21.500 22.250 [22.150, 22.350]" in section
    assert "medicine 40 Loss, nats 5.000 1.500 [1.400, 1.600]" in section
    assert "40 Token F1 10.0\u00a0% 62.5\u00a0% [52.5, 72.5]" in section
    assert "Superseded: exact match" in section and "has changed since the run" in section
    assert '<a href="#assessed">Evaluated afterwards</a>' in html
    assert 'id="assessed"' not in render_report(make_result())


def test_token_f1_is_a_column_a_curve_and_a_heat_map():
    result = make_result(["crma"])
    method = result.methods[0]
    matrices = {**method.matrices, "token_f1": method.matrices["exact_match"]}
    summary = {**method.summary, "token_f1": 0.5}
    html = render_report(
        result.model_copy(
            update={"methods": [method.model_copy(update={"matrices": matrices, "summary": summary})]}
        )
    )
    assert html.count("Token F1") >= 3 and 'id="method-1-token-f1-title"' in html


def test_the_command_shows_a_record_of_crma_eval(tmp_path):
    (tmp_path / "results.json").write_text(make_result().model_dump_json(), encoding="utf-8")
    record = tmp_path / "crma.json"
    record.write_text(make_assessment().model_dump_json(), encoding="utf-8")
    done = CliRunner().invoke(app, ["report", str(tmp_path), "--eval", str(record)])
    assert done.exit_code == 0, done.output
    assert "colours" in (tmp_path / "report.html").read_text(encoding="utf-8")
    missing = CliRunner().invoke(app, ["report", str(tmp_path), "--eval", str(tmp_path / "none.json")])
    assert missing.exit_code != 0
