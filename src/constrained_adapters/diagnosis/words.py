"""A diagnosis as lines of text."""

from __future__ import annotations

from collections.abc import Sequence

from constrained_adapters.diagnosis.diagnose import Diagnosis, PairDiagnosis

MOST_LISTED = 10
"""Contradictions and beliefs that are shown of each kind; ``--json`` has all."""


def describe(diagnosis: Diagnosis) -> list[str]:
    """The lines that ``crma diagnose`` prints."""
    lines = [f"{diagnosis.new}: {(diagnosis.level or 'unknown').upper()} risk of forgetting"]
    for name, count in diagnosis.num_examples.items():
        lines.append(f"  {name}: {count:,} examples")
        lines += [f"    - {note}" for note in diagnosis.notes.get(name, ())]
    for pair in diagnosis.pairs:
        lines += ["", *_describe_pair(pair)]
    for name, said in diagnosis.remembered.items():
        text = f"the memory of {name} closes {said.closed_share:.1%} of the new gradient"
        if said.predicted_increase_nats is not None:
            text += f", and predicts {said.predicted_increase_nats:+.3f} nats for the trial"
        lines.append(f"  {text}")
    listed = [
        f"{_short(each.question)} → data: {_short(each.answer)} | model: {_short(each.belief)} "
        f"({each.confidence:.2f})"
        for each in diagnosis.beliefs
    ]
    lines += _list("The model is sure of another answer", listed)
    within = [
        f"{_short(each.question)} → {_short(each.answer)} | {_short(each.other_answer)}"
        for each in diagnosis.within
    ]
    lines += _list("The new data contradicts itself", within)
    if (advice := diagnosis.advice) is not None:
        lines += ["", f"Advice: {advice.recipe}", *(f"  - {each}" for each in advice.reasons)]
    return lines


def _describe_pair(pair: PairDiagnosis) -> list[str]:
    name = "what the base knows (text that it wrote)" if pair.old == "base" else pair.old
    lines = [f"against {name}: {pair.level} risk"]
    for finding in pair.findings:
        told = "" if finding.decides else "told only: "
        lines.append(f"  {finding.level if finding.decides else '':<7} {told}{finding.text}")
    listed = [
        f"{_short(each.question)} → new: {_short(each.answer)} | old: {_short(each.other_answer)}"
        for each in pair.contradictions
    ]
    return lines + _list("Contradictions", listed, indent="  ")


def _list(heading: str, listed: Sequence[str], indent: str = "") -> list[str]:
    if not listed:
        return []
    rest = len(listed) - MOST_LISTED
    more = [f"{indent}  … and {rest} more (--json has all)"] if rest > 0 else []
    blank = [] if indent else [""]
    shown = [f"{indent}  - {each}" for each in listed[:MOST_LISTED]]
    return [*blank, f"{indent}{heading} ({len(listed)}):", *shown, *more]


def _short(text: str, longest: int = 100) -> str:
    line = " ".join(text.split())
    return line if len(line) <= longest else f"{line[: longest - 1]}…"
