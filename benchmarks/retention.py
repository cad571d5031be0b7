"""What penalties and projections keep of earlier tasks where plain training forgets: the papers' figure.

Run:   python benchmarks/retention.py
Makes: benchmarks/results/retention-DATE.json and docs/assets/retention.svg

The permuted tasks of the papers (EWC, GEM, A-GEM, OGD), with tokens instead of pixels. A class is a
distribution over 96 tokens; an example is 16 tokens of its class and, after a mark, the name of the class,
one of ten. Task k permutes the tokens and leaves the names. One MLP on the tokens' mean embedding, trained
whole from random weights, learns three tasks one after another. Every method uses the package's own
constraints, and AdamW with a fresh state for each task.

Measured on 500 new examples of each task: `learnt`, accuracy right after a task was learnt, mean over the
tasks after the first; `kept`, accuracy at the end, mean over all but the last task; `average`, accuracy at
the end, mean over all (the papers' ACC). Means over the seeds of model, tasks and batches, with the
smallest and the largest.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib as mpl
import torch
from torch import Tensor, nn

from constrained_adapters.constraints.attach import attach
from constrained_adapters.constraints.base import Constraint
from constrained_adapters.constraints.ewc import EWCConstraint
from constrained_adapters.constraints.example_gradients import logit_gradients
from constrained_adapters.constraints.kept import KeptExamples, KeptGradientConstraint
from constrained_adapters.constraints.ogd import OGDConstraint
from constrained_adapters.memory.diagonal import DiagonalMemory, parameter_fisher
from constrained_adapters.memory.directions import StoredDirections

ROOT = Path(__file__).resolve().parent
NUM_TASKS, NUM_CLASSES, NUM_TOKENS, LENGTH = 3, 10, 96, 16
MARK = NUM_TOKENS
VOCABULARY = NUM_TOKENS + 1 + NUM_CLASSES
WIDTH, HIDDEN = 64, 100
NUM_STEPS, BATCH, LEARNING_RATE = 150, 32, 2e-3
NUM_KEPT, NUM_TESTED = 64, 500
"""Examples kept of each task (by GEM, A-GEM and OGD, and for EWC's Fisher), and tested."""

Rows = list[tuple[Tensor, Tensor]]


class Tasks:
    """Made-up classes of token sequences, and permutations of the tokens."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(1000 + seed)
        common = -torch.arange(
            1, NUM_TOKENS + 1
        ).log()  # a few tokens are frequent, as a few pixels are bright
        own = 1.5 * torch.randn(NUM_CLASSES, NUM_TOKENS, generator=generator)
        self._classes = torch.softmax(common + own, dim=1)
        self._orders = [torch.randperm(NUM_TOKENS, generator=generator) for _ in range(NUM_TASKS)]

    def examples(self, task: int, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Token ids (count, LENGTH + 2) that end in mark and answer, and the answers (count,)."""
        names = torch.randint(NUM_CLASSES, (count,), generator=generator)
        drawn = torch.multinomial(self._classes[names], LENGTH, replacement=True, generator=generator)
        answers = MARK + 1 + names
        ids = [self._orders[task][drawn], torch.full((count, 1), MARK), answers[:, None]]
        return torch.cat(ids, dim=1), answers


def as_rows(ids: Tensor) -> Rows:
    """Rows of (token ids, labels), with a label at the answer only."""
    labels = torch.full_like(ids, -100)
    labels[:, -1] = ids[:, -1]
    return list(zip(ids, labels, strict=True))


class BagOfTokens(nn.Module):
    """A causal language model that reads only which tokens came so far: their mean embedding, then an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(VOCABULARY, WIDTH)
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, VOCABULARY),
        )

    def get_input_embeddings(self) -> nn.Embedding:
        """As transformers' models have it."""
        return self.embeddings

    def forward(self, input_ids: Tensor, logits_to_keep: int = 0, **ignored: Any) -> SimpleNamespace:
        """``logits`` (b, s, v), or of the last places only."""
        places = torch.arange(1, input_ids.shape[1] + 1)[:, None]
        states = self.embeddings(input_ids).cumsum(1) / places.sqrt()
        return SimpleNamespace(logits=self.mlp(states[:, -logits_to_keep:]))


def make_model(seed: int) -> BagOfTokens:
    """Untrained."""
    torch.manual_seed(seed)
    return BagOfTokens()


class Method:
    """Plain sequential training; a subclass binds the steps by what it remembers."""

    def constraint(self, model: BagOfTokens) -> Constraint | None:
        """What binds the steps of the next task."""
        return None

    def remember(self, model: BagOfTokens, task: int, rows: Rows) -> None:
        """Take in a finished task."""


@dataclass
class EWC(Method):
    """EWC at a weight λ, or online EWC with decay γ."""

    weight: float
    decay: float | None = None
    memory: DiagonalMemory = field(default_factory=DiagonalMemory)

    def constraint(self, model: BagOfTokens) -> Constraint | None:
        """The parabola of all finished tasks."""
        memory = self.memory
        if not memory.domains:
            return None
        weights = dict(model.named_parameters())
        return EWCConstraint(weights, memory.importance, memory.anchor, memory.constant, self.weight)

    def remember(self, model: BagOfTokens, task: int, rows: Rows) -> None:
        """Its Fisher."""
        weights = dict(model.named_parameters())
        generator = torch.Generator().manual_seed(task)
        fisher = parameter_fisher(model, weights, rows, generator=generator)
        self.memory = self.memory.with_domain(f"{task}", fisher, weights, decay=self.decay)


@dataclass
class GEM(Method):
    """GEM, or, where ``together``, A-GEM on a batch of all that is kept."""

    together: bool
    margin: float = 0.0
    kept: list[Rows] = field(default_factory=list)

    def constraint(self, model: BagOfTokens) -> Constraint | None:
        """Of the kept examples."""
        ps = list(model.parameters())
        if self.together and self.kept:
            rows = [row for kept in self.kept for row in kept]
            sources = [KeptExamples(model, ps, rows, rows_per_step=BATCH, batch_size=BATCH)]
        else:
            sources = [KeptExamples(model, ps, rows, batch_size=NUM_KEPT) for rows in self.kept]
        return KeptGradientConstraint(ps, sources, margin=self.margin)

    def remember(self, model: BagOfTokens, task: int, rows: Rows) -> None:
        """The rows."""
        self.kept.append(rows)


@dataclass
class OGD(Method):
    """OGD on the logits of the right answers."""

    stored: StoredDirections = field(default_factory=StoredDirections)

    def constraint(self, model: BagOfTokens) -> Constraint | None:
        """Off all stored directions."""
        return OGDConstraint(dict(model.named_parameters()), self.stored.directions)

    def remember(self, model: BagOfTokens, task: int, rows: Rows) -> None:
        """A direction per row."""
        gradients = logit_gradients(model, dict(model.named_parameters()), rows)
        self.stored = self.stored.with_domain(f"{task}", gradients)


def train(model: BagOfTokens, batches: Sequence[Tensor], constraint: Constraint | None) -> None:
    """One pass over the batches."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    attachment = attach(constraint, domain="task") if constraint is not None else None
    model.train()
    for ids in batches:
        optimizer.zero_grad()
        logits = model(ids[:, :-1], logits_to_keep=1).logits[:, -1]
        nn.functional.cross_entropy(logits, ids[:, -1]).backward()
        optimizer.step()
    if attachment is not None:
        attachment.remove()


@torch.no_grad()
def accuracy(model: BagOfTokens, ids: Tensor) -> float:
    """Share of right answers, in percent, among all tokens of the vocabulary."""
    model.eval()
    logits = model(ids[:, :-1], logits_to_keep=1).logits[:, -1]
    return 100.0 * float((logits.argmax(-1) == ids[:, -1]).float().mean())


def run(make: Callable[[], Method] | None, seed: int) -> dict[str, float]:
    """One sequence; without a method all tasks' batches are mixed, for as many steps (joint)."""
    tasks, model = Tasks(seed), make_model(seed)
    generator = torch.Generator().manual_seed(2000 + seed)
    batches = [
        [tasks.examples(task, BATCH, generator)[0] for _ in range(NUM_STEPS)] for task in range(NUM_TASKS)
    ]
    tests = [tasks.examples(task, NUM_TESTED, generator)[0] for task in range(NUM_TASKS)]
    if make is None:
        train(model, [batch for each in zip(*batches, strict=True) for batch in each], None)
        table = [[accuracy(model, ids) for ids in tests]] * NUM_TASKS
    else:
        method, table = make(), []
        for task in range(NUM_TASKS):
            train(model, batches[task], method.constraint(model))
            kept = torch.cat(batches[task])[:NUM_KEPT]
            method.remember(model, task, as_rows(kept))
            table.append([accuracy(model, ids) for ids in tests])
    return {
        "learnt": statistics.mean(table[k][k] for k in range(1, NUM_TASKS)),
        "kept": statistics.mean(table[-1][:-1]),
        "average": statistics.mean(table[-1]),
    }


WEIGHTS = (1.0, 10.0, 100.0, 1e3, 1e4)
METHODS: dict[str, Callable[[], Method] | None] = {
    "sequential": Method,
    **{f"ewc {weight:g}": lambda weight=weight: EWC(weight) for weight in WEIGHTS},
    **{f"online_ewc {weight:g}": lambda weight=weight: EWC(weight, decay=0.9) for weight in WEIGHTS},
    "gem": lambda: GEM(together=False),
    "gem, margin 0.5": lambda: GEM(together=False, margin=0.5),
    "agem": lambda: GEM(together=True),
    "ogd": OGD,
    "joint": None,
}


def main() -> None:
    """Measure, print, write and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in METHODS}
    for seed in range(arguments.seeds):
        for name, make in METHODS.items():
            runs[name].append(run(make, seed))
            print(
                f"seed {seed}  {name:18}", *(f"{k} {v:5.1f}" for k, v in runs[name][-1].items()), flush=True
            )
        found = {name: summary(each) for name, each in runs.items()}
        write(found, num_seeds=seed + 1)
        draw(found, ROOT.parent / "docs" / "assets" / "retention.svg")


def summary(runs: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Mean, least and most of each figure over the seeds."""
    columns = {key: [each[key] for each in runs] for key in runs[0]}
    return {
        key: {"mean": statistics.mean(values), "least": min(values), "most": max(values)}
        for key, values in columns.items()
    }


def write(found: dict[str, Any], *, num_seeds: int) -> None:
    """The settings and all figures."""
    facts = {
        "tasks": NUM_TASKS,
        "steps_per_task": NUM_STEPS,
        "batch": BATCH,
        "learning_rate": LEARNING_RATE,
        "kept_examples_per_task": NUM_KEPT,
        "tested_examples_per_task": NUM_TESTED,
        "parameters": sum(p.numel() for p in make_model(0).parameters()),
        "seeds": num_seeds,
    }
    path = ROOT / "results" / f"retention-{datetime.date.today().isoformat()}.json"
    text = json.dumps({"settings": facts, "accuracy_percent": found}, indent=1)
    path.write_text(f"{text}\n", encoding="utf-8")


def draw(found: dict[str, Any], path: Path) -> None:
    """EWC against λ on the left, every method on the right."""
    settings = {
        "svg.hashsalt": "retention",
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 9,
    }
    series = {
        "kept": ("old tasks at the end", "o", "#1b6e8c"),
        "learnt": ("new tasks when learnt", "s", "#b5561f"),
    }
    with mpl.rc_context(settings):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8.2, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[1.1, 1])
        for key, (label, marker, colour) in series.items():
            for kind, style in (("ewc", "-"), ("online_ewc", ":")):
                values = [found[f"{kind} {weight:g}"][key]["mean"] for weight in WEIGHTS]
                name = f"{label}" if kind == "ewc" else f"{label}, online (γ = 0.9)"
                left.plot(WEIGHTS, values, style, marker=marker, markersize=4, color=colour, label=name)
        left.set(xscale="log", xlabel="λ", ylabel="accuracy, %", ylim=(0, 102), title="EWC")
        left.legend(frameon=False, fontsize=8, loc="lower center")
        best = {
            kind: max(
                (n for n in found if n.startswith(f"{kind} ")), key=lambda n: found[n]["average"]["mean"]
            )
            for kind in ("ewc", "online_ewc")
        }
        shown = [
            "sequential",
            "agem",
            "ogd",
            "gem",
            "gem, margin 0.5",
            best["online_ewc"],
            best["ewc"],
            "joint",
        ]
        for key, (_, marker, colour) in series.items():
            for place, name in enumerate(shown):
                value = found[name][key]
                right.plot([value["least"], value["most"]], [place, place], color=colour, linewidth=1.2)
                right.plot([value["mean"]], [place], marker=marker, markersize=5, color=colour)
        right.set(xlim=(0, 102), xlabel="accuracy, %", title="All methods")
        right.set_yticks(range(len(shown)), shown)
        for axes in (left, right):
            axes.grid(color="#dddddd", linewidth=0.6)
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    main()
