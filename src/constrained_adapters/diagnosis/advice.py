"""From a level of risk to what is advisable, with reasons, and to a ``crma.yaml`` that does it. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from constrained_adapters.config.yaml_file import dump_value
from constrained_adapters.diagnosis.risk import Level


@dataclass(frozen=True)
class Advice:
    """What to do.

    Args:
        recipe: Of ``methods:``.
        reasons: One sentence each, the most important first.
        method: Further settings of the method.
        training: Settings of ``training:``.
        guard: Settings of ``guard:``; None leaves it out.
    """

    recipe: str
    reasons: tuple[str, ...]
    method: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    guard: Mapping[str, Any] | None = None


CRMA_RATE = 6e-3
"""What crma learns as fast with as LoRA at 1e-3: it has fewer directions (docs/log.md)."""
WATCH = {"action": "roll_back"}


def advise(
    level: Level,
    *,
    num_train: int,
    num_old: int,
    old_data_at_hand: bool,
    on_gpu: bool,
    small_data: int,
    num_contradictions: int = 0,
    going_on: str | None = None,
    protects: bool = False,
) -> Advice:
    """Choose a recipe for a level of risk.

    Args:
        level: See :mod:`constrained_adapters.diagnosis.risk`.
        num_train: Training examples of the new domain.
        num_old: Old domains; 0 where only the base's own knowledge is at stake.
        old_data_at_hand: Whether old examples may be kept and mixed in.
        on_gpu: Whether there is one.
        small_data: Fewer examples are better looked up.
        num_contradictions: New examples that contradict old ones.
        going_on: The recipe of a run that the new domain would join; None for a run of its own.
        protects: Whether that recipe protects finished domains.
    """
    reasons: list[str] = []
    method: dict[str, Any] = {}
    training: dict[str, Any] = {}
    if going_on is not None and (level == "low" or protects):
        recipe = going_on
        where = "" if level == "low" else " for a training that protects nothing, as the trial is"
        reasons.append(f"{level} risk{where}")
        reasons.append(f"the run goes on with its own settings ({going_on})")
    elif level == "low":
        recipe, training = "lora", {"learning_rate": 1e-3, "weight_decay": 0.01}
        reasons.append("low risk: a LoRA with a light weight decay (L2) is enough")
    elif level == "medium" or not old_data_at_hand:
        recipe, method = "crma", {"learning_rate": CRMA_RATE}
        reasons.append(
            "medium risk: steps are kept out of what the base and finished domains depend on (crma); a "
            "penalty, ewc_lora, does the same by degrees"
            if level == "medium"
            else "high risk, and no old data to mix in: crma protects the base and finished domains by their "
            "memories alone"
        )
    else:
        recipe, method, training = "replay + ewc_lora", {"replay_ratio": 0.1}, {"learning_rate": 1e-3}
        reasons.append("high risk: a tenth of old examples in each batch, and a penalty (replay + EWC)")
        reasons.append(
            "for what must not change at all: 'progressive' or 'separate', where the domain is known"
        )
    if level == "high" and num_old > 1:
        reasons.append(
            "more domains will come: 'crma' keeps what it needs of each in a few MB, without its data"
        )
    guard: Mapping[str, Any] | None = dict(WATCH) if level != "low" and recipe != going_on else None
    if guard:
        reasons.append("the guard goes back to the last good state where an old domain gets 10 % worse")
    if num_contradictions:
        reasons.insert(
            0,
            "look at the contradictions first: mark what is superseded on purpose and mend the others; no "
            "method can keep both answers",
        )
    if num_train < small_data:
        reasons.insert(
            0,
            f"{num_train} training examples are few (under {small_data}): look them up (retrieval) instead "
            "of training on them",
        )
    if not on_gpu:
        reasons.append("no GPU: adapters of a low rank, not the whole model")
    return Advice(recipe, tuple(reasons), method, training, guard)


def advice_yaml(
    advice: Advice, domains: Sequence[Mapping[str, Any]], *, base: Mapping[str, Any], title: str
) -> str:
    """A ``crma.yaml`` that follows the advice; its head holds the reasons.

    Args:
        advice: From :func:`advise`.
        domains: Entries of ``domains:``, old ones first.
        base: Of ``base:``.
        title: Of the report.
    """
    settings: dict[str, Any] = {
        "title": title,
        "output": "crma-run",
        "base": dict(base),
        "adapter": {"rank": 16},
        "training": {"epochs": 3.0, **advice.training},
    }
    lines = ["# Written by 'crma diagnose', because of:", *(f"#   - {each}" for each in advice.reasons), ""]
    lines += [f"{name}: {dump_value(value)}" for name, value in settings.items()]
    lines += ["methods:", f"  - {dump_value({'recipe': advice.recipe, **advice.method})}"]
    lines += ["domains:", *(f"  - {dump_value(dict(domain))}" for domain in domains)]
    if advice.guard is not None:
        lines.append(f"guard: {dump_value(dict(advice.guard))}")
    return "\n".join(lines) + "\n"
