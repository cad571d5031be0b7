"""Train, validation and test: what is held out stands nowhere else, exactly or nearly.

Order and choice come from SHA-256 over the seed and an example's content, not from a random
generator or the order in the file: the split is the same on every machine, and adding examples
later moves few of the others.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import islice

from constrained_adapters.data.examples import Example, fingerprint_examples
from constrained_adapters.data.near import THRESHOLD, gram_sets, near_any, near_groups
from constrained_adapters.errors import DataError

HELD_OUT_RATIO = 0.1
"""Share of the examples that validation gets, and that test gets; the rest is trained on."""

Parts = dict[str, list[Example]]
"""``train``, ``validation`` and ``test``."""


def drop_duplicates(examples: Sequence[Example]) -> tuple[list[Example], list[str]]:
    """Keep the first of examples that are equal in every field.

    The same question with different answers is kept: which one is right is not for us to say.

    Returns:
        The examples in their order, and notes on what was dropped and what contradicts itself.
    """
    kept = list(dict.fromkeys(examples))
    notes = []
    if len(kept) < len(examples):
        notes.append(
            f"{len(examples) - len(kept)} exact duplicates of {len(examples)} examples were removed."
        )
    answers: dict[str, set[str]] = defaultdict(set)
    for example in kept:
        if example.form != "text":
            answers[question_text(example)].add(example.reference)
    conflicts = sum(len(different) > 1 for different in answers.values())
    if conflicts:
        notes.append(f"{conflicts} questions have more than one answer; all answers were kept.")
    return kept, notes


def split_examples(
    examples: Sequence[Example], seed: int, wanted: Sequence[str] = ("validation", "test")
) -> tuple[Parts, list[str]]:
    """Divide examples: a tenth for each part of ``wanted``, the rest for ``train``.

    Near duplicates (see :mod:`constrained_adapters.data.near`) and examples with the same question
    fall on one side. Groups are taken in a seeded order; each goes to the first held-out part that
    still has room for all of it, else to train, so large groups are trained on. The parts are
    disjoint, hold every example, and keep the given order.

    Args:
        examples: Without exact duplicates.
        seed: Another seed gives another split.
        wanted: The held-out parts.

    Returns:
        The parts, and notes on groups.

    Raises:
        DataError: Near duplicates bind so many examples together that a part stays empty.
    """
    groups = _groups(examples)
    members: dict[int, list[int]] = defaultdict(list)
    for position, group in enumerate(groups):
        members[group].append(position)
    # The group's key is the least of its members' keys, so that it does not depend on their order.
    ordered = sorted(members.values(), key=lambda group: min(_key(examples[item], seed) for item in group))
    room = {part: max(1, round(len(examples) * HELD_OUT_RATIO)) for part in reversed(wanted)}
    part_of: dict[int, str] = {}
    for bound in ordered:
        part = next((part for part, free in room.items() if free >= len(bound)), "train")
        if part != "train":
            room[part] -= len(bound)
        part_of.update(dict.fromkeys(bound, part))
    parts: Parts = {"train": [], **{part: [] for part in wanted}}
    for position, example in enumerate(examples):
        parts[part_of[position]].append(example)
    largest = max(map(len, members.values()))
    for part, held in parts.items():
        if not held:
            raise DataError(
                f"no examples are left for {part}",
                got=f"{len(members)} groups of near duplicates, the largest of {largest} examples",
                expected="examples that differ enough to be held out",
                hint="give more varied data, or 'train', 'validation' and 'test' files of your own",
            )
    near = sum(len(group) for group in members.values() if len(group) > 1)
    notes = [
        f"Split by seed {seed}: " + ", ".join(f"{len(held)} {part}" for part, held in parts.items()) + "."
    ]
    if near:
        notes.append(
            f"{near} examples are near duplicates (similarity ≥ {THRESHOLD}); each group is on one side."
        )
    return parts, notes


def separate_parts(parts: Mapping[str, Sequence[Example]]) -> tuple[Parts, list[str]]:
    """Drop from train what stands in validation or test, and from validation what stands in test.

    Exactly or nearly; the test part is never changed. The same question with another answer counts
    as standing there.

    Args:
        parts: ``train`` and any of ``validation`` and ``test``, as given by the user.

    Returns:
        The parts, and a note with the count of each drop.
    """
    names = [name for name in ("test", "validation", "train") if name in parts]
    everything = [example for name in names for example in parts[name]]
    pool = iter(gram_sets(list(map(_content, everything))))
    grams = {name: list(islice(pool, len(parts[name]))) for name in names}
    instructions = shared_instructions(everything)
    clean: Parts = {names[0]: list(parts[names[0]])}
    notes = []
    for place, name in enumerate(names[1:], start=1):
        dropped: set[int] = set()
        for held in names[:place]:
            questions = {question_text(example) for example in parts[held]} - instructions
            near = near_any(grams[name], grams[held])
            found = {
                position
                for position, example in enumerate(parts[name])
                if near[position] or question_text(example) in questions
            } - dropped
            dropped |= found
            if found:
                notes.append(
                    f"{len(found)} {name} examples stand in {held}, exactly or nearly; dropped from {name}."
                )
        clean[name] = [example for position, example in enumerate(parts[name]) if position not in dropped]
    return {name: clean[name] for name in reversed(names)}, notes


def cap_examples(examples: Sequence[Example], most: int | None, seed: int) -> list[Example]:
    """Choose at most ``most`` examples by seed, in their order; a larger cap keeps a smaller one's choice."""
    if most is None or len(examples) <= most:
        return list(examples)
    chosen = set(sorted(range(len(examples)), key=lambda item: _key(examples[item], seed))[:most])
    return [example for position, example in enumerate(examples) if position in chosen]


def _groups(examples: Sequence[Example]) -> list[int]:
    """Groups of near duplicates, joined where their members ask the same question."""
    instructions = shared_instructions(examples)
    first_asked: dict[str, int] = {}
    same_question = [
        (first_asked.setdefault(question, position), position)
        for position, question in enumerate(map(question_text, examples))
        if question not in instructions
    ]
    return near_groups(gram_sets([_content(example) for example in examples]), same_question)


def shared_instructions(examples: Sequence[Example]) -> set[str]:
    """Prompts that say what to do rather than ask something ("Write a poem"): many examples share them."""
    counts = Counter(map(question_text, examples))
    return {question for question, count in counts.items() if count > max(5, len(examples) // 20)}


def question_text(example: Example) -> str:
    """Everything but the last answer; the whole of a text."""
    if example.messages:
        return "\n".join(message.content for message in example.messages[:-1] if message.role != "system")
    return example.text if example.text is not None else (example.prompt or "")


def _content(example: Example) -> str:
    if example.messages:
        return "\n".join(message.content for message in example.messages if message.role != "system")
    return example.text if example.text is not None else f"{example.prompt}\n{example.answer}"


def _key(example: Example, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}:{fingerprint_examples([example])}".encode()).digest()
