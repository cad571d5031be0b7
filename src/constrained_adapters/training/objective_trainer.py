"""A Trainer that minimises an objective, and computes what the examples of a batch share only once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import Trainer

from constrained_adapters.data.tokens import IGNORED
from constrained_adapters.objectives import Objective, WeightedSum, is_plain
from constrained_adapters.objectives.label_logits import batch_tree, padded_label_logits, tree_label_logits
from constrained_adapters.schedules import divide_groups, staged_schedule
from constrained_adapters.training.broken_batch import broken_loss_error


class ObjectiveTrainer(Trainer):
    """The stock Trainer with a loss of ours; plain cross-entropy is the model's own where nothing is shared.

    Args:
        objective: What is minimised.
        share_prefixes: Whether the rows of a batch are read as one tree, where the model can read one.
        stage_ratios: Of staged rates, in parts of the rate; None for the schedule that ``args`` name.
        rate_ratios: By name of a parameter, its rate in parts of the rate; 1 where none is given.
        domain: Named where a loss is not finite.
        decode: Token ids as text, to show the example at fault.
        options: Of Trainer.
    """

    def __init__(
        self,
        *,
        objective: Objective,
        share_prefixes: bool,
        stage_ratios: Sequence[float] | None = None,
        rate_ratios: Mapping[str, float] | None = None,
        domain: str = "",
        decode: Callable[[Sequence[int]], str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._objective, self._share = objective, share_prefixes
        self._stages, self._rates = stage_ratios, rate_ratios or {}
        self._terms: dict[str, Tensor] = {}
        self._domain, self._decode = domain, decode

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Trainer's own.

        Raises:
            TrainingError: The loss is not finite; the message names step, batch and example.
        """
        batch = dict(inputs)  # compute_loss takes out what is ours
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        if not bool(torch.isfinite(loss)):
            raise broken_loss_error(
                model,
                {name: value.to(loss.device) for name, value in batch.items() if isinstance(value, Tensor)},
                self.train_dataset,
                domain=self._domain,
                step=self.state.global_step + 1,
                decode=self._decode,
            )
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The objective's sum over the scored tokens, divided by ``num_items_in_batch`` where given.

        It is divided by the number of labels of this batch else. A batch without any label adds nothing.
        """
        scored = inputs.pop("scored", None)
        extras = inputs.pop("extras", {})
        counted = inputs["labels"] != IGNORED
        if scored is None:
            scored = counted
        padded = (inputs["input_ids"], inputs["attention_mask"], scored)
        tree = batch_tree(model, *padded) if self._share and not return_outputs else None
        if return_outputs or (tree is None and is_plain(self._objective)):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if tree is None and not scored[:, 1:].any():
            return sum((p.sum() * 0.0 for p in model.parameters() if p.requires_grad), start=torch.zeros(()))
        read = padded_label_logits(model, *padded) if tree is None else tree_label_logits(model, tree)
        columns = {name: column[scored] for name, column in extras.items()}
        if num_items_in_batch is None:
            return self._total(*read, columns, counted[:, 1:].sum(), self.current_gradient_accumulation_steps)
        # Trainer has added the labels up over the processes, whose gradients will be averaged.
        return self._total(*read, columns, num_items_in_batch, 1) * self.accelerator.num_processes

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """Trainer's own, its groups divided where parameters have rates of their own."""
        made = self.optimizer is not None
        optimizer: Optimizer = super().create_optimizer(model)
        if self._rates and not made:
            trained: Any = self.model if model is None else model
            names = {parameter: name for name, parameter in trained.named_parameters()}
            divide_groups(optimizer, names, self._rates)
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LRScheduler:
        """Staged where the rates are, Trainer's own else."""
        if self._stages is None or self.lr_scheduler is not None:
            scheduler: LRScheduler = super().create_scheduler(num_training_steps, optimizer)
            return scheduler
        made = self.optimizer if optimizer is None else optimizer
        assert made is not None, "Trainer makes the optimizer first"
        self.lr_scheduler = staged_schedule(
            made,
            self._stages,
            num_steps=num_training_steps,
            num_warmup=self.args.get_warmup_steps(num_training_steps),
        )
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """With each term of a sum beside the loss of a step, as ``loss_NAME``."""
        if "loss" in logs:
            logs.update({f"loss_{name}": float(value) for name, value in self._terms.items()})
            self._terms = {}
        super().log(logs, start_time)

    def _total(
        self,
        logits: Tensor,
        targets: Tensor,
        columns: dict[str, Tensor],
        count: Tensor | int,
        num_batches: int,
    ) -> Tensor:
        """The mean over ``count`` labels; terms are noted as shares of the ``num_batches`` of a step."""
        if not isinstance(self._objective, WeightedSum):
            return self._objective.loss(logits, targets, columns) / count
        parts = self._objective.weighted_terms(logits, targets, columns)
        for name, part in parts.items():
            before = self._terms.get(name, torch.zeros((), device=part.device))
            self._terms[name] = before + part.detach() / (count * num_batches)
        return sum(parts.values(), start=logits.new_zeros(())) / count
