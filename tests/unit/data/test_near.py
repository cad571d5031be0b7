import random
from string import ascii_lowercase

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from constrained_adapters.data import near
from constrained_adapters.data.near import THRESHOLD, gram_sets, jaccard, near_any, near_groups


def text(seed, length=60):
    draw = random.Random(seed)
    return " ".join("".join(draw.choices(ascii_lowercase, k=6)) for _ in range(length))


def slow_grams(text):
    return {text[i : i + 5] for i in range(len(text) - 4)}


@settings(deadline=None)
@given(st.text(alphabet="abc数", min_size=5, max_size=60), st.text(alphabet="abc数", min_size=5, max_size=60))
def test_jaccard_agrees_with_sets_of_strings(first, second):
    one, two = gram_sets([first, second])
    a, b = slow_grams(first), slow_grams(second)
    assert jaccard(one, two) == pytest.approx(len(a & b) / len(a | b))


def test_case_spaces_punctuation_and_width_do_not_count():
    one, two = gram_sets(["The  court’s ruling, №１２!", "the COURT's ruling no12"])
    assert jaccard(one, two) == 1.0


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 59))
def test_one_changed_word_is_near_and_other_texts_are_not(seed, position):
    words = text(seed).split()
    changed = " ".join([*words[:position], "zzzzz", *words[position + 1 :]])
    grams = gram_sets([text(seed), changed, text(seed + 1), text(seed + 2), text(seed + 3)])
    assert jaccard(grams[0], grams[1]) >= THRESHOLD
    assert near_groups(grams) == [0, 0, 2, 3, 4]
    assert near_any(grams[1:3], grams[:1]) == [True, False]


def test_groups_agree_with_all_pairs():
    # Tails of different lengths: from far above the threshold to just under it, where LSH proposes many.
    texts = [text(seed // 3, 20) + " " + text(seed, 1 + seed % 5) for seed in range(60)]
    grams = gram_sets(texts)
    groups = near_groups(grams)
    slow = list(range(60))
    for i in range(60):
        for j in range(i):
            if jaccard(grams[i], grams[j]) >= THRESHOLD:
                slow = [slow[j] if root == slow[i] else root for root in slow]
    as_sets = [{frozenset(i for i in range(60) if g[i] == r) for r in g} for g in (groups, slow)]
    assert as_sets[0] == as_sets[1]
    assert 20 <= len(as_sets[0]) < 60


def test_linked_texts_share_a_group():
    grams = gram_sets([text(seed) for seed in range(4)])
    assert near_groups(grams, [(3, 1), (2, 2)]) == [0, 1, 2, 1]


def test_the_wording_of_the_task_does_not_make_items_near():
    asked = [f"{text(1)} Which topic is this news about? {text(10 + item, 4)}" for item in range(8)]
    assert near_groups(gram_sets(asked)) == list(range(8))


def test_short_and_empty_texts_are_themselves():
    assert near_groups(gram_sets(["ab", "AB!", "", "数学", "数字"])) == [0, 0, 2, 3, 4]


def test_long_and_short_texts_together_are_as_each_alone(monkeypatch):
    texts = [text(1), "ab", "", text(2, 3), "数学"]
    alone = [gram_sets([each])[0].tolist() for each in texts]
    monkeypatch.setattr(near, "_AT_ONCE", 50)
    assert [gram_sets([each])[0].tolist() for each in texts] == alone
    assert [grams.tolist() for grams in near.gram_sets(texts[:3])] == alone[:3]


def test_nothing_is_near_nothing():
    assert near_any([], gram_sets(["a"])) == [] and near_any(gram_sets(["a"]), []) == [False]
