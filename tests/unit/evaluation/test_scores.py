"""Scores of examples against transformers' own loss, brute force and real generation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from constrained_adapters.data.examples import Example, Message
from constrained_adapters.data.tokens import collate, encode_answer, encode_example, encode_prompt
from constrained_adapters.errors import DataError, TrainingError
from constrained_adapters.evaluation.samples import generate_answers
from constrained_adapters.evaluation.scores import ExampleScore, mean_nats, score_examples

CHOICES = ("fever", "cough", "a broken leg", "嗽")
COMPLETIONS = [
    Example(prompt="hot and red?", answer="fever", choices=CHOICES),
    Example(prompt="what does the doctor say about a long night?", answer="cough", choices=CHOICES),
    Example(prompt="fell off a ladder?", answer="a broken leg", choices=CHOICES),
    Example(prompt="咳?", answer="嗽"),
]
CONVERSATION = Example(
    messages=(
        Message("system", "Be short."),
        Message("user", "hi"),
        Message("assistant", "yes?"),
        Message("user", "2 + 2"),
        Message("assistant", "4"),
    )
)
TEXT = Example(text="Running text, every token of which is scored.")


def score(model: Any, tokenizer: Any, examples: list[Example], **settings: int) -> list[ExampleScore]:
    return score_examples(model, tokenizer, examples, **{"batch_size": 4, "max_length": 256, **settings})


def train(model: Any, tokenizer: Any, examples: list[Example]) -> None:
    """Learn a few examples by heart."""
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    batch = collate([vars(encode_example(example, tokenizer, 256)) for example in examples], 0)
    for _ in range(40):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


LEARNT: dict[str, torch.Tensor] = {}


@pytest.fixture
def knowing_llama(tiny_llama: Any, tiny_tokenizer: Any) -> Any:
    """A model that knows ``COMPLETIONS`` by heart; trained once."""
    if not LEARNT:
        train(tiny_llama, tiny_tokenizer, COMPLETIONS)
        LEARNT.update({name: tensor.clone() for name, tensor in tiny_llama.state_dict().items()})
    tiny_llama.load_state_dict(LEARNT)
    return tiny_llama


@torch.no_grad()
def plain_nats(model: Any, prompt: list[int], answer: list[int]) -> float:
    logits = model(input_ids=torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
    return -sum(float(logits[len(prompt) + at - 1, token]) for at, token in enumerate(answer))


@pytest.mark.parametrize("base", ["tiny_llama", "tiny_mistral"])
def test_loss_is_that_of_training(base: str, tiny_tokenizer: Any, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(base)
    examples = [*COMPLETIONS, CONVERSATION, TEXT]
    for example, found in zip(examples, score(model, tiny_tokenizer, examples), strict=True):
        tokens = encode_example(example, tiny_tokenizer, 256)
        ids, labels = torch.tensor([tokens.input_ids]), torch.tensor([tokens.labels])
        with torch.no_grad():
            expected = float(model(input_ids=ids, labels=labels).loss)
        assert found.loss_nats == pytest.approx(expected, abs=1e-4)
        assert found.num_tokens == int((labels[:, 1:] != -100).sum())


def test_exact_match_is_what_generation_writes(knowing_llama: Any, tiny_tokenizer: Any) -> None:
    known, others = COMPLETIONS, []
    for example in COMPLETIONS:
        answer = example.answer or ""
        others += [
            Example(prompt=example.prompt, answer=wrong) for wrong in (answer[:-1], answer + "s", "no")
        ]
        others.append(Example(prompt=f"so {example.prompt}", answer=answer))
    examples = [*known, *others]
    found = [item.exact for item in score(knowing_llama, tiny_tokenizer, examples)]
    for example, exact in zip(examples, found, strict=True):
        prompt = encode_prompt(example, tiny_tokenizer, 256)
        answer = encode_answer(example, tiny_tokenizer, example.answer or "")
        written = knowing_llama.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=len(answer),
            do_sample=False,
        )[0, len(prompt) :]
        assert exact == (written.tolist() == answer), example
    assert found[: len(known)] == [True] * len(known)
    assert False in found


def test_exact_match_of_a_conversation_is_of_its_last_answer(tiny_llama: Any, tiny_tokenizer: Any) -> None:
    train(tiny_llama, tiny_tokenizer, [CONVERSATION])
    other_start = Example(
        messages=(*CONVERSATION.messages[:2], Message("assistant", "what?"), *CONVERSATION.messages[3:])
    )
    learnt, changed = score(tiny_llama, tiny_tokenizer, [CONVERSATION, other_start])
    assert learnt.exact is True
    last = Example(prompt="", answer="4")
    prompt = encode_prompt(other_start, tiny_tokenizer, 256)
    answer = encode_answer(last, tiny_tokenizer, "4")
    ids = torch.tensor([prompt + answer])
    with torch.no_grad():
        likeliest = tiny_llama(input_ids=ids).logits[0, len(prompt) - 1 : -1].argmax(-1)
    assert changed.exact == (likeliest.tolist() == answer)
    assert changed.loss_nats > learnt.loss_nats


def test_choice_is_the_highest_sum(tiny_llama: Any, tiny_tokenizer: Any) -> None:
    examples = [
        Example(prompt=f"{item.prompt} {number}", answer=choice, choices=CHOICES)
        for number, item in enumerate(COMPLETIONS)
        for choice in CHOICES
    ]
    found = score(tiny_llama, tiny_tokenizer, examples)
    for example, item in zip(examples, found, strict=True):
        prompt = encode_prompt(example, tiny_tokenizer, 256)
        nats = {c: plain_nats(tiny_llama, prompt, tiny_tokenizer(c).input_ids) for c in CHOICES}
        assert item.choice_correct == (min(nats, key=lambda choice: nats[choice]) == example.answer)
    # One right choice per question.
    assert sum(bool(item.choice_correct) for item in found) == len(COMPLETIONS)


def test_choices_after_training_and_without_any(knowing_llama: Any, tiny_tokenizer: Any) -> None:
    correct = [item.choice_correct for item in score(knowing_llama, tiny_tokenizer, [*COMPLETIONS, TEXT])]
    assert correct == [True, True, True, None, None]


def test_where_a_choice_begins_with_another_the_end_decides(tiny_llama: Any, tiny_tokenizer: Any) -> None:
    choices = ("ab", "abc", "x")
    learnt = Example(prompt="letters?", answer="abc", choices=choices)
    train(tiny_llama, tiny_tokenizer, [learnt])
    other = Example(prompt="letters?", answer="ab", choices=choices)
    found = score(tiny_llama, tiny_tokenizer, [learnt, other])
    assert [item.choice_correct for item in found] == [True, False]


def test_a_tie_is_wrong(tiny_llama: Any, tiny_tokenizer: Any) -> None:
    with torch.no_grad():
        tiny_llama.lm_head.weight.zero_()
    tied = Example(prompt="?", answer="ab", choices=("ab", "cd"))
    longer = Example(prompt="?", answer="ab", choices=("ab", "cde", "ab"))
    found = score(tiny_llama, tiny_tokenizer, [tied, longer])
    assert [item.choice_correct for item in found] == [False, True]
    assert found[0].loss_nats == pytest.approx(math.log(tiny_llama.config.vocab_size), abs=1e-5)


def test_reference_must_be_a_choice(tiny_llama: Any, tiny_tokenizer: Any) -> None:
    wrong = Example(prompt="?", answer="maybe", choices=("yes", "no"))
    with pytest.raises(DataError, match="example 2: 'maybe'"):
        score(tiny_llama, tiny_tokenizer, [COMPLETIONS[0], wrong])


def test_text_has_no_exact_match(tiny_llama: Any, tiny_tokenizer: Any) -> None:
    (found,) = score(tiny_llama, tiny_tokenizer, [TEXT])
    assert found.exact is None
    assert found.choice_correct is None
    assert found.num_tokens == len((TEXT.text or "").encode()) - 1


def test_nothing_to_score(tiny_llama: Any, tiny_tokenizer: Any) -> None:
    with pytest.raises(DataError, match="example 1: 'x'"):
        score(tiny_llama, tiny_tokenizer, [Example(text="x")])
    assert score(tiny_llama, tiny_tokenizer, []) == []


def test_a_loss_that_is_not_finite_names_its_example(tiny_llama: Any, tiny_tokenizer: Any) -> None:
    broken = tiny_tokenizer("Z").input_ids[0]
    with torch.no_grad():
        tiny_llama.model.embed_tokens.weight[broken] = math.nan
    examples = [COMPLETIONS[0], Example(prompt="Zebra", answer="yes")]
    with pytest.raises(TrainingError, match="example 2: 'Zebra'"):
        score(tiny_llama, tiny_tokenizer, examples, batch_size=1)


def test_order_and_batch_size_change_nothing(tiny_llama: Any, tiny_tokenizer: Any) -> None:
    examples = [*COMPLETIONS, CONVERSATION, TEXT]
    found = score(tiny_llama, tiny_tokenizer, examples)
    backwards = score(tiny_llama, tiny_tokenizer, examples[::-1], batch_size=1)[::-1]
    assert [item.loss_nats for item in found] == pytest.approx(
        [item.loss_nats for item in backwards], abs=1e-4
    )
    assert [item.exact for item in found] == [item.exact for item in backwards]
    assert [item.choice_correct for item in found] == [item.choice_correct for item in backwards]


def test_another_template_is_not_taken_from_the_cache(tiny_llama: Any, tiny_tokenizer: Any) -> None:
    (before,) = score(tiny_llama, tiny_tokenizer, COMPLETIONS[:1])
    tiny_tokenizer.chat_template = tiny_tokenizer.chat_template.replace("<|im_end|>' + ", "<|im_end|> ' + ")
    (after,) = score(tiny_llama, tiny_tokenizer, COMPLETIONS[:1])
    assert after.loss_nats != before.loss_nats
    (shorter,) = score(tiny_llama, tiny_tokenizer, COMPLETIONS[:1], max_length=20)
    assert shorter.loss_nats != after.loss_nats


def test_long_examples_are_cut(tiny_llama: Any, tiny_tokenizer: Any) -> None:
    long = Example(prompt="a long story " * 50, answer="fever", choices=CHOICES)
    cut = encode_example(long, tiny_tokenizer, 64)
    assert len(cut.input_ids) == 64
    (found,) = score(tiny_llama, tiny_tokenizer, [long], max_length=64)
    with torch.no_grad():
        loss = tiny_llama(input_ids=torch.tensor([cut.input_ids]), labels=torch.tensor([cut.labels])).loss
    assert found.loss_nats == pytest.approx(float(loss), abs=1e-4)
    assert found.num_tokens == len("fever") + 1


def test_mean_nats_weighs_tokens(tiny_llama: Any, tiny_tokenizer: Any) -> None:
    texts = ["short", "a text that is far longer than the other one"]
    short, long = score(tiny_llama, tiny_tokenizer, [Example(text=text) for text in texts])
    assert (short.num_tokens, long.num_tokens) == (len(texts[0]) - 1, len(texts[1]) - 1)
    weighted = short.loss_nats * short.num_tokens + long.loss_nats * long.num_tokens
    found = mean_nats(tiny_llama, tiny_tokenizer, texts, batch_size=2, max_length=64)
    assert found == pytest.approx(weighted / (short.num_tokens + long.num_tokens))
    with pytest.raises(DataError, match="no text"):
        mean_nats(tiny_llama, tiny_tokenizer, [], batch_size=2, max_length=64)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_generated_answers(batch_size: int, knowing_llama: Any, tiny_tokenizer: Any) -> None:
    # A default that would change greedy decoding: it is overruled.
    knowing_llama.generation_config.repetition_penalty = 50.0
    written = generate_answers(
        knowing_llama, tiny_tokenizer, COMPLETIONS, max_new_tokens=20, batch_size=batch_size
    )
    assert written == [example.answer for example in COMPLETIONS]
    cut = generate_answers(knowing_llama, tiny_tokenizer, COMPLETIONS[:1], max_new_tokens=3, batch_size=1)
    assert cut == ["fev"]


def test_generation_and_scores_through_an_adapter(knowing_llama: Any, tiny_tokenizer: Any) -> None:
    expected = score(knowing_llama, tiny_tokenizer, COMPLETIONS)
    adapted = get_peft_model(knowing_llama, LoraConfig(r=2, target_modules=["q_proj"]))
    written = generate_answers(adapted, tiny_tokenizer, COMPLETIONS, max_new_tokens=20, batch_size=4)
    assert written == [example.answer for example in COMPLETIONS]
    # B starts at zero: an untrained adapter changes nothing.
    assert score(adapted, tiny_tokenizer, COMPLETIONS) == expected


def test_a_text_is_continued(tiny_llama: Any, tiny_tokenizer: Any) -> None:
    text = Example(text="abcdefgh")
    train(tiny_llama, tiny_tokenizer, [text])
    assert generate_answers(tiny_llama, tiny_tokenizer, [text], max_new_tokens=4, batch_size=1) == ["efgh"]
    assert generate_answers(tiny_llama, tiny_tokenizer, [], max_new_tokens=4, batch_size=1) == []
