"""What the base is sure of."""

from __future__ import annotations

import pytest
import torch

from constrained_adapters.data.examples import Example
from constrained_adapters.data.tokens import encode_example, encode_prompt
from constrained_adapters.errors import ConfigError
from constrained_adapters.rehearsal import write_golden_set
from constrained_adapters.rehearsal.golden_questions import OPENINGS, QUESTIONS

from .conftest import DOMAIN

ASKED = {"facts": [each.prompt for each in DOMAIN], "reasoning": ["zzzz unknown", "yyyy unknown"]}


def test_only_what_the_model_is_sure_of_is_kept(writer, tiny_tokenizer):
    state = torch.random.get_rng_state()
    golden = write_golden_set(
        writer,
        tiny_tokenizer,
        seed=0,
        questions=ASKED,
        openings=OPENINGS[:6],
        max_new_tokens=8,
        min_confidence=0.8,
        min_agreement=0.75,
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    known = [encode_example(example, tiny_tokenizer, 64) for example in DOMAIN]
    assert len(golden.rows["facts"]) >= 4 and all(row in known for row in golden.rows["facts"])
    assert len(golden.rows["reasoning"]) < 2
    assert len(golden.rows["language"]) <= 3
    kept = sum(map(len, golden.rows.values()))
    assert golden.facts == {"golden_written": 14.0, "golden_kept": float(kept)}
    for row in golden.rows["language"]:
        assert row.labels == row.input_ids


def test_without_a_bound_everything_that_is_an_answer_is_kept(tiny_llama, tiny_tokenizer):
    golden = write_golden_set(
        tiny_llama,
        tiny_tokenizer,
        seed=0,
        questions={"facts": ["a?", "b?"]},
        openings=[],
        max_new_tokens=4,
        min_confidence=0.0,
        min_agreement=0.0,
    )
    prompts = [encode_prompt(Example(prompt=each, answer="x"), tiny_tokenizer, 99) for each in ("a?", "b?")]
    for row in golden.rows["facts"]:
        at = row.labels.count(-100)
        assert row.input_ids[:at] in prompts and row.labels[at:] == row.input_ids[at:]
    assert golden.rows["language"] == []
    strict = write_golden_set(
        tiny_llama, tiny_tokenizer, seed=0, questions={"facts": ["a?", "b?"]}, openings=[], max_new_tokens=4
    )
    assert strict.rows["facts"] == []  # a random model is never sure


@pytest.mark.parametrize("wrong", [{"min_confidence": 1.5}, {"min_agreement": -0.1}, {"num_votes": 0}])
def test_bounds_that_cannot_be_are_refused(tiny_llama, tiny_tokenizer, wrong):
    with pytest.raises(ConfigError, match=r"out of range|no answer is drawn"):
        write_golden_set(tiny_llama, tiny_tokenizer, seed=0, **wrong)


def test_questions_are_different_and_of_both_kinds():
    asked = [question for each in QUESTIONS.values() for question in each]
    assert set(QUESTIONS) == {"facts", "reasoning"}
    assert len(set(asked)) == len(asked) and len(set(OPENINGS)) == len(OPENINGS)
