"""A diagnosis as lines of text."""

from __future__ import annotations

from collections.abc import Sequence

from constrained_adapters.data.records import shorten
from constrained_adapters.diagnosis.diagnose import Diagnosis, PairDiagnosis

LINE = 100
"""Characters of a text that are shown."""
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
        f"{shorten(each.question, LINE)} → data: {shorten(each.answer, LINE)} "
        f"| model: {shorten(each.belief, LINE)} ({each.confidence:.2f})"
        for each in diagnosis.beliefs
    ]
    lines += _list("The model is sure of another answer", listed)
    within = [
        f"{shorten(each.question, LINE)} → {shorten(each.answer, LINE)} | {shorten(each.other_answer, LINE)}"
        for each in diagnosis.within
    ]
    lines += _list("The new data contradicts itself", within)
    if (advice := diagnosis.advice) is not None:
        lines += ["", f"Advice: {advice.recipe}", *(f"  - {each}" for each in advice.reasons)]
    return lines


def brief(diagnosis: Diagnosis) -> list[str]:
    """The few lines that a run shows of it: facts against facts, and the risk where it is known."""
    lines = []
    for where, found in (
        *((f"with {pair.old}", pair.contradictions) for pair in diagnosis.pairs),
        ("within", diagnosis.within),
    ):
        if found:
            first = found[0]
            answers = f"{shorten(first.answer)!r} against {shorten(first.other_answer)!r}"
            question = shorten(first.question)
            lines.append(f"{diagnosis.new}: {len(found)} contradictions {where}: {question!r}: {answers}")
    if diagnosis.advice is not None:
        findings = [finding for pair in diagnosis.pairs for finding in pair.findings if finding.decides]
        texts = (each.text for each in findings if each.level == diagnosis.level)
        advised = f"{next(texts, 'nothing speaks for it')}; advised: {diagnosis.advice.recipe}"
        lines.append(f"{diagnosis.new}: {diagnosis.level} risk of forgetting: {advised}")
    return lines


def _describe_pair(pair: PairDiagnosis) -> list[str]:
    name = "what the base knows (text that it wrote)" if pair.old == "base" else pair.old
    lines = [f"against {name}: {pair.level} risk"]
    for finding in pair.findings:
        told = "" if finding.decides else "told only: "
        lines.append(f"  {finding.level if finding.decides else '':<7} {told}{finding.text}")
    listed = [
        f"{shorten(each.question, LINE)} → new: {shorten(each.answer, LINE)} "
        f"| old: {shorten(each.other_answer, LINE)}"
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
