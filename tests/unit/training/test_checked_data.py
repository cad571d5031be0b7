"""What a run is scored on is looked at before a model is loaded: refused, told, and the way out."""

from __future__ import annotations

import hashlib
import json

import pytest

from constrained_adapters.config.run import EvaluationConfig
from constrained_adapters.data.examples import Domain, Example
from constrained_adapters.errors import DataError
from constrained_adapters.training.checked_data import check_domains, tell_cut

from .conftest import DOMAINS


def asked(question: str, answer: str, *choices: str) -> Example:
    return Example(prompt=question, answer=answer, choices=choices)


def domain(
    name: str, answers: str = "abcdef", *, test: list[Example] | None = None, form="completion"
) -> Domain:
    words = [hashlib.sha256(f"{name} {i}".encode()).hexdigest()[:30] for i in range(18)]
    rows = [asked(f"{word}?", answers[i % len(answers)] * 3) for i, word in enumerate(words)]
    held = rows[15:] if test is None else test
    return Domain(name, tuple(rows[:12]), tuple(rows[12:15]), tuple(held), form, name, "f")


def check(*domains: Domain, general=(), **evaluation) -> list[str]:
    return check_domains(domains, EvaluationConfig(**evaluation), general)


def test_good_data_has_nothing_said_of_it():
    choices = [asked(f"{i}?", "ab"[i % 2], "a", "b") for i in range(4)]
    text = Domain(
        "text", *([Example(text=f"{part} {i} x y z") for i in range(3)] for part in "abc"), "text", "", ""
    )
    assert check(domain("law"), domain("数学", test=choices), text) == []


@pytest.mark.parametrize(
    ("test", "evaluation", "words"),
    [
        ([], {}, "set 'law' is empty"),
        (
            [asked("1?", "a", "a", "b"), asked("2?", "a", "a", "b")],
            {},
            "one class only(?s:.*)metrics: .loss, exact_match",
        ),
        ([asked("1?", "c", "a", "b")], {}, "not among the choices"),
        (None, {"metrics": ["choice_accuracy"]}, "does not fit(?s:.*)leave evaluation.metrics out"),
        (None, {"split": "validation", "metrics": ["choice_accuracy"]}, "does not fit"),
    ],
)
def test_what_could_not_be_read_is_refused(test, evaluation, words):
    with pytest.raises(DataError, match=words):
        check(domain("law", test=test), **evaluation)


def test_the_way_out_of_one_class_is_to_score_something_else():
    same = [asked("1?", "aaa", "aaa", "b"), asked("2?", "aaa", "aaa", "b")]
    (told,) = check(domain("law", test=same), metrics=["loss", "exact_match"])
    assert told.startswith("law: all 2 answers that are scored are 'aaa'")


def test_one_class_among_the_few_that_are_scored_is_told():
    items = [asked(f"{i}?", "aab"[i], "a", "b") for i in range(3)]
    (told,) = check(domain("law", test=items), max_items=2)
    assert told.startswith("law: all 2 answers")
    assert check(domain("law", test=items)) == []


def test_a_metric_may_fit_one_domain_only():
    choices = [asked(f"{i}?", "ab"[i % 2], "a", "b") for i in range(4)]
    assert check(domain("law"), domain("med", test=choices), metrics=["choice_accuracy"]) == []


def test_items_that_another_domain_trains_on_are_told_with_their_share():
    law, med = domain("law"), domain("med")
    mixed = Domain("mix", (*med.train, *law.test[:2]), med.validation, med.test, "completion", "", "")
    general = [f"{law.train[0].prompt} {law.train[0].answer}", "Nothing of the kind was ever trained on."]
    told = check(law, mixed, general=general)
    assert told[0].startswith("1 of 2 items of the general text (50.0%) stand in the training data of law")
    assert told[1].startswith("2 of 3 items of law (66.7%) stand in the training data of mix")
    assert len(told) == 2


def test_the_same_question_with_another_answer_is_no_overlap():
    law, med = domain("law"), domain("med")
    other = [asked(law.test[0].prompt, "another answer")]
    assert (
        check(law, Domain("med", (*med.train, *other), med.validation, med.test, "completion", "", "")) == []
    )


def test_a_domain_that_stands_in_an_earlier_one_is_refused():
    law = domain("law")
    again = Domain("again", law.train[:6], law.train[6:8], law.validation, "completion", "", "")
    with pytest.raises(
        DataError, match=r"all of the new data is old data(?s:.*)again: each of 11(?s:.*)raise 'epochs'"
    ):
        check(law, again)


def test_a_run_is_refused_before_its_base_is_loaded_and_goes_on_with_the_way_out(tiny_run):
    rows = [{"prompt": f"law {i}?", "answer": "a", "choices": ["a", "b"]} for i in range(24)]
    (tiny_run.folder / "law.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    with pytest.raises(DataError, match="one class only"):
        tiny_run("lora", base={"model": str(tiny_run.folder / "nowhere")})
    assert not (tiny_run.folder / "out").exists()
    evaluation = {
        "metrics": ["exact_match", "token_f1"],
        "max_items": 3,
        "num_samples": 0,
        "max_new_tokens": 2,
    }
    found = tiny_run("lora", names=DOMAINS[:2], evaluation={**evaluation, "general": None}).methods[0]
    assert set(found.matrices) == {"loss", "exact_match", "token_f1"}
    assert 0.0 <= found.summary["token_f1"] <= 1.0


def test_examples_that_are_cut_are_told_with_what_of_them_is_lost(tiny_tokenizer):
    news = Domain(
        "news", (Example(text="a long text " * 20), Example(text="short")), (), (), "text", "news", "f"
    )
    assert tell_cut([domain("law")], tiny_tokenizer, 500) == []
    told = tell_cut([domain("law"), news], tiny_tokenizer, 12)
    assert [each.partition(":")[0] for each in told] == ["law", "news"]
    assert "12 of the first 12 training examples (100%)" in told[0] and "the middle of the prompt" in told[0]
    assert "1 of the first 2 training examples (50%)" in told[1] and told[1].endswith("the end is left out")
