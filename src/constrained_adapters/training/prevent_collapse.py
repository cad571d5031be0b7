"""One line that keeps a fine-tuning in somebody's own script from collapsing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import ConcatDataset
from transformers import Trainer
from transformers.trainer_pt_utils import LabelSmoother

from constrained_adapters.config.collapse import PreventCollapseConfig
from constrained_adapters.config.run import DomainConfig, TrainingConfig
from constrained_adapters.data.load import load_domain
from constrained_adapters.data.tokens import TokenDataset
from constrained_adapters.errors import AdapterStateError, ConfigError
from constrained_adapters.guards.collapse import PreventCollapse
from constrained_adapters.schedules import staged_schedule, warmup_argument
from constrained_adapters.training.lessons import num_steps

_GENERAL_TOKENS = 128
"""Longest text that is mixed in, where the trainer does not say how long its rows are."""
_ONES = {"attention_mask", "completion_mask", "assistant_masks", "loss_mask"}
"""Columns that are 1 where a row of plain text has a token."""


def prevent_collapse(
    trainer: Any, config: PreventCollapseConfig | None = None, **settings: Any
) -> PreventCollapse:
    """Keep a small model from ending in one phrase for every question: one line before ``trainer.train()``.

    Puts on a standing Trainer what prevents it (a warm-up of 30 %; label smoothing that leaves masked labels
    alone, general text, staged rates and dropout where asked for) and the guard that notices it and goes
    back; see :class:`~constrained_adapters.guards.collapse.PreventCollapse`. The number of steps stays what
    it was.

    Args:
        trainer: A ``transformers.Trainer`` or one made of it, such as TRL's ``SFTTrainer``, before training.
        config: All settings; or give single ones.
        settings: Of :class:`~constrained_adapters.config.collapse.PreventCollapseConfig`. Parts are
            switched on one by one (``label_smoothing=0.1``, ``general_ratio=0.1``, …), and off:
            ``warmup_ratio=None``, ``guard=False``.

    Returns:
        The guard: its ``events``, ``curves`` and ``report()``.

    Raises:
        ConfigError: A setting is wrong, or the trainer has a part already that it would replace.
        AdapterStateError: The trainer is watched already.
        ModelError: Dropout does not fit the model.
    """
    if not isinstance(trainer, Trainer):
        raise ConfigError(
            "prevent_collapse() takes a Trainer",
            got=type(trainer).__name__,
            expected="transformers.Trainer, or one made of it, such as trl.SFTTrainer",
        )
    if any(isinstance(each, PreventCollapse) for each in trainer.callback_handler.callbacks):
        raise AdapterStateError(
            "this trainer is watched already", got="a second PreventCollapse", hint="leave one of them out"
        )
    guard = PreventCollapse(config, **settings)
    asked = guard.config
    _check(trainer, asked)
    if asked.general_ratio > 0.0:
        _mix_general_text(trainer, asked)
    if asked.label_smoothing > 0.0:
        trainer.label_smoother = LabelSmoother(epsilon=asked.label_smoothing)
    if asked.warmup_ratio is not None:
        trainer.args.warmup_steps = warmup_argument(asked.warmup_ratio)
    if asked.stage_ratios is not None:
        _stage_rates(trainer, asked.stage_ratios)
    guard.bind(trainer)
    trainer.add_callback(guard)
    return guard


def _check(trainer: Any, asked: PreventCollapseConfig) -> None:
    """Refuse before anything is changed."""
    args = trainer.args
    loss = trainer.compute_loss_func is not None or getattr(args, "loss_type", "nll") != "nll"
    found = {
        "a scheduler of its own": (
            asked.stage_ratios is not None and trainer.lr_scheduler is not None,
            "stage_ratios=None",
        ),
        "a loss of its own, which label smoothing would not reach": (
            asked.label_smoothing > 0.0 and loss,
            "label_smoothing=0",
        ),
        "label smoothing of its own": (
            asked.label_smoothing > 0.0 and trainer.label_smoother is not None,
            "label_smoothing=0",
        ),
        "packed rows, among which no text can be mixed": (
            asked.general_ratio > 0.0 and bool(getattr(args, "packing", False)),
            "general_ratio=0",
        ),
        "a stream as its data, whose length is not known": (
            asked.general_ratio > 0.0 and not hasattr(trainer.train_dataset, "__len__"),
            "general_ratio=0",
        ),
    }
    for what, (broken, hint) in found.items():
        if broken:
            raise ConfigError(
                "a part of the prevention does not fit", got=f"a trainer with {what}", hint=hint
            )


def _stage_rates(trainer: Any, ratios: Sequence[float]) -> None:
    def create_scheduler(num_training_steps: int, optimizer: Optimizer | None = None) -> LRScheduler:
        if trainer.lr_scheduler is None:
            trainer.lr_scheduler = staged_schedule(
                trainer.optimizer if optimizer is None else optimizer,
                ratios,
                num_steps=num_training_steps,
                num_warmup=trainer.args.get_warmup_steps(num_training_steps),
            )
            trainer._created_lr_scheduler = True
        scheduler: LRScheduler = trainer.lr_scheduler
        return scheduler

    trainer.create_scheduler = create_scheduler


def _mix_general_text(trainer: Any, asked: PreventCollapseConfig) -> None:
    """Add rows of text so that they are the ratio of all, and hold the number of steps where it was."""
    args, dataset = trainer.args, trainer.train_dataset
    columns = set(dataset[0])
    unknown = columns - {"input_ids", "labels"} - _ONES
    tokenizer = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
    foreign = unknown and not hasattr(dataset, "features")
    if tokenizer is None or "input_ids" not in columns or foreign:
        raise ConfigError(
            "general text cannot be mixed into this data",
            got=f"rows with {', '.join(sorted(columns))}; tokenizer: {type(tokenizer).__name__}",
            expected="rows of token ids, and Trainer(processing_class=tokenizer)",
            hint="general_ratio=0",
        )
    domain = load_domain(DomainConfig(name="general_text", data=asked.general_text), args.seed)
    wanted = math.ceil(asked.general_ratio / (1.0 - asked.general_ratio) * len(dataset))
    longest = getattr(args, "max_length", None) or _GENERAL_TOKENS
    texts = TokenDataset.from_examples(domain.train[:wanted], tokenizer, min(longest, _GENERAL_TOKENS)).tokens
    rows = [
        {
            name: list(text.input_ids) if name in {"input_ids", "labels"} else [1] * len(text.input_ids)
            for name in sorted(columns - unknown)
        }
        for text in (texts[index % len(texts)] for index in range(wanted))
    ]
    if args.max_steps <= 0:
        per_step = TrainingConfig(
            epochs=args.num_train_epochs,
            batch_size=args.train_batch_size,
            gradient_accumulation_steps=args.gradient_accumulation_steps,
        )
        args.max_steps = num_steps(per_step, len(dataset))
    trainer.train_dataset = _joined(dataset, rows)


def _joined(dataset: Any, rows: list[dict[str, list[int]]]) -> Any:
    if hasattr(dataset, "features"):  # of the library datasets, which is there then
        from datasets import Dataset, concatenate_datasets

        kept = dataset.select_columns(sorted(rows[0]))
        return concatenate_datasets([kept, Dataset.from_list(rows, features=kept.features)])
    return ConcatDataset([dataset, rows])  # type: ignore[list-item]
