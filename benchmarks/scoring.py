"""Scoring choices: one sequence a pass, in length-bucketed batches, and as trees of shared beginnings.

Run:   python benchmarks/scoring.py [--items 3] [--rounds 3]
Makes: benchmarks/results/scoring.json

The same items of the packaged domains are scored in three ways by the packaged model, in turns, so that a
busy machine slows all of them alike; the figures are medians over the rounds. That the numbers are the same
is checked here too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from constrained_adapters.config.run import BaseConfig
from constrained_adapters.data.packaged import load_packaged
from constrained_adapters.data.tokens import encode_answer, encode_prompt
from constrained_adapters.evaluation.likelihood import TokenScores, _score_flat, score_groups
from constrained_adapters.models.load import load_base
from constrained_adapters.models.token_tree import TokenSequence
from constrained_adapters.training.run import environment
from constrained_adapters.workspace import atomic_write_text

RESULT = Path(__file__).parent / "results" / "scoring.json"
DOMAINS = ("programming", "medicine", "finance")
MAX_LENGTH = 128
BATCH = 16
Groups = list[list[TokenSequence]]


def read_groups(name: str, tokenizer: Any, num_items: int) -> Groups:
    """One group per test item: the prompt with each of its choices."""
    groups = []
    for example in load_packaged(name)["test"][:num_items]:
        prompt = encode_prompt(example, tokenizer, MAX_LENGTH)
        answers = [encode_answer(example, tokenizer, choice) for choice in example.choices]
        groups.append(
            [TokenSequence(prompt + a, list(range(len(prompt), len(prompt) + len(a)))) for a in answers]
        )
    return groups


@torch.no_grad()
def one_by_one(model: Any, groups: Groups) -> list[list[TokenScores]]:
    """One sequence a pass; logits only where they are needed."""

    def score(sequence: TokenSequence) -> TokenScores:
        keep = torch.tensor(sequence.scored) - 1
        logits = model(
            input_ids=torch.tensor([sequence.input_ids[:-1]]), logits_to_keep=keep, use_cache=False
        ).logits[0]
        wanted = torch.tensor(sequence.input_ids)[sequence.scored]
        nats = torch.nn.functional.cross_entropy(logits.float(), wanted, reduction="none")
        return TokenScores(nats.tolist(), (logits.argmax(-1) == wanted).tolist())

    return [[score(sequence) for sequence in group] for group in groups]


@torch.no_grad()
def batched(model: Any, groups: Groups) -> list[list[TokenScores]]:
    """Sequences of like length in one padded batch."""
    return _score_flat(model, groups, BATCH)


def as_trees(model: Any, groups: Groups) -> list[list[TokenScores]]:
    """Shared beginnings once: what crma eval and crma run do."""
    return score_groups(model, groups, max_groups=BATCH)


WAYS: dict[str, Callable[[Any, Groups], list[list[TokenScores]]]] = {
    "one_by_one": one_by_one,
    "batched": batched,
    "trees": as_trees,
}


def largest_difference(first: Sequence[Any], second: Sequence[Any]) -> float:
    """The largest difference of two ways' nats."""
    return max(
        abs(x - y)
        for one, other in zip(first, second, strict=True)
        for a, b in zip(one, other, strict=True)
        for x, y in zip(a.nats, b.nats, strict=True)
    )


def measure(model: Any, groups: Groups, rounds: int) -> dict[str, Any]:
    """Seconds of each way, taken in turns, and how they compare."""
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    scores = {"trees": as_trees(model, groups[:1])}  # warm
    for _ in range(rounds):
        for name, way in WAYS.items():
            begun = time.perf_counter()
            scores[name] = way(model, groups)
            seconds[name].append(time.perf_counter() - begun)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "items": len(groups),
        "sequences": sum(map(len, groups)),
        "seconds": {name: round(value, 3) for name, value in medians.items()},
        "speed_up": {name: round(medians["one_by_one"] / value, 2) for name, value in medians.items()},
        "largest_difference_nats": max(
            largest_difference(scores["one_by_one"], scores[name]) for name in ("batched", "trees")
        ),
    }


def main() -> None:
    """Measure every domain and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--items", type=int, default=3, help="of each domain")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    base = load_base(BaseConfig())
    domains = {}
    for name in DOMAINS:
        domains[name] = measure(base.model, read_groups(name, base.tokenizer, options.items), options.rounds)
        print(name, json.dumps(domains[name]), flush=True)
    totals = {name: sum(each["seconds"][name] for each in domains.values()) for name in WAYS}
    result = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": f"python benchmarks/scoring.py --items {options.items} --rounds {options.rounds}",
        "environment": environment(),
        "base": base.description["model"],
        "max_length_tokens": MAX_LENGTH,
        "domains": domains,
        "all": {
            "seconds": {name: round(value, 3) for name, value in totals.items()},
            "speed_up": {name: round(totals["one_by_one"] / value, 2) for name, value in totals.items()},
        },
    }
    atomic_write_text(RESULT, json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["all"]))


if __name__ == "__main__":
    main()
