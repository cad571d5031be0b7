"""The model card of an exported adapter: ``README.md`` in the hub's conventions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from constrained_adapters.export.bases import BaseName
from constrained_adapters.export.check import Comparison
from constrained_adapters.export.lora import Mix
from constrained_adapters.export.sources import Source
from constrained_adapters.models.embedded import EMBEDDED_NAME
from constrained_adapters.workspace import Workspace

CARD_FILE = "README.md"
_METRICS = {
    "exact_match": "Exact match",
    "choice_accuracy": "Choice accuracy",
    "loss": "Loss (nats per token)",
}


@dataclass(frozen=True)
class DomainFacts:
    """What a run wrote down about one domain.

    Args:
        entry: Of the ledger.
        scores: Right after it was learnt, by metric.
        final: After the run's last domain.
    """

    entry: Mapping[str, Any]
    scores: Mapping[str, float]
    final: Mapping[str, float]


def domain_facts(source: Source, workspace: Workspace | None) -> dict[str, DomainFacts]:
    """Read what is known of the domains of a source, and of those that it stands on."""
    if workspace is None:
        return {}
    entries = workspace.ledger.standing()
    rows = workspace.rows()
    last = workspace.read_evaluation(rows[-1])["scores"] if rows else {}
    wanted = dict.fromkeys([*(folder.name for folder in source.adapters), *source.domains])
    return {
        name: DomainFacts(entries[name], entries[name].get("scores", {}).get(name, {}), last.get(name, {}))
        for name in wanted
        if name in entries
    }


def write_card(
    source: Source,
    mix: Mix,
    base: BaseName,
    domains: Mapping[str, DomainFacts],
    *,
    dtype: str,
    comparison: Comparison | None,
    merged: bool = False,
) -> str:
    """The text of the card.

    Args:
        source: What was exported.
        mix: As it was written.
        base: That it belongs to.
        domains: Of :func:`domain_facts`.
        dtype: Of the weights.
        comparison: Figures of the check; None where it was not asked for.
        merged: It is the whole model, not the adapter.
    """
    about = [f"# {source.name}", "", _what(source, base, merged)]
    parts = [about, _origin(base), _domains(domains), _settings(mix, domains, dtype, merged)]
    parts += [_check(comparison), _use_merged(source.name) if merged else _use(source.name, mix.rank)]
    lines = [line for part in parts if part for line in ("", *part)]
    header = yaml.safe_dump(_header(source, base, domains, merged), allow_unicode=True, sort_keys=False)
    return f"---\n{header}---\n" + "\n".join(lines) + "\n"


def _header(
    source: Source, base: BaseName, domains: Mapping[str, DomainFacts], merged: bool
) -> dict[str, Any]:
    tags = ["constrained-adapters", "continual-learning", "transformers"]
    header: dict[str, Any] = {
        "base_model": base.shown,
        "library_name": "transformers" if merged else "peft",
        "pipeline_tag": "text-generation",
        "tags": tags if merged else ["lora", "peft", *tags],
    }
    results = [
        {
            "task": {"type": "text-generation"},
            "dataset": {"name": name, "type": str(domains[name].entry.get("data", name))},
            "metrics": [
                {"type": metric, "name": _METRICS[metric], "value": round(float(value), 4)}
                for metric, value in domains[name].scores.items()
                if metric in _METRICS and value is not None
            ],
        }
        for name in source.domains
        if name in domains
    ]
    if any(result["metrics"] for result in results):
        header["model-index"] = [{"name": source.name, "results": results}]
    return header


def _what(source: Source, base: BaseName, merged: bool) -> str:
    shown = ", ".join(f"{name} × {weight:g}" for name, weight in source.domains.items())
    one = len(source.domains) == 1 and next(iter(source.domains.values())) == 1.0
    what = f"the domain *{next(iter(source.domains))}*" if one else f"a weighted mix of domains ({shown})"
    form = f"`{base.shown}` with a LoRA merged in" if merged else f"A LoRA adapter for `{base.shown}`"
    text = f"{form}: {what}, trained with constrained-adapters."
    if len(source.adapters) > 1:
        names = ", ".join(f"{folder.name} × {weight:g}" for folder, weight in source.adapters.items())
        text += (
            f" It is the exact sum of {len(source.adapters)} adapters ({names}), as their ranks side by side."
        )
    return text


def _origin(base: BaseName) -> list[str]:
    lines = []
    if base.shown.endswith(EMBEDDED_NAME):
        lines.append(
            "The base that it was trained on is that model as its packaged 4-bit GGUF (Q4_1) has it, "
            "dequantised to bfloat16; on the original weights the logits differ slightly."
        )
    if base.quantization is not None:
        lines.append(f"It was trained on the base in {base.quantization} quantisation (bitsandbytes).")
    if base.fingerprint is not None:
        lines.append(f"Fingerprint of the base: `{base.fingerprint}`")
    return lines


def _domains(domains: Mapping[str, DomainFacts]) -> list[str]:
    if not domains:
        return []
    metrics = [m for m in _METRICS if any(m in facts.scores for facts in domains.values())]
    titles = [
        "domain",
        "data",
        "data fingerprint",
        "examples",
        *(f"{_METRICS[m]}: learnt → end" for m in metrics),
    ]
    lines = ["## Domains", "", f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    for name, facts in domains.items():
        fingerprint = str(facts.entry.get("data_fingerprint", "–"))[:16]
        cells = [
            name,
            str(facts.entry.get("data") or "–"),
            f"`{fingerprint}`",
            str(facts.entry.get("num_train", "–")),
        ]
        cells += [f"{_number(facts.scores.get(m))} → {_number(facts.final.get(m))}" for m in metrics]
        lines.append(f"| {' | '.join(cells)} |")
    return [
        *lines,
        "",
        "Scores on held-out items, right after the domain was learnt and after the run's last domain.",
    ]


def _settings(mix: Mix, domains: Mapping[str, DomainFacts], dtype: str, merged: bool) -> list[str]:
    form = "summed in float32" if merged else "scale inside B (`lora_alpha` = rank)"
    lines = ["## Settings", "", f"- rank {mix.rank}, weights in {dtype}, {form}"]
    if mix.rank != mix.own_rank:
        lines.append(
            f"- of these ranks {mix.rank - mix.own_rank} are zeros, because engines want certain ranks"
        )
    if mix.error_ratio:
        lines.append(f"- compressed by SVD: {100 * mix.error_ratio:.2g} % of ‖ΔW‖ (Frobenius) is lost")
    fields = ("recipe", "constraint_type", "constraint_strength", "residual_scaling", "learning_rate")
    for name, facts in domains.items():
        known = [f"{field} {facts.entry[field]}" for field in fields if facts.entry.get(field) is not None]
        lines.append(f"- {name}: {', '.join(known)} ({facts.entry.get('date', 'no date')})")
    return lines


def _check(comparison: Comparison | None) -> list[str]:
    return [] if comparison is None else ["## Check", "", f"L{comparison.sentence()[1:]}."]


def _use(name: str, rank: int) -> list[str]:
    return [
        "## Use",
        "",
        "```python",
        "from peft import AutoPeftModelForCausalLM",
        "",
        f'model = AutoPeftModelForCausalLM.from_pretrained("{name}")',
        "```",
        "",
        "```",
        f"vllm serve BASE --enable-lora --max-lora-rank {rank} --lora-modules {name}={name}",
        "```",
    ]


def _use_merged(name: str) -> list[str]:
    return [
        "## Use",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f'model = AutoModelForCausalLM.from_pretrained("{name}")',
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")',
        "```",
    ]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
