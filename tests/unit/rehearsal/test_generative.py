"""What a model writes of the domains it has learnt, when nothing of their data is there any more."""

from __future__ import annotations

import copy

import pytest
import torch

from constrained_adapters.data.examples import Example
from constrained_adapters.data.tokens import Tokens, encode_example, encode_prompt
from constrained_adapters.errors import ConfigError
from constrained_adapters.rehearsal import most_diverse, refine_answers, write_examples
from constrained_adapters.rehearsal.frame import Frame

from .conftest import DOMAIN, learn

OPTIONS = {"num_examples": 12, "max_length_tokens": 64}


@pytest.mark.parametrize("template", [True, False])
@pytest.mark.parametrize("prompt", ["What?", "z", "数学 7"])
def test_every_example_stands_in_the_frame(tiny_tokenizer, template, prompt):
    if not template:
        tiny_tokenizer.chat_template = None
    frame = Frame.of(tiny_tokenizer)
    ids = encode_prompt(Example(prompt=prompt, answer="x"), tiny_tokenizer, 999)
    inner = tiny_tokenizer(prompt)["input_ids"]
    before = [] if frame.start == (tiny_tokenizer.eos_token_id,) and not template else list(frame.start)
    assert ids == [*before, *inner, *frame.middle]
    assert frame.start and frame.middle and frame.text_start
    assert tiny_tokenizer.decode(frame.middle) == (
        "<|im_end|>\n<|im_start|>assistant\n" if template else "\n"
    )


def test_a_model_that_learnt_its_prompts_writes_its_domain_and_another_does_not(
    writer, tiny_tokenizer, tiny_mistral
):
    known = {tuple(encode_example(example, tiny_tokenizer, 64).input_ids) for example in DOMAIN}
    written = write_examples(writer, tiny_tokenizer, seed=0, **OPTIONS)
    again = [row for row in written if tuple(row.input_ids) in known]
    assert len(again) >= 4
    learn(tiny_mistral, DOMAIN, tiny_tokenizer, prompts=False)
    other = write_examples(tiny_mistral, tiny_tokenizer, seed=0, **OPTIONS)
    assert not [row for row in other if tuple(row.input_ids) in known]


def test_what_is_written_is_labelled_as_in_training(writer, tiny_tokenizer):
    labels = {
        tuple(row.input_ids): row.labels
        for row in (encode_example(example, tiny_tokenizer, 64) for example in DOMAIN)
    }
    written = write_examples(writer, tiny_tokenizer, seed=1, **OPTIONS)
    assert len({tuple(row.input_ids) for row in written}) == len(written) <= 12
    frame, checked = Frame.of(tiny_tokenizer), 0
    for row in written:
        assert len(row.input_ids) <= 64 and len(row.labels) == len(row.input_ids)
        assert tuple(row.input_ids[: len(frame.start)]) == frame.start
        answer_at = row.labels.count(-100)
        assert tuple(row.input_ids[answer_at - len(frame.middle) : answer_at]) == frame.middle
        assert row.labels == [-100] * answer_at + row.input_ids[answer_at:]
        if tuple(row.input_ids) in labels:
            checked += 1
            assert row.labels == labels[tuple(row.input_ids)]
    assert checked


def test_writing_depends_on_its_seed_only_and_leaves_the_model_as_it_was(writer, tiny_tokenizer):
    writer.train()
    state = torch.random.get_rng_state()
    one, same, other = (
        write_examples(writer, tiny_tokenizer, seed=seed, num_examples=4, max_length_tokens=40)
        for seed in (3, 3, 4)
    )
    assert one == same != other
    assert torch.equal(torch.random.get_rng_state(), state) and writer.training


def test_running_text_is_learnt_wholly_and_has_no_end(tiny_llama, tiny_tokenizer):
    rows = write_examples(
        tiny_llama, tiny_tokenizer, seed=0, num_examples=3, max_length_tokens=20, running_text=True
    )
    start = Frame.of(tiny_tokenizer).text_start
    assert rows
    for row in rows:
        assert tuple(row.input_ids[: len(start)]) == start
        assert row.labels == [-100] * len(start) + row.input_ids[len(start) :]
        assert len(row.input_ids) <= 20 and 2 not in row.input_ids[1:]


def test_the_newest_model_answers_the_old_prompts_anew(writer, tiny_tokenizer):
    newest = copy.deepcopy(writer)
    changed = [Example(prompt=each.prompt, answer="new!") for each in DOMAIN]
    learn(newest, changed, tiny_tokenizer, prompts=False)
    rows = [encode_example(example, tiny_tokenizer, 64) for example in DOMAIN]
    refined = refine_answers(newest, tiny_tokenizer, rows, max_length_tokens=64)
    assert refined == [encode_example(example, tiny_tokenizer, 64) for example in changed]
    assert refine_answers(newest, tiny_tokenizer, [], max_length_tokens=64) == []


def test_an_empty_answer_leaves_the_one_that_was_there(tiny_llama, tiny_tokenizer):
    silent = [Example(prompt=each.prompt, answer="") for each in DOMAIN]
    learn(tiny_llama, silent, tiny_tokenizer, prompts=False)
    rows = [encode_example(example, tiny_tokenizer, 64) for example in DOMAIN]
    assert refine_answers(tiny_llama, tiny_tokenizer, rows, max_length_tokens=64) == rows


def test_the_diverse_part_has_every_kind():
    alike = [Tokens([5, 6, 7, i % 2], [-100] * 4) for i in range(9)]
    others = [Tokens([50 + 10 * kind + i for i in range(4)], [-100] * 4) for kind in range(2)]
    assert {row.input_ids[0] for row in most_diverse([*alike, *others], 3)} == {5, 50, 60}


@pytest.mark.parametrize("wrong", [{"num_examples": 0}, {"max_length_tokens": 5}])
def test_what_cannot_be_written_is_refused(tiny_llama, tiny_tokenizer, wrong):
    with pytest.raises(ConfigError, match="no examples can be written"):
        write_examples(tiny_llama, tiny_tokenizer, seed=0, **{**OPTIONS, **wrong})
