"""How well does `crma diagnose` rank the forgetting that sequential LoRA really shows?

Run:   python benchmarks/diagnosis.py --minutes 10     (the same command goes on until all pairs are there)
       python benchmarks/diagnosis.py --predict        (then: each pair's diagnosis, and the correlations)
Makes: <work>/pairs.jsonl, one line a pair, appended whole; benchmarks/results/diagnosis-<date>.json

Each packaged domain is learnt once by a LoRA from the base; from each of these, every other domain is learnt
by a second LoRA on top (recipe `lora`). Forgetting is the rise of the first domain's loss on its validation
items over the training of the second, nats per answer token. No figure of a pair's training reaches its
diagnosis.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np
from scipy.stats import spearmanr
from transformers import set_seed

from constrained_adapters.config.run import (
    AdapterConfig,
    BaseConfig,
    DomainConfig,
    MethodConfig,
    TrainingConfig,
)
from constrained_adapters.data.load import load_domain
from constrained_adapters.data.packaged import load_packaged
from constrained_adapters.data.tokens import TokenDataset
from constrained_adapters.diagnosis.probe import Probe
from constrained_adapters.diagnosis.risk import LEVELS, Signals, assess, highest
from constrained_adapters.diagnosis.settings import DiagnosisSettings
from constrained_adapters.diagnosis.texts import Side
from constrained_adapters.evaluation.scores import ExampleScore, score_examples
from constrained_adapters.model import CRMAModel
from constrained_adapters.models.load import load_base
from constrained_adapters.models.targets import resolve_targets
from constrained_adapters.recipes import model_config
from constrained_adapters.training.domain import train_domain
from constrained_adapters.training.observer import SilentObserver
from constrained_adapters.training.run import environment

ROOT = Path(__file__).parent
DOMAINS = ("law", "medicine", "programming", "finance", "history", "chinese")
RESAMPLES = 2_000
SIGNALS = [each.name for each in fields(Signals)]
SHOWN = (
    "first", "second", "forgotten_nats", "forgotten_ratio", "trial_increase", "level",
    "level_without_trial", "signals", "before", "after", "seconds",
)  # fmt: skip
Record = dict[str, Any]


def main() -> None:
    """Measure what time allows, or predict."""
    options = read_options()
    options.work.mkdir(parents=True, exist_ok=True)
    fix_settings(options)
    if options.predict:
        predict(options)
        return
    end = time.monotonic() + 60 * options.minutes
    for first, second in missing_pairs(options):
        if time.monotonic() > end:
            break
        begun = time.monotonic()
        record = measure_pair(options, first, second)
        append(options.work / "pairs.jsonl", record)
        before, after = record["before"]["loss"], record["after"]["loss"]
        seconds = time.monotonic() - begun
        print(f"{first} → {second}: {before:.3f} → {after:.3f} nats ({seconds:.0f} s)", flush=True)
    left = len(list(missing_pairs(options)))
    print(f"{left} of {len(DOMAINS) * (len(DOMAINS) - 1)} pairs are left")


def read_options() -> Any:
    """The command line."""
    parser = argparse.ArgumentParser(description="Predicted risk against measured forgetting.")
    parser.add_argument("--minutes", type=float, default=10.0, help="begin no further pair after it")
    parser.add_argument("--predict", action="store_true", help="diagnose the measured pairs and correlate")
    parser.add_argument("--base", default="embedded")
    parser.add_argument("--steps", type=int, default=16, help="of 8 rows, for each domain")
    parser.add_argument("--tokens", type=int, default=48, help="longest row")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--items", type=int, default=24, help="validation items of the first domain")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("runs/diagnosis"))
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    return parser.parse_args()


# ---- what sequential LoRA forgets


def missing_pairs(options: Any) -> Iterator[tuple[str, str]]:
    """Pairs that are not measured yet, in an order in which the first domains take turns."""
    there = {(each["first"], each["second"]) for each in read_pairs(options.work / "pairs.jsonl")}
    for shift in range(1, len(DOMAINS)):
        for position, first in enumerate(DOMAINS):
            second = DOMAINS[(position + shift) % len(DOMAINS)]
            if (first, second) not in there:
                yield first, second


def measure_pair(options: Any, first: str, second: str) -> Record:
    """Train the second domain on top of the first; score the first before and after."""
    model = fresh_model(options)
    home = options.work / first
    if not (home / "learnt.json").is_file():
        train(options, model, first, number=1)
        model.freeze_adapter(first)
        model.save_adapter(home, first)
        write(home / "learnt.json", score(options, model, first))
    else:
        model.load_adapter(home, first)
    before = json.loads((home / "learnt.json").read_text(encoding="utf-8"))
    begun = time.monotonic()
    losses = train(options, model, second, number=2, on_top_of=[first])
    return {
        "first": first,
        "second": second,
        "before": before,
        "after": score(options, model, first),
        "training_loss": {"first_step": losses[0], "last_step": losses[-1]},
        "seconds": time.monotonic() - begun,
    }


def fresh_model(options: Any) -> CRMAModel:
    """The base, with the settings of recipe ``lora``."""
    base = BaseConfig(model=options.base)
    config = model_config(MethodConfig(recipe="lora"), base, AdapterConfig())
    return CRMAModel.from_base(load_base(base), config)


def train(
    options: Any, model: CRMAModel, domain: str, *, number: int, on_top_of: list[str] | None = None
) -> list[float]:
    """Train a new adapter, as ``crma run`` does; its losses by step."""
    settings = TrainingConfig(
        steps=options.steps, batch_size=8, max_length_tokens=options.tokens, checkpoint_every_steps=10_000
    )
    rows = TokenDataset.from_examples(load_packaged(domain)["train"], model.tokenizer, options.tokens)
    set_seed(options.seed * 1000 + number)
    model.create_adapter(domain, domain_id=number)
    model.set_active_adapters([*(on_top_of or []), domain])
    with tempfile.TemporaryDirectory() as folder:
        record = train_domain(
            model,
            model.tokenizer,
            rows,
            settings,
            method="lora",
            domain=domain,
            learning_rate=options.rate,
            seed=options.seed * 1000 + number,
            folder=Path(folder),
            observer=SilentObserver(),
        )
    return record.curves["loss"][1]


def score(options: Any, model: CRMAModel, domain: str) -> Record:
    """Loss and choices on the validation items of a domain, item by item."""
    examples = load_packaged(domain)["validation"][: options.items]
    scores: list[ExampleScore] = score_examples(
        model, model.tokenizer, examples, batch_size=8, max_length=options.tokens
    )
    tokens = sum(each.num_tokens for each in scores)
    return {
        "loss": sum(each.loss_nats * each.num_tokens for each in scores) / tokens,
        "choice_accuracy": sum(bool(each.choice_correct) for each in scores) / len(scores),
        "item_nats": [round(each.loss_nats * each.num_tokens, 5) for each in scores],
        "item_tokens": [each.num_tokens for each in scores],
        "item_right": [int(bool(each.choice_correct)) for each in scores],
    }


# ---- what the diagnosis says beforehand


def predict(options: Any) -> None:
    """Diagnose every measured pair from the base, and set the signals against the measured forgetting."""
    pairs = read_pairs(options.work / "pairs.jsonl")
    path, begun = options.work / "signals.jsonl", time.monotonic()
    there = {(each["first"], each["second"]): each for each in read_pairs(path)}
    probe, sides = None, {}
    for pair in pairs:
        key = (pair["first"], pair["second"])
        if key in there or time.monotonic() > begun + 60 * options.minutes:
            continue
        if probe is None:
            probe, sides = make_probe(options)
        record = {"first": key[0], "second": key[1], **asdict(probe.compare(sides[key[0]], sides[key[1]]))}
        append(path, record)
        print(f"{key[0]} → {key[1]}: {record} ({time.monotonic() - begun:.0f} s)", flush=True)
    signals = {(each["first"], each["second"]): each for each in read_pairs(path)}
    report(options, pairs, signals)


def report(options: Any, pairs: list[Record], signals: dict[tuple[str, str], Record]) -> None:
    """Correlations of each signal with what was forgotten, and of the level that it is turned into."""
    rest = [pair for pair in pairs if (pair["first"], pair["second"]) not in signals]
    pairs = [pair for pair in pairs if pair not in rest]
    for pair in pairs:
        found = Signals(**{name: signals[pair["first"], pair["second"]][name] for name in SIGNALS})
        for trial, record in ((True, found), (False, replace(found, trial_after_nats=None))):
            counts = {"num_new": 1, "num_contradictions": 0, "num_denied": 0, "num_asked": 1}
            findings = assess(record, **counts, settings=DiagnosisSettings())
            pair["level" if trial else "level_without_trial"] = LEVELS.index(highest(findings))
        pair |= {"signals": asdict(found), "trial_increase": found.trial_increase}
        pair["forgotten_nats"] = pair["after"]["loss"] - pair["before"]["loss"]
        pair["forgotten_ratio"] = pair["after"]["loss"] / pair["before"]["loss"] - 1.0
    predictors: dict[str, Any] = {
        "trial: rise of the old loss": lambda pair: pair["trial_increase"],
        "level low, medium, high (with the trial)": lambda pair: pair["level"],
        "level without a trial (the texts and gradients)": lambda pair: pair["level_without_trial"],
        "KL of token distributions": lambda pair: pair["signals"]["kl_nats"],
        "1 - Jaccard of vocabularies": lambda pair: -pair["signals"]["jaccard"],
        "gradient conflict (-cosine)": lambda pair: -pair["signals"]["gradient_cosine"],
        "base's loss on new": lambda pair: pair["signals"]["new_nats"],
        "base's loss on new - on old": lambda pair: pair["signals"]["new_nats"] - pair["signals"]["old_nats"],
    }
    table = {name: correlation(pairs, of) for name, of in predictors.items()}
    levels = {
        name: [pair["forgotten_ratio"] for pair in pairs if pair["level"] == index]
        for index, name in enumerate(LEVELS)
    }
    means = {name: sum(each) / len(each) if each else None for name, each in levels.items()}
    record = {
        "what": "predicted risk against the forgetting of sequential LoRA, all ordered pairs of six domains",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": environment(),
        "settings": {
            "forgetting": json.loads((options.work / "settings.json").read_text(encoding="utf-8")),
            "diagnosis": DiagnosisSettings(max_length_tokens=options.tokens).model_dump(),
        },
        "num_pairs": len(pairs),
        "spearman_with_forgotten_ratio": table,
        "mean_forgotten_ratio_by_level": {
            name: {"pairs": len(levels[name]), "mean": mean} for name, mean in means.items()
        },
        "pairs": [{key: pair[key] for key in SHOWN} for pair in pairs],
        "measured_but_not_diagnosed_yet": rest,
    }
    path = options.results / f"diagnosis-{datetime.now(UTC):%Y-%m-%d}.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for name, found in table.items():
        low, high = found["interval"]
        print(f"{name:<50} {found['spearman']:+.2f} ({low:+.2f} to {high:+.2f})")
    print(json.dumps(record["mean_forgotten_ratio_by_level"]), f"written to {path}", sep="\n")


def correlation(pairs: list[Record], predictor: Any) -> Record:
    """Spearman's, with a bootstrap interval over pairs; without each domain; within each first domain.

    Pairs share domains, so that the interval is rather too narrow than too wide. Nothing is fitted: leaving
    a domain out shows only whether one of them makes the figure.
    """
    x = np.array([float(predictor(pair)) for pair in pairs])
    y = np.array([pair["forgotten_ratio"] for pair in pairs])
    picks = np.random.default_rng(0).integers(len(pairs), size=(RESAMPLES, len(pairs)))
    drawn = [rank_correlation(x[pick], y[pick]) for pick in picks]
    interval = [float(each) for each in np.nanquantile(drawn, (0.025, 0.975))]

    def of(keep: list[bool]) -> float:
        return rank_correlation(x[np.array(keep)], y[np.array(keep)])

    without = {name: of([name not in (p["first"], p["second"]) for p in pairs]) for name in DOMAINS}
    within = [of([p["first"] == name for p in pairs]) for name in DOMAINS]
    return {
        "spearman": rank_correlation(x, y),
        "interval": interval,
        "without_domain": without,
        "mean_within_first_domain": float(np.nanmean(within)) if not np.all(np.isnan(within)) else None,
    }


def rank_correlation(x: Any, y: Any) -> float:
    """Spearman's; not a number where one side is constant."""
    if np.ptp(x) == 0.0 or np.ptp(y) == 0.0:
        return math.nan
    return float(spearmanr(x, y).statistic)


def make_probe(options: Any) -> tuple[Probe, dict[str, Side]]:
    """The base, asked as ``crma diagnose`` asks it, and a side of each domain."""
    base = load_base(BaseConfig(model=options.base))
    modules = {name: base.model.get_submodule(name) for name in resolve_targets(base.model)}
    settings = DiagnosisSettings(max_length_tokens=options.tokens)
    probe = Probe(base.model, base.tokenizer, modules, settings, seed=options.seed)
    sources = [DomainConfig(name=name, data=f"packaged:{name}") for name in DOMAINS]
    return probe, {each.name: probe.domain(load_domain(each, options.seed)) for each in sources}


# ---- what lies on disk


def fix_settings(options: Any) -> None:
    """Refuse a folder that holds pairs of other settings."""
    settings = {key: getattr(options, key) for key in ("base", "steps", "tokens", "rate", "items", "seed")}
    path = options.work / "settings.json"
    if path.is_file() and json.loads(path.read_text(encoding="utf-8")) != settings:
        sys.exit(f"{options.work} holds pairs of other settings: choose another --work")
    write(path, settings)


def read_pairs(path: Path) -> list[Record]:
    """The pairs so far."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]


def append(path: Path, record: Record) -> None:
    """One whole line at the end."""
    with path.open("ab") as file:
        file.write((json.dumps(record) + "\n").encode())
        file.flush()
        os.fsync(file.fileno())


def write(path: Path, record: Record) -> None:
    """A file that is there whole or not at all."""
    path.with_suffix(".part").write_text(json.dumps(record), encoding="utf-8")
    path.with_suffix(".part").replace(path)


if __name__ == "__main__":
    main()
