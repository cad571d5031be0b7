"""The columns of a benchmark's table: each a number that a cell has, alone or against plain LoRA's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from constrained_adapters.report.measures import loss_cut_percent, summary
from constrained_adapters.results import MethodResult

Value = Callable[[MethodResult, MethodResult | None], float | None]


@dataclass(frozen=True)
class Column:
    """One quantity.

    Args:
        key: Its name in JSON.
        title: Short heading with its unit.
        meaning: One line for the list under the table.
        value: Takes a cell's result, and that of sequential LoRA on the same order and seed, or None.
        digits: After the point.
        sign: Write a plus.
    """

    key: str
    title: str
    meaning: str
    value: Value
    digits: int = 1
    sign: bool = False


def _get(key: str, factor: float = 1.0) -> Value:
    def value(method: MethodResult, _: MethodResult | None) -> float | None:
        number = summary(method, key)
        return None if number is None else factor * number

    return value


def _of_lora(key: str, factor: float) -> Value:
    def value(method: MethodResult, lora: MethodResult | None) -> float | None:
        own = summary(method, key)
        other = None if lora is None else summary(lora, key)
        return factor * own / other if own and other else None

    return value


def _general_change(method: MethodResult, _: MethodResult | None) -> float | None:
    before, after = summary(method, "general_perplexity_base"), summary(method, "general_perplexity")
    return 100 * (after / before - 1) if before and after is not None else None


def _loss_cut(method: MethodResult, _: MethodResult | None) -> float | None:
    return loss_cut_percent(method)


COLUMNS = (
    Column(
        "accuracy", "Final ACC %", "exact match over all domains after the last one", _get("accuracy", 100)
    ),
    Column(
        "choice_accuracy",
        "Choice accuracy %",
        "the right answer is the likeliest of the listed choices, over all domains after the last one",
        _get("choice_accuracy", 100),
    ),
    Column(
        "learned",
        "Learned %",
        "plasticity: exact match on each domain right after it was learned",
        _get("learned", 100),
    ),
    Column(
        "learned_of_lora",
        "Learned, % of LoRA's",
        "the same, in percent of sequential LoRA's on the same order and seed",
        _of_lora("learned", 100),
    ),
    Column(
        "loss_cut_percent",
        "Loss cut %",
        "how much learning cut each domain's loss against the base's",
        _loss_cut,
    ),
    Column(
        "backward_transfer",
        "BWT, points",
        "mean change of exact match on earlier domains since each was learned",
        _get("backward_transfer", 100),
        sign=True,
    ),
    Column(
        "forgetting",
        "Forgetting, points",
        "mean fall of exact match from each domain's best moment to the end",
        _get("forgetting", 100),
    ),
    Column(
        "drift_percent",
        "Drift %",
        "mean rise of the loss on earlier domains since each was learned; below zero it fell",
        _get("drift_percent"),
        sign=True,
    ),
    Column(
        "general_change_percent",
        "General perplexity, change in %",
        "perplexity on general text after the last domain against the base's",
        _general_change,
        sign=True,
    ),
    Column(
        "step_of_lora",
        "Step, × LoRA's",
        "seconds of a training step, relative to sequential LoRA's on the same order and seed",
        _of_lora("step_seconds", 1),
        2,
    ),
    Column("train_minutes", "Training, min", "training of all domains", _get("train_seconds", 1 / 60)),
    Column(
        "memory_minutes",
        "Memories, min",
        "what is made of the finished domains",
        _get("memory_seconds", 1 / 60),
    ),
    Column("peak_memory_mb", "Peak, MB", "most memory held", _get("peak_memory_bytes", 1e-6), 0),
    Column(
        "kept_kb",
        "Kept per domain, kB",
        "what stays on disk for each finished domain",
        _get("bytes_per_domain", 1e-3),
        0,
    ),
)
