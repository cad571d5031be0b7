"""How different the answers of a model are, from each other and within themselves; counting only, no torch.

An answer is a sequence of words; :func:`answer_words` makes them from text of any script. k answers of n
words each cost O(k · n), Self-BLEU included.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from constrained_adapters.evaluation.words import split_words

Words = Sequence[str]

MAX_ORDER = 4
"""Longest n-gram that BLEU counts."""


@dataclass(frozen=True)
class Diversity:
    """What a guard looks at, of one set of answers."""

    unique_trigram_ratio: float | None
    """None where no answer has three words."""
    distinct_2: float
    self_bleu: float
    repetition_ratio: float
    identical_ratio: float
    mean_words: float


def measure_diversity(texts: Sequence[str]) -> Diversity:
    """All measures of this module at their usual settings.

    Args:
        texts: Answers to different prompts, 2 or more.

    Raises:
        ValueError: There are fewer than two.
    """
    answers = [answer_words(text) for text in texts]
    return Diversity(
        unique_trigram_ratio=unique_ngram_ratio(answers, 3),
        distinct_2=distinct_n(answers, 2),
        self_bleu=self_bleu(answers),
        repetition_ratio=repetition_ratio(answers),
        identical_ratio=identical_ratio(answers),
        mean_words=sum(map(len, answers)) / len(answers),
    )


def answer_words(text: str) -> list[str]:
    """The words of a text without white space, case folded; characters where a script has no spaces.

    >>> answer_words("The capital: 北京.")
    ['the', 'capital', ':', '北', '京', '.']
    """
    return [word for word in split_words(text.casefold()) if not word.isspace()]


def unique_ngram_ratio(answers: Sequence[Words], n: int) -> float | None:
    """Different n-grams of all answers over all their n-grams, over 0 and up to 1; None where there are none.

    >>> unique_ngram_ratio([["a", "b", "c"], ["a", "b", "d"]], 2)
    0.75
    """
    grams = Counter(gram for words in answers for gram in ngrams(words, n))
    return len(grams) / grams.total() if grams else None


def distinct_n(answers: Sequence[Words], n: int) -> float:
    """Different n-grams of all answers over the number of their words, 0 … 1; 0 where there is no word.

    Source: Li et al. 2016 (arXiv 1510.03055), section 5.
    """
    grams = {gram for words in answers for gram in ngrams(words, n)}
    return len(grams) / max(sum(map(len, answers)), 1)


def repetition_ratio(answers: Sequence[Words], n: int = 3) -> float:
    """Mean over the answers of 1 − different n-grams over n-grams, 0 … 1; 0 for an answer that has none.

    Source: seq-rep-n of Welleck et al. 2020 (arXiv 1908.04319), equation 3; there with n = 4.
    """
    ratios = []
    for words in answers:
        grams = list(ngrams(words, n))
        ratios.append(1.0 - len(set(grams)) / len(grams) if grams else 0.0)
    return sum(ratios) / max(len(ratios), 1)


def identical_ratio(answers: Sequence[Words]) -> float:
    """Share of the answers that are the commonest one, 1 / k … 1; answers without a word are alike.

    >>> identical_ratio([["yes"], ["yes"], ["no"], ["yes"]])
    0.75

    Raises:
        ValueError: There is no answer.
    """
    if not answers:
        raise ValueError("there is no answer")
    return max(Counter(map(tuple, answers)).values()) / len(answers)


def length_drift(mean_words: float, start: float) -> float:
    """|ln| of the ratio of two mean lengths, each counted one word longer, so that 0 is a length too.

    0: as long as at the start; ln 2 ≈ 0.69: twice, or half, as long.
    """
    return abs(math.log((mean_words + 1.0) / (start + 1.0)))


def self_bleu(answers: Sequence[Words], max_order: int = MAX_ORDER) -> float:
    """Mean over the answers of the BLEU of each against all others, 0 … 1; 1 where all are the same.

    Each BLEU is that of ``sacrebleu.sentence_bleu`` (exponential smoothing, the effective order of short
    answers, the closest length of a reference) over 100, on these words. An answer without a word has
    0, or 1 where all are without one.

    Source: Zhu et al. 2018 (arXiv 1802.01886), section 3. Deviation: smoothing and effective order, so that
    answers under four words count.

    Cost: O(k · n): of each n-gram the two highest counts in an answer say what clips it in any of them.

    Raises:
        ValueError: There are fewer than two answers.
    """
    if len(answers) < 2:
        raise ValueError(f"self-BLEU compares answers with each other: {len(answers)} is too few")
    if not any(answers):
        return 1.0
    counts = [[Counter(ngrams(words, order)) for words in answers] for order in range(1, max_order + 1)]
    highest = [_two_highest(of_order) for of_order in counts]
    lengths = sorted(map(len, answers))
    total = 0.0
    for index, words in enumerate(answers):
        correct = [
            sum(min(count, _highest_of_others(two[gram], index)) for gram, count in of_order[index].items())
            for of_order, two in zip(counts, highest, strict=True)
        ]
        total += _bleu(correct, len(words), _closest_other(lengths, len(words)))
    return total / len(answers)


def ngrams(words: Words, n: int) -> Iterator[tuple[str, ...]]:
    """Every n words that stand together, in their order."""
    return (tuple(words[at : at + n]) for at in range(len(words) - n + 1))


_Two = tuple[int, int, int]
"""The highest count of an n-gram, the answer that has it, and the highest count in any other answer."""


def _two_highest(counts: Sequence[Counter[tuple[str, ...]]]) -> dict[tuple[str, ...], _Two]:
    highest: dict[tuple[str, ...], _Two] = {}
    for index, of_answer in enumerate(counts):
        for gram, count in of_answer.items():
            best, owner, second = highest.get(gram, (0, -1, 0))
            highest[gram] = (count, index, best) if count > best else (best, owner, max(second, count))
    return highest


def _highest_of_others(two: _Two, index: int) -> int:
    best, owner, second = two
    return second if owner == index else best


def _closest_other(lengths: Sequence[int], own: int) -> int:
    """The length of another answer that is nearest to ``own``, the shorter of two; ``lengths`` are sorted."""
    at = bisect_left(lengths, own)
    others = [*lengths[max(at - 1, 0) : at], *lengths[at + 1 : at + 2]]
    return min(others, key=lambda length: (abs(length - own), length))


def _bleu(correct: Sequence[int], length: int, reference: int) -> float:
    """BLEU from the clipped matches of each order; lengths of the answer and of the nearest other."""
    if not any(correct):
        return 0.0
    logs, smoothing = [], 1.0
    for order, matches in enumerate(correct, start=1):
        possible = length - order + 1
        if possible <= 0:
            break
        if matches == 0:
            smoothing *= 2.0
        logs.append(math.log(matches / possible if matches else 1.0 / (smoothing * possible)))
    brevity = min(0.0, 1.0 - reference / length)
    return math.exp(brevity + sum(logs) / len(logs))
