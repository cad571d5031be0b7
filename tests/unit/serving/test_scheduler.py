"""Answers under batching against the same ones alone by transformers' own generate; rows that come and go."""

import random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.serving.conftest import run, scheduler_for, with_adapters

from constrained_adapters.errors import ModelError
from constrained_adapters.serving.failures import MemoryShortError, OverdueError, QueueFullError
from constrained_adapters.serving.sampling import Sampling

ADAPTERS = [{}, {"law": 1.0}, {"medicine": 1.0}, {"law": 0.7, "history": -0.5}, {"history": 1.0}]


def alone(model, answer):
    """The same answer, greedily, by generate on a row of its own."""
    ids = torch.tensor([answer.prompt])
    written = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        adapter_names=[answer.adapters or "__base__"],
        max_new_tokens=answer.wanted.max_new_tokens,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )
    return written[0, ids.shape[1] :].tolist()


def mixed_requests(ask, count, seed=0):
    draw = random.Random(seed)
    return [
        ask(
            "".join(draw.choices("abcdefgh ", k=draw.randint(1, 40))),
            ADAPTERS[number % len(ADAPTERS)],
            max_new_tokens=draw.randint(1, 20),
        )
        for number in range(count)
    ]


@pytest.mark.parametrize("prefill_tokens", [7, 64, 512])
def test_answers_of_a_changing_batch_are_those_of_each_alone(model, ask, prefill_tokens):
    answers = mixed_requests(ask, 15)
    scheduler = scheduler_for(model, prefill_tokens=prefill_tokens)
    for answer in answers[:6]:
        scheduler.waiting.join([answer])
    late = list(answers[6:])
    while scheduler.has_work() or late:
        if late:
            scheduler.waiting.join([late.pop()])
        scheduler.step()
    scheduler.decoder.release()
    for answer in answers:
        assert answer.tokens == alone(model, answer)
        assert answer.reader.last.finish == "length"


def test_a_sliding_window_is_kept(tiny_mistral, tiny_tokenizer, ask):
    model = with_adapters(tiny_mistral, tiny_tokenizer)
    answers = mixed_requests(ask, 6, seed=3)
    scheduler = scheduler_for(model)
    scheduler.waiting.join(answers)
    run(scheduler)
    scheduler.decoder.release()
    assert [answer.tokens for answer in answers] == [alone(model, answer) for answer in answers]


def test_eager_attention_gives_the_same(tiny_llama, tiny_tokenizer, ask):
    tiny_llama.set_attn_implementation("eager")
    model = with_adapters(tiny_llama, tiny_tokenizer)
    answers = mixed_requests(ask, 6, seed=4)
    scheduler = scheduler_for(model)
    scheduler.waiting.join(answers)
    run(scheduler)
    scheduler.decoder.release()
    assert [answer.tokens for answer in answers] == [alone(model, answer) for answer in answers]


def test_a_new_answer_joins_while_an_old_one_runs(model, ask):
    scheduler = scheduler_for(model)
    old, new = ask("a long one", {"law": 1.0}, max_new_tokens=40), ask("hi", {}, max_new_tokens=2)
    scheduler.waiting.join([old])
    for _ in range(5):
        scheduler.step()
    scheduler.waiting.join([new])
    for _ in range(2):
        scheduler.step()
    assert new.finished and not old.finished
    assert scheduler.running == [old]


def test_a_long_prompt_does_not_hold_up_the_others(model, ask):
    scheduler = scheduler_for(model, prefill_tokens=8)
    old, long = ask("x", max_new_tokens=30), ask("y" * 60, max_new_tokens=3)
    scheduler.waiting.join([old])
    scheduler.step()
    scheduler.waiting.join([long])
    for _ in range(7):
        before = len(old.tokens)
        scheduler.step()
        assert len(old.tokens) == before + 1  # in each step between two pieces of the long prompt
    assert scheduler.entering == [long]
    run(scheduler)
    scheduler.decoder.release()
    assert long.tokens == alone(model, long)


def test_a_cancelled_answer_frees_its_slot_at_the_next_step(model, ask):
    scheduler = scheduler_for(model, slots=2)
    first, second, third = (ask("abc", adapters, max_new_tokens=30) for adapters in ADAPTERS[:3])
    ended = []
    first.on_end.append(lambda: ended.append(first))
    scheduler.waiting.join([first, second, third])
    scheduler.step()
    assert scheduler.num_free == 0
    first.cancelled = True
    scheduler.step()
    assert ended == [first] and third in scheduler.running
    run(scheduler)
    scheduler.decoder.release()
    assert second.tokens == alone(model, second) and third.tokens == alone(model, third)
    assert len(first.tokens) < 30 and not any(piece.finish for piece in first.reader.pieces)


def test_an_answer_is_given_up_at_its_deadline_even_while_it_waits(model, ask):
    scheduler = scheduler_for(model, slots=1)
    running, waiting = ask("a", max_new_tokens=40), ask("b", deadline=0.0)
    scheduler.waiting.join([running, waiting])
    scheduler.step()
    assert isinstance(waiting.reader.last.error, OverdueError)
    assert not running.finished


def test_the_line_is_bounded(model, ask):
    scheduler = scheduler_for(model, slots=1, capacity=2)
    scheduler.waiting.join([ask("a"), ask("b")])
    with pytest.raises(QueueFullError, match="at most 2"):
        scheduler.waiting.join([ask("c")])
    scheduler.waiting.join([ask("c")], free=1)


def test_no_memory_for_one_prompt_ends_that_one_alone(model, ask, monkeypatch):
    answers = [ask("ab", {"law": 1.0}), ask("the large one", {}), ask("cd", {})]
    scheduler = scheduler_for(model)
    read = scheduler.decoder.prefill

    def prefill(first_row, group, num_tokens):
        if answers[1] in group:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 TB")
        return read(first_row, group, num_tokens)

    monkeypatch.setattr(scheduler.decoder, "prefill", prefill)
    scheduler.waiting.join(answers)
    run(scheduler)
    assert isinstance(answers[1].reader.last.error, MemoryShortError)
    scheduler.decoder.release()
    for answer in (answers[0], answers[2]):
        assert answer.tokens == alone(model, answer)


def test_a_failed_step_ends_the_running_answers_and_the_next_one_is_served(model, ask, monkeypatch):
    scheduler = scheduler_for(model)
    doomed, fine = ask("a", max_new_tokens=9), ask("b", {"law": 1.0})
    decode = scheduler.decoder.decode
    monkeypatch.setattr(scheduler.decoder, "decode", lambda rows: (_ for _ in ()).throw(ValueError("secret")))
    scheduler.waiting.join([doomed])
    run(scheduler)
    assert "secret" not in str(doomed.reader.last.error)
    monkeypatch.setattr(scheduler.decoder, "decode", decode)
    scheduler.waiting.join([fine])
    run(scheduler)
    scheduler.decoder.release()
    assert fine.tokens == alone(model, fine)


def test_weights_that_make_the_output_infinite_end_one_answer(model, ask):
    scheduler = scheduler_for(model)
    bad, good = ask("abc", {"law": 1e38}), ask("abc", {"law": 1.0})
    scheduler.waiting.join([bad, good])
    run(scheduler)
    assert isinstance(bad.reader.last.error, ModelError)
    scheduler.decoder.release()
    assert good.tokens == alone(model, good)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(draw=st.randoms(use_true_random=False), prefill_tokens=st.sampled_from([5, 30]))
def test_any_order_of_arrivals_and_cancels_leaves_no_answer_wrong_and_no_slot_taken(
    model, ask, draw, prefill_tokens
):
    scheduler = scheduler_for(model, slots=3, prefill_tokens=prefill_tokens)
    answers = [
        ask("q" * draw.randint(1, 30), adapters, max_new_tokens=draw.randint(1, 8)) for adapters in ADAPTERS
    ]
    pending = list(answers)
    while pending or scheduler.has_work():
        if pending and draw.random() < 0.5:
            scheduler.waiting.join([pending.pop()])
        if draw.random() < 0.15:
            draw.choice(answers).cancelled = True
        scheduler.step()
    assert scheduler.num_free == 3 and scheduler.running == scheduler.entering == []
    scheduler.decoder.release()
    for answer in answers:
        wanted = alone(model, answer)
        assert answer.tokens == wanted[: len(answer.tokens)]
        assert answer.cancelled or answer.tokens == wanted


def test_a_seeded_answer_is_the_same_alone_and_among_others(model, ask):
    sampled = Sampling(temperature=0.9, top_p=0.8, seed=7)
    by_itself, among = ask("abc", {"law": 1.0}, sampling=sampled), ask("abc", {"law": 1.0}, sampling=sampled)
    other = ask("abc", {"law": 1.0}, sampling=sampled, index=1)
    scheduler = scheduler_for(model)
    scheduler.waiting.join([by_itself])
    run(scheduler)
    scheduler.waiting.join([ask("zz", {}, sampling=Sampling()), among, other])
    run(scheduler)
    assert by_itself.tokens == among.tokens != other.tokens
