"""Made-up but realistic results, deterministic, for the tests of the report."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any, Literal

from constrained_adapters.results import (
    Assessment,
    Contradicted,
    Curve,
    Denied,
    DiagnosisRecord,
    DomainDiagnosed,
    DomainRecord,
    Estimate,
    ItemScores,
    Matrix,
    MethodResult,
    PairDiagnosed,
    PairFinding,
    RunResult,
    Sample,
    SetScores,
    TaskScore,
)

DOMAINS = ["medicine", "数学", "Право"]
ATTACK = "</script><script>alert(1)</script><img src=x onerror=alert(2)> & \"quoted\" 'too'"

# Per method: share forgotten per later domain, exact match learned, seconds per domain.
CHARACTERS = {
    "crma": (0.015, 0.82, 48.0),
    "lora": (0.28, 0.84, 41.0),
    "ewc": (0.12, 0.71, 66.0),
    "replay": (0.05, 0.83, 52.0),
    "joint": (0.0, 0.86, 55.0),
}
# Per domain: prompt, reference, and the answers of the base, after learning and at the end.
PROMPTS = {
    "medicine": (
        "Diagnosis: acute bronchitis due to mycoplasma. Which kind of disorder is it?",
        "respiratory system",
        "It is a kind of cold.",
        "respiratory system",
        "respiratory or digestive system",
    ),
    "数学": (
        "已知二次方程 x² − 5x + 6 = 0，求它的两个根。",
        "x = 2 或 x = 3",
        "我不知道。",
        "x = 2 或 x = 3",
        "x = 2 或 x = 4",
    ),
    "Право": (
        "К какой отрасли права относится договор аренды?",
        "гражданское право",
        "Аренда — это",
        "гражданское право",
        "гражданское право",
    ),
}


def make_result(
    methods: Sequence[str] = ("crma", "lora"),
    domains: Sequence[str] = DOMAINS,
    *,
    num_steps: int = 30,
    **changes: Any,
) -> RunResult:
    """Return a run of ``methods`` (keys of CHARACTERS, or any name) over ``domains``."""
    fields: dict[str, Any] = {
        "title": "Three domains, one small model",
        "created": "2026-11-21T18:30:00Z",
        "base": {"model": "embedded", "architecture": "LlamaForCausalLM", "num_parameters": 134_515_008},
        "environment": {"python": "3.11.2", "torch": "2.13.0", "device": "cpu", "num_threads": 2},
        "settings": {
            "seed": 0,
            "adapter": {"rank": 16, "layers": "auto"},
            "domains": [{"name": d} for d in domains],
        },
        "methods": [make_method(name, domains, num_steps=num_steps) for name in methods],
        "diagnosis": make_diagnosis(domains),
        "ledger": [
            {
                "at": f"2026-11-21T18:3{i % 10}:00Z",
                "event": "domain_finished",
                "domain": name,
                "metrics": {"loss": 0.41},
            }
            for i, name in enumerate(domains)
        ],
    }
    return RunResult(**(fields | changes))


def make_diagnosis(
    domains: Sequence[str] = DOMAINS, mode: Literal["data", "full"] = "full"
) -> DiagnosisRecord:
    """Return what was known before training: the last domain contradicts the first, and the base."""
    full = mode == "full"
    records = []
    for number, name in enumerate(domains):
        last = number > 0 and number == len(domains) - 1
        signals = {"kl_nats": 1.25, "jaccard": 0.125}
        if full:
            signals |= {"gradient_cosine": -0.25, "old_nats": 2.5, "new_nats": 3.5, "trial_increase": 0.62}
        question, answer = PROMPTS.get(name, ("Which one?", "this"))[:2]
        records.append(
            DomainDiagnosed(
                name=name,
                level="high" if full or last else None,
                num_train=1000,
                num_examples=1300,
                notes=[
                    "Split by seed 0: 1000 train, 150 validation, 150 test.",
                    "3 exact duplicates were removed.",
                ],
                pairs=[
                    PairDiagnosed(
                        old=old,
                        level="high" if full else None,
                        signals=signals,
                        findings=[PairFinding(signal="trial", level="high", decides=True, text="it rose")],
                        num_contradictions=int(last and old == domains[0]),
                    )
                    for old in domains[:number] or (["base"] if full else [])
                ],
                contradictions=[
                    Contradicted(
                        question=question,
                        answer=answer,
                        other_question=f"{question} {at}" if at else question,
                        other_answer=f"other {at}",
                        where="" if at else domains[0],
                    )
                    for at in range(10 if last else 0)
                ],
                num_contradictions=12 if last else 0,
                num_within=11 if last else 0,
                beliefs=[Denied(question=question, answer=answer, belief="no", confidence=0.97)]
                * (full and last),
                num_beliefs=int(full and last),
                num_asked=32 if full else 0,
                advice="replay + ewc_lora" if full else "",
                reasons=["high risk: a tenth of old examples in each batch"] if full else [],
            )
        )
    return DiagnosisRecord(mode=mode, domains=records)


def make_assessment(domains: Sequence[str] = DOMAINS) -> Assessment:
    """Return what ``crma eval`` with two tasks and three metrics would write."""

    def scores(base: float, adapted: float) -> dict[str, Estimate]:
        return {
            "base": Estimate(value=base),
            "adapted": Estimate(value=adapted, low=adapted - 0.1, high=adapted + 0.1),
        }

    by_metric = {
        "loss": scores(5.0, 1.5),
        "token_f1": scores(0.1, 0.625),
        "superseded_exact_match": scores(1, 0.5),
    }
    return Assessment(
        title="Three domains: crma",
        created="2026-11-22T10:00:00Z",
        base={},
        environment={},
        settings={},
        models=["base", "adapted"],
        sets=[
            SetScores(
                name=name,
                group="domain",
                parts=[name],
                num_items=40,
                scores={
                    model: {metric: found[model] for metric, found in by_metric.items()}
                    for model in ("base", "adapted")
                },
            )
            for name in domains
        ],
        tasks=[
            TaskScore(task="colours", metric="acc", num_items=12, scores=scores(0.25, 0.75)),
            TaskScore(task="texts", metric="word_perplexity", num_items=0, scores=scores(21.5, 22.25)),
        ],
        notes=["The data of Право has changed since the run, and its scores with it."],
    )


def make_method(name: str, domains: Sequence[str] = DOMAINS, *, num_steps: int = 30) -> MethodResult:
    """Return one method whose numbers fit together."""
    rng = random.Random(f"{name}:{len(domains)}")
    forgets, learns, spent = CHARACTERS.get(
        name, (rng.uniform(0.02, 0.5), rng.uniform(0.55, 0.85), rng.uniform(30, 90))
    )
    num = len(domains)
    loss: Matrix = [[0.0] * num for _ in range(num + 1)]
    exact: Matrix = [[0.0] * num for _ in range(num + 1)]
    choice: Matrix = [[0.0] * num for _ in range(num + 1)]
    for j in range(num):
        base, learned, skill = 2.2 + 0.5 * (j % 3), 0.42 + 0.11 * (j % 3), learns - 0.06 * (j % 3)
        for i in range(num + 1):
            since = i - j - 1
            if since < 0:
                loss[i][j], exact[i][j] = base - 0.08 * i, 0.0 + 0.01 * i
                choice[i][j] = 0.21 + 0.02 * i
            else:
                loss[i][j] = learned * (1 + forgets * since + rng.uniform(-0.01, 0.01) * (since > 0))
                exact[i][j] = max(0.0, skill * (1 - 0.8 * forgets) ** since)
                choice[i][j] = min(1.0, 0.1 + 0.9 * skill * (1 - 0.5 * forgets) ** since)
    general = [math.log(12.03) + i * forgets * 0.35 for i in range(num + 1)]
    return MethodResult(
        name=name,
        recipe=name,
        settings={
            "learning_rate": 1e-3,
            "constraint": {"type": "fisher", "strength": 0.8} if name == "crma" else None,
        },
        domains=list(domains),
        matrices={"loss": loss, "exact_match": exact, "choice_accuracy": choice},
        general_nats=list(general),
        summary=_summary(name, loss, exact, choice, general, spent),
        records=[_record(name, j, domains, rng, num_steps, spent, forgets) for j in range(num)],
        samples=[_sample(d) for d in domains] + [_sample(domains[0])],
        items={d: _items(name, j, exact[num][j], loss[num][j]) for j, d in enumerate(domains)},
        intervals={"accuracy": (0.4, 0.6), "drift_percent": (-1.5, 4.0), "backward_transfer": (-0.1, 0.0)},
    )


def _items(name: str, j: int, exact: float | None, loss: float | None, num: int = 40) -> ItemScores:
    """Items whose means are about those of the cell; the same keys for every method."""
    rng = random.Random(f"{name}:{j}:items")
    right = [float(rng.random() < (exact or 0.0)) for _ in range(num)]
    return ItemScores(
        keys=[f"{j}-{item:03d}" for item in range(num)],
        loss=[(loss or 0.0) * rng.uniform(0.5, 1.5) for _ in range(num)],
        num_tokens=[1 + item % 4 for item in range(num)],
        exact_match=right,
        choice_accuracy=[max(each, float(rng.random() < 0.3)) for each in right],
    )


def _summary(name: str, loss: Any, exact: Any, choice: Any, general: Any, spent: float) -> dict[str, float]:
    num = len(loss[0])
    past = range(num - 1)
    summary = {
        "accuracy": sum(exact[num]) / num,
        "choice_accuracy": sum(choice[num]) / num,
        "learned": sum(exact[j + 1][j] for j in range(num)) / num,
        "general_perplexity_base": math.exp(general[0]),
        "general_perplexity": math.exp(general[-1]),
        "train_seconds": spent * num,
        "memory_seconds": 2.4 * num if name == "crma" else 0.0,
        "eval_seconds": 9.0 * num,
        "step_seconds": spent / 30,
        "bytes_per_domain": 4.4e6 if name == "crma" else 1.8e6,
        "peak_memory_bytes": 1.9e9,
        "keeps_old_data": float(name in {"replay", "joint"}),
    }
    if num > 1:
        summary["drift_percent"] = sum(100 * (loss[num][j] / loss[j + 1][j] - 1) for j in past) / (num - 1)
        summary["backward_transfer"] = sum(exact[num][j] - exact[j + 1][j] for j in past) / (num - 1)
        summary["forgetting"] = sum(max(r[j] for r in exact) - exact[num][j] for j in past) / (num - 1)
    return summary


def _record(
    name: str,
    j: int,
    domains: Sequence[str],
    rng: random.Random,
    num_steps: int,
    spent: float,
    forgets: float,
) -> DomainRecord:
    steps = list(range(1, num_steps + 1))
    curves = {
        "loss": [0.4 + 2.2 * math.exp(-6 * s / num_steps) + rng.gauss(0, 0.07) for s in steps],
        "learning_rate": [1e-3 * 0.5 * (1 + math.cos(math.pi * s / num_steps)) for s in steps],
        "grad_norm": [1.0 + rng.random() for _ in steps],
    }
    if name == "crma":
        curves["removed_ratio"] = [0.1 + 0.08 * j + 0.03 * rng.random() for _ in steps]
        curves |= {
            "unique_trigram_ratio": [0.9 - 0.01 * rng.random() for _ in steps],
            "self_bleu": [0.2 + 0.01 * rng.random() for _ in steps],
            "probe_old_nats": [1.0 + 0.01 * rng.random() for _ in steps],
        }
        curves["conflict"] = [-0.05 - 0.02 * j + rng.gauss(0, 0.03) for _ in steps]
    return DomainRecord(
        name=domains[j],
        num_train=1000,
        num_validation=100,
        num_test=200,
        data_fingerprint=f"{j:02d}9fc1e4aa5be0c7" * 4,
        train_seconds=spent,
        memory_seconds=2.4,
        eval_seconds=9.0,
        adapter_bytes=1_800_000,
        memory_bytes=2_600_000 if name == "crma" else 0,
        curves={key: Curve(steps=steps, values=values) for key, values in curves.items()},
        constraint={"removed_ratio": 0.12} if name == "crma" else {},
        importance=_by_module(rng, 1e-4) if name == "crma" else {},
        weight_change=_by_module(rng, 2.0),
        events=[
            {
                "step": num_steps // 2,
                "guard": "forgetting",
                "action": "roll_back",
                "reason": "medicine is 12.1 % worse",
                "numbers": {"drift_percent": 12.1},
            }
        ]
        if name == "crma" and j
        else [],
        predicted_increase_nats={"base": 0.006, **dict.fromkeys(domains[:j], 0.42 * forgets * 1.3)}
        if name == "crma"
        else {},
    )


def _by_module(rng: random.Random, scale: float) -> dict[str, float]:
    return {
        f"model.layers.{layer}.self_attn.{kind}": scale * rng.uniform(0.2, 1.0)
        for layer in range(12)
        for kind in ("q_proj", "v_proj")
    }


def _sample(domain: str) -> Sample:
    prompt, reference, base, learned, final = PROMPTS.get(
        domain, (f"What is {domain}?", "an answer", "no idea", "an answer", "an other answer")
    )
    return Sample(domain=domain, prompt=prompt, reference=reference, base=base, learned=learned, final=final)
