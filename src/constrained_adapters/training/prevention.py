"""``prevent_collapse`` of a run: what it changes about a domain's training."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from constrained_adapters.config.collapse import PreventCollapseConfig
from constrained_adapters.config.run import MethodConfig, TrainingConfig
from constrained_adapters.guards.collapse import PreventCollapse

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def prevented_settings(settings: TrainingConfig, prevent: PreventCollapseConfig | None) -> TrainingConfig:
    """``training:`` with staged rates and a long warm-up, where they are asked for."""
    changes: dict[str, object] = {}
    if prevent is not None and prevent.stage_ratios is not None:
        changes |= {"schedule": "staged", "stage_ratios": prevent.stage_ratios}
    if prevent is not None and prevent.warmup_ratio is not None:
        changes["warmup_ratio"] = prevent.warmup_ratio
    return settings.model_copy(update=changes)


def prevented_smoothing(method: MethodConfig, prevent: PreventCollapseConfig | None) -> float:
    """The method's own label smoothing, else that of the prevention."""
    if method.label_smoothing is not None:
        return method.label_smoothing
    return prevent.label_smoothing if prevent is not None else 0.0


def collapse_guards(
    prevent: PreventCollapseConfig | None,
    tokenizer: PreTrainedTokenizerBase,
    domain: str,
    tell: Callable[[str], None],
) -> list[PreventCollapse]:
    """The guard of one domain's training, where there is one; it brings the dropout.

    Args:
        prevent: Of the run.
        tokenizer: Of the base.
        domain: Named in what is told.
        tell: Told of each return to a checkpoint.
    """
    if prevent is None:
        return []
    return [PreventCollapse(prevent, tokenizer=tokenizer, tell=lambda text: tell(f"{domain}: {text}"))]
