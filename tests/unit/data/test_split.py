import random
from collections import Counter
from string import ascii_lowercase

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from constrained_adapters.data.examples import Example, Message
from constrained_adapters.data.split import cap_examples, drop_duplicates, separate_parts, split_examples
from constrained_adapters.errors import DataError


def sentence(seed):
    draw = random.Random(seed)
    return " ".join("".join(draw.choices(ascii_lowercase, k=6)) for _ in range(20))


def example(seed, copy=0):
    return Example(text=sentence(seed) + " x" * copy)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=12, max_size=30), st.integers(0, 99))
def test_a_split_is_a_partition_with_near_duplicates_on_one_side(copies, seed):
    examples = [example(group, copy) for group, count in enumerate(copies) for copy in range(count)]
    group_of = {example(group, copy): group for group, count in enumerate(copies) for copy in range(count)}
    if copies.count(1) < 4:  # too few single ones to fill what is held out
        examples += [example(1000 + extra) for extra in range(4)]
        group_of |= {example(1000 + extra): 1000 + extra for extra in range(4)}
    parts, _ = split_examples(examples, seed)
    assert list(parts) == ["train", "validation", "test"]
    assert Counter(e for held in parts.values() for e in held) == Counter(examples)
    sides = [{group_of[e] for e in held} for held in parts.values()]
    assert all(not (one & two) for i, one in enumerate(sides) for two in sides[:i])
    assert all(1 <= len(parts[name]) <= max(1, round(len(examples) / 10)) for name in ("validation", "test"))


def test_sizes_seeds_and_the_order_in_the_file():
    examples = [example(seed) for seed in range(100)]
    parts, notes = split_examples(examples, 3)
    assert [len(held) for held in parts.values()] == [80, 10, 10]
    assert notes == ["Split by seed 3: 80 train, 10 validation, 10 test."]
    turned, _ = split_examples(examples[::-1], 3)
    assert {name: set(held) for name, held in turned.items()} == {
        name: set(held) for name, held in parts.items()
    }
    assert parts["train"] == [e for e in examples if e in set(parts["train"])]
    assert set(split_examples(examples, 4)[0]["test"]) != set(parts["test"])


def test_adding_examples_moves_few():
    before, _ = split_examples([example(seed) for seed in range(100)], 0)
    after, _ = split_examples([example(seed) for seed in range(110)], 0)
    assert len(set(before["test"]) & set(after["test"])) >= 8


def test_the_same_question_falls_on_one_side():
    examples = [Example(prompt=sentence(n // 2), answer=sentence(500 + n)) for n in range(60)]
    parts, notes = split_examples(examples, 0)
    asked = [{e.prompt for e in held} for held in parts.values()]
    assert not asked[0] & asked[1] and not asked[0] & asked[2] and not asked[1] & asked[2]
    assert "60 examples are near duplicates" in notes[1]


def test_an_instruction_that_all_share_binds_nothing():
    examples = [Example(prompt="Write a poem.", answer=sentence(n)) for n in range(40)]
    assert [len(held) for held in split_examples(examples, 0)[0].values()] == [32, 4, 4]


def test_only_the_parts_that_are_wanted():
    parts, _ = split_examples([example(seed) for seed in range(20)], 0, ["validation"])
    assert {name: len(held) for name, held in parts.items()} == {"train": 18, "validation": 2}


def test_too_little_variety_is_an_error():
    with pytest.raises(DataError, match="no examples are left for") as caught:
        split_examples([Example(prompt=sentence(n % 2), answer=str(n)) for n in range(10)], 0)
    assert "largest of 5" in caught.value.got


def test_exact_duplicates_go_and_contradictions_stay():
    one, other = Example(prompt="a", answer="b"), Example(prompt="a", answer="c")
    kept, notes = drop_duplicates([one, Example(text="t"), one, other, one])
    assert kept == [one, Example(text="t"), other]
    assert notes[0].startswith("2 exact duplicates of 5") and notes[1].startswith("1 questions")
    assert drop_duplicates(kept[:2]) == (kept[:2], [])


def test_given_parts_are_freed_of_what_is_held_out():
    near = Example(text=sentence(1).replace("a", "b", 1))
    talk = Example(messages=(Message("user", sentence(7)), Message("assistant", "yes")))
    other = Example(messages=(Message("user", sentence(7)), Message("assistant", "no")))
    parts = {
        "train": [example(0), near, example(2), example(3), other],
        "validation": [example(3), example(4)],
        "test": [example(1), example(4), talk],
    }
    clean, notes = separate_parts(parts)
    assert list(clean) == ["train", "validation", "test"]
    assert clean["train"] == [example(0), example(2)]
    assert clean["validation"] == [example(3)]
    assert clean["test"] == parts["test"]
    assert [note.split(" stand")[0] for note in notes] == [
        "1 validation examples",
        "2 train examples",
        "1 train examples",
    ]


def test_caps_choose_by_seed_keep_order_and_nest():
    examples = [example(seed) for seed in range(30)]
    small, large = cap_examples(examples, 5, 0), cap_examples(examples, 10, 0)
    assert len(small) == 5 and set(small) < set(large)
    assert small == [e for e in examples if e in set(small)]
    assert set(small) != set(cap_examples(examples, 5, 1))
    assert cap_examples(examples, None, 0) == cap_examples(examples, 99, 0) == examples
