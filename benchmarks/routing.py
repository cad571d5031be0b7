"""How often the router picks the domain that an oracle would, what it takes for one wrongly, what it costs.

Run:   OMP_NUM_THREADS=1 python benchmarks/routing.py [--split test] [--items 200] [--base embedded]
Makes: benchmarks/results/routing-<split>-<date>.json

Statistics are of 128 training prompts of each packaged domain, as a run keeps them. Scored are the prompts
of the split as they stand, and 'bare': without the words that all prompts of a domain share ('News: …
What is the topic of this news?'), which the statistics have. Of no domain are: text that the base wrote
with another seed, half of it as questions of users; newsgroups and tales; and the prompts of the domains
that a router does not know. Settings were chosen on the validation split. The router's time is a share of
the prefill of the same prompts under the chat template, in processor seconds, the two in turn.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from constrained_adapters.config.run import BaseConfig
from constrained_adapters.data.examples import Domain, Example
from constrained_adapters.data.packaged import load_packaged
from constrained_adapters.data.tokens import encode_prompt
from constrained_adapters.models.load import LoadedBase, load_base
from constrained_adapters.routing import BASE, Route, Router
from constrained_adapters.routing.build import domain_prompts
from constrained_adapters.routing.discriminant import Discriminant
from constrained_adapters.routing.own_text import write_own_text
from constrained_adapters.routing.preferences import FALSE_CHOICE_RATE
from constrained_adapters.routing.states import PromptStates
from constrained_adapters.routing.statistics import PromptStatistics
from constrained_adapters.training.run import environment

ROOT = Path(__file__).parent
DEMO = ("medicine", "finance", "programming")
ALL = ("law", "medicine", "programming", "finance", "history", "chinese")
BINS = 10


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--split", choices=["validation", "test"], default="test")
    parser.add_argument("--items", type=int, default=200, help="of each domain")
    parser.add_argument("--rounds", type=int, default=5, help="of the timing")
    parser.add_argument("--base", default="embedded")
    options = parser.parse_args()
    base = load_base(BaseConfig(model=options.base))
    vectors = PromptStates(base.model, base.tokenizer)
    data = {name: load_packaged(name) for name in (*ALL, "general")}
    known = {name: known_statistics(name, data[name]["train"], vectors) for name in ALL}
    own = vectors(write_own_text(base.model, base.tokenizer))
    fresh = write_own_text(base.model, base.tokenizer, seed=1)
    items = {name: data[name][options.split][: options.items] for name in data}
    result: dict[str, Any] = {"routers": {}}
    for label, domains in (("demo's three", DEMO), ("all six", ALL)):
        fitted = Discriminant.fit([known[name] for name in domains], own, false_choice_rate=FALSE_CHOICE_RATE)
        router = Router(domains, vectors, fitted, {})
        result["routers"][label] = measured(router, items, fresh)
        print(label, json.dumps(result["routers"][label], indent=1), flush=True)
    result["time"] = time_share(
        base, router, [each for name in ALL for each in items[name][:5]], options.rounds
    )
    print(json.dumps(result["time"]), flush=True)
    result |= {
        "split": options.split,
        "items_per_domain": options.items,
        "false_choice_rate": FALSE_CHOICE_RATE,
        "base": base.description,
        "environment": environment(),
    }
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    file = ROOT / "results" / f"routing-{options.split}-{date}.json"
    file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(file)


def known_statistics(name: str, train: list[Example], vectors: PromptStates) -> PromptStatistics:
    """What a run would keep of a packaged domain."""
    domain = Domain(name, tuple(train), (), (), train[0].form, f"packaged:{name}", "")
    made, lengths = vectors(domain_prompts(domain, seed=0))
    return PromptStatistics.of(made, lengths, made_from=vectors.name)


def measured(router: Router, items: dict[str, list[Example]], fresh: list[str]) -> dict[str, Any]:
    """Shares of prompts that were routed rightly, and of those taken for a domain's that are of none."""
    prompts = {name: [each.task_prompt for each in items[name]] for name in ALL}
    whole = {name: router.route_many(prompts[name]) for name in ALL}
    bare = {name: router.route_many([bare_text(text) for text in prompts[name]]) for name in router.domains}
    half = len(fresh) // 2
    none = {
        "the base's questions": router.route_many(fresh[:half]),
        "the base's running text": router.route_many(fresh[half:]),
        "newsgroups and tales": router.route_many([str(each.text) for each in items["general"]]),
        **{f"prompts of {name}": whole[name] for name in ALL if name not in router.domains},
    }
    scored = [(route, name) for name in router.domains for route in whole[name]]
    return {
        "agrees_with_oracle": {name: share(whole[name], name) for name in router.domains},
        "agrees_with_oracle_mean": mean(share(whole[name], name) for name in router.domains),
        "right_domain_or_base": mean(
            1.0 - sum(r.domain not in {name, None} for r in whole[name]) / len(whole[name])
            for name in router.domains
        ),
        "bare_agrees": {name: share(bare[name], name) for name in router.domains},
        "bare_agrees_mean": mean(share(bare[name], name) for name in router.domains),
        "bare_wrong_domain": mean(
            sum(r.domain not in {name, None} for r in bare[name]) / len(bare[name]) for name in router.domains
        ),
        "false_choices": {kind: 1.0 - share(routes, None) for kind, routes in none.items()},
        "calibration_error": calibration_error(
            [
                *scored,
                *[(route, name) for name in router.domains for route in bare[name]],
                *[(route, None) for route in none["newsgroups and tales"]],
                *[(route, None) for kind in list(none)[:2] for route in none[kind]],
            ]
        ),
    }


def bare_text(prompt: str) -> str:
    """A prompt without its domain's frame: the words before the first colon, and all lines but the first."""
    return re.sub(r"^[^:：\n]{1,60}[:：] ?", "", prompt.split("\n", 1)[0])


def share(routes: list[Route], domain: str | None) -> float:
    """Of routes that chose ``domain``."""
    return sum(route.domain == domain for route in routes) / len(routes)


def mean(values: Any) -> float:
    """Of numbers."""
    return statistics.fmean(values)


def calibration_error(routes: list[tuple[Route, str | None]]) -> float:
    """Expected calibration error of the probability of what was chosen, over ten bins of equal width."""
    error = 0.0
    for low in range(BINS):
        inside = [(r, t) for r, t in routes if min(int(r.probability * BINS), BINS - 1) == low]
        if inside:
            said = mean(r.probabilities[r.domain or BASE] for r, _ in inside)
            right = mean(float(r.domain == truth) for r, truth in inside)
            error += abs(said - right) * len(inside) / len(routes)
    return error


def time_share(base: LoadedBase, router: Router, examples: list[Example], rounds: int) -> dict[str, Any]:
    """Seconds of routing and of the prefill of the same prompts, one prompt at a time, the two in turn."""
    ids = [encode_prompt(each, base.tokenizer, 1024) for each in examples]
    texts = [each.task_prompt for each in examples]
    seconds: dict[str, list[float]] = {"router": [], "prefill": []}
    for _ in range(rounds + 1):  # the first warms up
        begun = time.process_time()
        for text in texts:
            router.route(text)
        seconds["router"].append(time.process_time() - begun)
        begun = time.process_time()
        with torch.no_grad():
            for row in ids:
                base.model(torch.tensor([row]), logits_to_keep=1, use_cache=True)
        seconds["prefill"].append(time.process_time() - begun)
    pairs = list(zip(seconds["router"][1:], seconds["prefill"][1:], strict=True))
    return {
        "router_to_prefill": statistics.median(router / prefill for router, prefill in pairs),
        "prompts": len(texts),
        "mean_prompt_tokens": mean(len(row) for row in ids),
        "router_ms": 1000 * statistics.median(router for router, _ in pairs) / len(texts),
        "prefill_ms": 1000 * statistics.median(prefill for _, prefill in pairs) / len(texts),
    }


if __name__ == "__main__":
    main()
