"""Tokenizers are made in code: bytes, metaspace, unigram; with and without start token and chat template."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from constrained_adapters.data.examples import Example, Message
from constrained_adapters.data.tokens import (
    IGNORED,
    TokenDataset,
    collate,
    encode_answer,
    encode_example,
    encode_prompt,
)
from constrained_adapters.errors import DataError

SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "[INST]", "[/INST]"]
CORPUS = [
    "the court held that the answer is no",
    "what is the answer to that ? the answer is 42 .",
    "数学 是 什么 Ответ да",
] * 4

CHATML = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe kind<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As Mistral's: a start token, no generation prompt of its own, roles checked.
INST = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] | trim + eos_token }}"
    "{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"
)
# As Qwen3's: the last answer opens with an empty thinking block, earlier ones do not.
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Marks no end of a turn.
PLAIN = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
UNSTABLE = "{{ messages | length }}" + CHATML
HIDDEN = CHATML.replace("m['content']", "m['content'] | upper")
TEMPLATES = {None: None, "chatml": CHATML, "inst": INST, "thinking": THINKING, "plain": PLAIN}


def _trained(kind):
    if kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(
            vocab_size=90, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
        )
    else:
        unknown = "<unk>" if kind == "metaspace" else None
        tokenizer = Tokenizer(models.BPE(unk_token=unknown))
        alphabet = pre_tokenizers.ByteLevel.alphabet() if kind == "bytes" else []
        trainer = trainers.BpeTrainer(
            vocab_size=340, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
        )
    if kind == "bytes":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return tokenizer


BACKENDS = {kind: _trained(kind).to_str() for kind in ("bytes", "metaspace", "unigram")}


def make(kind="bytes", template=None, bos=False, eos="</s>"):
    backend = Tokenizer.from_str(BACKENDS[kind])
    if bos:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token=eos,
        unk_token="<unk>",
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )


def learnt(tokens, tokenizer):
    return tokenizer.decode([label for label in tokens.labels if label != IGNORED])


TOKENIZERS = {
    (kind, name, bos): make(kind, template, bos)
    for kind in BACKENDS
    for name, template in TEMPLATES.items()
    for bos in (False, True)
}
WORDS = st.lists(
    st.sampled_from(["the", "answer", "is", "4", "2", "?", "数学", "\n", " ", "да", "<", "assistant", "xyz"]),
    min_size=1,
    max_size=8,
).map(" ".join)
TURNS = st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=3).map(
    lambda pairs: Example(
        messages=tuple(
            m for asked, said in pairs for m in (Message("user", asked), Message("assistant", said))
        )
    )
)
EXAMPLES = st.one_of(
    st.builds(lambda prompt, answer: Example(prompt=prompt, answer=answer), WORDS, WORDS),
    st.builds(lambda text: Example(text=text), WORDS),
    TURNS,
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(TOKENIZERS, key=str)), EXAMPLES, st.integers(8, 80))
def test_prompt_and_answer_join_to_the_example(which, example, max_length):
    tokenizer = TOKENIZERS[which]
    if example.messages and tokenizer.chat_template is None:
        return
    whole = encode_example(example, tokenizer, 10_000)
    answer = encode_answer(example, tokenizer, example.reference)
    prompt = encode_prompt(example, tokenizer, 10_000)
    assert prompt + answer == whole.input_ids
    assert whole.labels[len(prompt) :] == answer
    assert all(label in (IGNORED, token) for label, token in zip(whole.labels, whole.input_ids, strict=True))
    assert whole.num_cut == 0

    cut = encode_example(example, tokenizer, max_length)
    assert cut.input_ids == (encode_prompt(example, tokenizer, max_length) + answer)[:max_length]
    assert len(cut.input_ids) == len(cut.labels) == len(whole.input_ids) - cut.num_cut <= max_length
    assert any(label != IGNORED for label in cut.labels)
    if len(answer) <= max_length - max_length // 4:
        assert cut.input_ids[len(cut.input_ids) - len(answer) :] == answer


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["chatml", "inst", "thinking", "plain"]), TURNS)
def test_conversations_are_the_template_as_rendered(name, example):
    tokenizer = TOKENIZERS["bytes", name, False]
    turns = [{"role": m.role, "content": m.content} for m in example.messages]
    rendered = tokenizer.apply_chat_template(turns, tokenize=False).rstrip()
    end = "</s>" if name == "plain" else ""
    ids = encode_example(example, tokenizer, 10_000).input_ids
    assert tokenizer.decode(ids).removesuffix(end).rstrip() == rendered
    asked = tokenizer.apply_chat_template(turns[:-1], tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(encode_prompt(example, tokenizer, 10_000)) == asked


TALK = Example(
    messages=(
        Message("user", "hi"),
        Message("assistant", "im_end"),
        Message("user", "is it assistant ?"),
        Message("assistant", "the answer"),
        Message("user", "never answered"),
    )
)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHATML, "im_end<|im_end|>the answer<|im_end|>"),
        (INST, " im_end</s> the answer</s>"),
        (THINKING, "im_end<|im_end|><think>\n\n</think>\n\nthe answer<|im_end|>"),
        (PLAIN, "im_endthe answer</s>"),
    ],
)
def test_every_assistant_turn_is_learnt_with_its_end_and_nothing_else(template, expected):
    tokenizer = make(template=template)
    assert learnt(encode_example(TALK, tokenizer, 500), tokenizer) == expected
    assert "never" not in tokenizer.decode(encode_example(TALK, tokenizer, 500).input_ids)


def test_prompt_and_answer_take_the_chat_template_where_there_is_one():
    asked = Example(prompt="what is the answer ?", answer="42")
    talk = Example(messages=(Message("user", asked.prompt), Message("assistant", "42")))
    tokenizer = make(template=CHATML)
    assert encode_example(asked, tokenizer, 200) == encode_example(talk, tokenizer, 200)
    plain = make(bos=True)
    tokens = encode_example(asked, plain, 200)
    assert plain.decode(tokens.input_ids) == "<s>what is the answer ?\n42</s>"
    assert learnt(tokens, plain) == "42</s>"


def test_a_prefix_space_of_the_tokenizer_does_not_come_between_prompt_and_answer():
    tokenizer = make("metaspace", CHATML)
    ids = encode_answer(Example(prompt="what", answer="x"), tokenizer, "the")
    with_space = tokenizer("the", add_special_tokens=False)["input_ids"]
    assert ids[:-1] != with_space and tokenizer.convert_ids_to_tokens(ids)[-1] == "<|im_end|>"


def test_all_of_a_text_is_learnt_but_the_start_token():
    tokenizer = make(bos=True)
    tokens = encode_example(Example(text="the answer"), tokenizer, 50)
    assert tokens.labels == [IGNORED, *tokens.input_ids[1:]]
    assert tokenizer.decode(tokens.input_ids) == "<s>the answer"
    assert encode_prompt(Example(text="x"), tokenizer, 50) == [1]
    assert encode_prompt(Example(text="x"), make(), 50) == []


def test_other_answers_follow_the_same_prompt():
    tokenizer = make(template=THINKING)
    assert tokenizer.decode(encode_answer(TALK, tokenizer, "no")) == "<think>\n\n</think>\n\nno<|im_end|>"
    assert make().decode(encode_answer(Example(prompt="a", answer="b"), make(), "no")) == "no</s>"


def test_a_long_prompt_loses_its_middle_and_keeps_the_answer():
    tokenizer = make(template=CHATML)
    example = Example(prompt="start " + "xyz " * 100 + "finish", answer="the answer")
    tokens = encode_example(example, tokenizer, 60)
    text = tokenizer.decode(tokens.input_ids)
    assert len(tokens.input_ids) == 60 and tokens.num_cut > 200
    assert (
        text.startswith("<|im_start|>system\nBe kind") and "finish<|im_end|>\n<|im_start|>assistant\n" in text
    )
    assert learnt(tokens, tokenizer) == "the answer<|im_end|>"


def test_an_answer_that_does_not_fit_is_cut_at_its_end_after_a_quarter_of_prompt():
    tokenizer = make()
    tokens = encode_example(Example(prompt="xyz " * 50, answer="the answer " * 100), tokenizer, 40)
    assert [label == IGNORED for label in tokens.labels] == [True] * 10 + [False] * 30
    assert learnt(tokens, tokenizer).startswith("the answer the answer")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "no chat template"),
        (UNSTABLE, "not prefix-stable"),
        (HIDDEN, "cannot be found"),
        (INST.replace("'assistant'", "'robot'"), "only user and assistant"),
    ],
)
def test_templates_that_cannot_be_used_say_why(template, message):
    with pytest.raises(DataError, match=message):
        encode_example(TALK, make(template=template), 100)


def test_data_set_rows_and_batches():
    tokenizer = make()
    examples = [Example(prompt="the", answer="answer is"), Example(text="xyz " * 30)]
    rows = TokenDataset.from_examples(examples, tokenizer, 16)
    assert len(rows) == 2 and rows.num_cut_examples == 1
    assert set(rows[0]) == {"input_ids", "labels"}
    batch = collate([rows[0], rows[1]], pad_token_id=9)
    num_first = len(rows[0]["input_ids"])
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    assert all(value.shape == (2, 16) and value.dtype == torch.long for value in batch.values())
    assert batch["attention_mask"].sum(dim=1).tolist() == [num_first, 16]
    assert batch["input_ids"][0, num_first:].eq(9).all() and batch["labels"][0, num_first:].eq(IGNORED).all()
    assert batch["input_ids"][0, :num_first].tolist() == rows[0]["input_ids"]
