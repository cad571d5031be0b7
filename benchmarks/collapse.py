"""Does a run that collapses without ``prevent_collapse`` hold with it, and what does it cost a healthy one?

Run:   python benchmarks/collapse.py [--minutes 10] [--seeds 0 1 2]
Makes: benchmarks/results/collapse-<date>.json and docs/assets/collapse.svg (--figure); each cell is kept in
       --work, and not done again

Two runs of the default model learn one packaged domain with short answers of few kinds, as a user would
write them into crma.yaml: one at a usual rate, one far too hot (2e-2 for 2e-4 is one key). Each is done with
the switch and without it, at several seeds. Without it the same guard looks on and does nothing (its looks
are not counted as time). Held-out items of the domain are scored, and sixteen open questions answered, by the
model that is left.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import Counter
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import matplotlib as mpl

from constrained_adapters.benchmark.spread import estimate
from constrained_adapters.config.collapse import PreventCollapseConfig
from constrained_adapters.config.run import RunConfig
from constrained_adapters.evaluation.diversity import Diversity, measure_diversity
from constrained_adapters.evaluation.fixed_prompts import FixedPrompts
from constrained_adapters.guards.collapse_detector import CollapseDetector, Reading
from constrained_adapters.guards.open_questions import OPEN_QUESTIONS
from constrained_adapters.model.opened import open_workspace
from constrained_adapters.training.run import environment, run_config
from constrained_adapters.workspace import Workspace

ROOT = Path(__file__).parent
RATES = {"hot": 2e-2, "healthy": 1e-3}
STEPS = {"hot": 24, "healthy": 48}
LOOKS = {"hot": {"check_every_steps": 6}, "healthy": {}}
"""A hot run is looked at often, whatever that costs: what it costs is asked of the healthy one."""
ANSWER_TOKENS = 16
LOOKS_ON = {
    "stage_ratios": None,
    "warmup_ratio": None,
    "label_smoothing": 0.0,
    "general_ratio": 0.0,
    "attention_dropout": 0.0,
    "residual_dropout": 0.0,
    "mlp_dropout": 0.0,
    "min_unique_trigram_ratio": 0.0,
    "max_self_bleu": 1.0,
    "min_entropy_ratio": 0.0,
    "max_identical_ratio": 1.0,
    "max_repetition_ratio": 1.0,
}
"""A guard that changes nothing and raises nothing."""
Record = dict[str, Any]


def main() -> None:
    """Do the cells that are not there yet, as far as the time reaches, and write."""
    options = read_options()
    if options.clock == "cpu":
        time.perf_counter = time.process_time  # neighbours on the machine do not count
    options.work.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    cells = []
    for run in options.runs:
        for seed in options.seeds:
            for switch in (False, True):
                name = f"{run}-{seed}-{'with' if switch else 'without'}"
                path = options.work / f"{name}.json"
                if not path.is_file():
                    if time.monotonic() - begun > 60 * options.minutes:
                        print(f"{name} and what follows: run this again")
                        return write(options, cells)
                    record = cell(options, name, run, seed, switch)
                    path.write_text(json.dumps(record), encoding="utf-8")
                cells.append(json.loads(path.read_text(encoding="utf-8")))
                print(shown(name, cells[-1]), flush=True)
    return write(options, cells)


def read_options() -> Any:
    """The command line."""
    parser = argparse.ArgumentParser(description="Collapse, with the switch and without.")
    parser.add_argument("--base", default="embedded")
    parser.add_argument("--domain", default="medicine")
    parser.add_argument("--tokens", type=int, default=64, help="longest row")
    parser.add_argument("--items", type=int, default=60, help="held-out items that are scored")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", nargs="+", choices=sorted(RATES), default=list(RATES))
    parser.add_argument("--minutes", type=float, default=600.0, help="begin no cell after so many")
    parser.add_argument("--clock", choices=["cpu", "wall"], default="cpu")
    parser.add_argument("--work", type=Path, default=Path("runs/collapse"))
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    parser.add_argument("--figure", type=Path, default=ROOT.parent / "docs" / "assets" / "collapse.svg")
    return parser.parse_args()


def cell(options: Any, name: str, run: str, seed: int, switch: bool) -> Record:
    """One training, with the switch or looked at only, and what it left."""
    config = RunConfig(
        output=options.work / name,
        seed=seed,
        base={"model": options.base},
        training={
            "steps": STEPS[run],
            "batch_size": 8,
            "max_length_tokens": options.tokens,
            "learning_rate": RATES[run],
        },
        methods=[{"recipe": "lora"}],
        domains=[{"name": options.domain, "data": f"packaged:{options.domain}"}],
        evaluation={"max_items": options.items, "general": None, "num_samples": 0},
        prevent_collapse=(LOOKS[run] or True)
        if switch
        else {**LOOKS_ON, "check_every_steps": STEPS[run] // 4},
    )
    workspace = Workspace(config.output / config.methods[0].name)
    known = options.work / f"base-{seed}.json"  # the base is scored once for each seed
    if known.is_file():
        workspace.evaluations.mkdir(parents=True, exist_ok=True)
        workspace.evaluation(0).write_bytes(known.read_bytes())
    method = run_config(config).methods[0]
    known.write_bytes(workspace.evaluation(0).read_bytes())
    record = method.records[0]
    opened = open_workspace(workspace)
    opened.activate(options.domain)
    prompts = FixedPrompts(OPEN_QUESTIONS, opened.tokenizer)
    answers = prompts.answers(opened.model, ANSWER_TOKENS)
    texts = prompts.texts(answers)
    took = next(event["numbers"] for event in record.events if event["action"] == "finished")
    return {
        "run": run,
        "seed": seed,
        "switch": switch,
        "rate": RATES[run],
        "accuracy": method.matrices["choice_accuracy"][1][0],
        "exact_match": method.matrices["exact_match"][1][0],
        "loss": method.matrices["loss"][1][0],
        "base_accuracy": method.matrices["choice_accuracy"][0][0],
        "clock": options.clock,
        "stage_ratios": config.collapse_settings.stage_ratios if config.collapse_settings else None,
        "train_seconds": took["train_seconds"] + (took["seconds"] if switch else 0.0),
        "guard_seconds": took["seconds"],
        "time_ratio": took["time_ratio"] if switch else 0.0,
        "events": record.events,
        "curves": {name: curve.model_dump() for name, curve in record.curves.items()},
        "final": {**asdict(measure_diversity(texts)), "output_entropy_nats": answers.mean_entropy_nats},
        "commonest": Counter(texts).most_common(1)[0],
        "answers": dict(zip(OPEN_QUESTIONS, texts, strict=True)),
    }


def write(options: Any, cells: list[Record]) -> None:
    """All cells and what they say together."""
    shown_options = {
        key: value for key, value in vars(options).items() if key not in {"work", "results", "figure"}
    }
    record = {
        "what": "one domain learnt at a usual rate and far too hot, with prevent_collapse and without",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": environment(),
        "settings": {**shown_options, "base": Path(options.base).name, "rates": RATES, "steps": STEPS},
        "summary": summary(cells),
        "cells": cells,
    }
    path = options.results / f"collapse-{datetime.now(UTC):%Y-%m-%d}.json"
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    draw(cells, options.figure)
    print(json.dumps(record["summary"], indent=1), f"written to {path} and {options.figure}", sep="\n")


def draw(cells: list[Record], path: Path) -> None:
    """Self-BLEU of the answers over the steps, a line a cell."""
    sides = {False: ("without the switch", "o", "#b5561f"), True: ("with it", "s", "#1b6e8c")}
    runs = [run for run in ("hot", "healthy") if any(each["run"] == run for each in cells)]
    settings = {
        "svg.hashsalt": "collapse",
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 9,
    }
    with mpl.rc_context(settings):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8.2, 3.0), layout="constrained")
        for run, axes in zip(runs, figure.subplots(1, len(runs), squeeze=False)[0], strict=True):
            for switch, (label, marker, colour) in sides.items():
                curves = [c["curves"]["self_bleu"] for c in cells if (c["run"], c["switch"]) == (run, switch)]
                for number, curve in enumerate(curves):
                    name = None if number else label
                    axes.plot(
                        curve["steps"], curve["values"], marker=marker, markersize=4, color=colour, label=name
                    )
            axes.axhline(PreventCollapseConfig().max_self_bleu, color="#777777", linestyle=":", linewidth=1)
            axes.set(xlabel="step", ylabel="Self-BLEU of 16 answers", ylim=(-0.03, 1.05))
            axes.set(title=f"rate {RATES[run]:g}, {STEPS[run]} steps")
            axes.legend(frameon=False, fontsize=8, loc="center right")
            axes.grid(color="#dddddd", linewidth=0.6)
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, metadata={"Date": None, "Creator": None})


def summary(cells: list[Record]) -> Record:
    """Means over the seeds that both sides have, with 95 % bootstrap intervals of the differences."""
    found: Record = {}
    for run in sorted({each["run"] for each in cells}):
        sides = {
            switch: {each["seed"]: each for each in cells if each["run"] == run and each["switch"] is switch}
            for switch in (False, True)
        }
        seeds = sorted(set(sides[False]) & set(sides[True]))
        if not seeds:
            continue
        without, with_it = ([sides[switch][seed] for seed in seeds] for switch in (False, True))
        gains = estimate([b["accuracy"] - a["accuracy"] for a, b in zip(without, with_it, strict=True)])
        found[run] = {
            "seeds": seeds,
            **{
                key: {"without": mean(without, key), "with": mean(with_it, key)}
                for key in ("accuracy", "loss", "train_seconds")
            },
            **{
                key: {
                    "without": [each["final"][key] for each in without],
                    "with": [each["final"][key] for each in with_it],
                }
                for key in ("identical_ratio", "self_bleu", "unique_trigram_ratio", "output_entropy_nats")
            },
            "untouched_looks": [judged(each) for each in without],
            "accuracy_change": None if gains is None else asdict(gains),
            "time_change": mean(with_it, "train_seconds") / mean(without, "train_seconds") - 1.0,
            "guard_time_ratio": mean(with_it, "time_ratio"),
            "returns": [sum(e["action"] == "rolled_back" for e in each["events"]) for each in with_it],
            "stops": [sum(e["action"] == "stopped" for e in each["events"]) for each in with_it],
        }
    return found


def judged(record: Record) -> dict[str, str]:
    """What the detector, at its defaults, says of each look at a run that it did not touch, by step."""
    of_step: dict[int, dict[str, float]] = {}
    for name in (*(each.name for each in fields(Diversity)), "output_entropy_nats"):
        curve = record["curves"].get(name, {"steps": [], "values": []})
        for step, value in zip(curve["steps"], curve["values"], strict=True):
            of_step.setdefault(step, {})[name] = value
    readings = [
        Reading(
            step=step,
            output_entropy_nats=found.pop("output_entropy_nats"),
            diversity=Diversity(**{"unique_trigram_ratio": None, **found}),
            num_tokens=0,
        )
        for step, found in sorted(of_step.items())
    ]
    detector = CollapseDetector(PreventCollapseConfig())
    return {str(each.step): detector.judge(each, readings[0]).state for each in readings[1:]}


def mean(cells: list[Record], key: str) -> float:
    """Of one figure."""
    return sum(float(each[key]) for each in cells) / len(cells)


def shown(name: str, record: Record) -> str:
    """One line of a cell."""
    final, (text, count) = record["final"], record["commonest"]
    return (
        f"{name}: accuracy {record['accuracy']:.3f} (base {record['base_accuracy']:.3f}), "
        f"loss {record['loss']:.3f}, same answers {final['identical_ratio']:.2f}, "
        f"self-BLEU {final['self_bleu']:.2f}, {record['train_seconds']:.0f} s "
        f"(guard {record['time_ratio']:.1%}), commonest: {count} x {text[:40]!r}, "
        f"{[(e['step'], e['action']) for e in record['events']]}"
    )


if __name__ == "__main__":
    main()
