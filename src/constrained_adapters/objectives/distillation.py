"""Distillation from the model before this domain: learning without forgetting, on the new domain's rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from constrained_adapters.data.tokens import IGNORED
from constrained_adapters.errors import ConfigError, ModelError
from constrained_adapters.models.modes import evaluating
from constrained_adapters.objectives.base import WEIGHT, Teachers
from constrained_adapters.objectives.label_logits import batch_tree, padded_label_logits, tree_label_logits
from constrained_adapters.objectives.rows import LabelledRow, collate_labelled

IDS, LOG_PROBS = "teacher_ids", "teacher_log_probs"
ROWS_AT_ONCE = 8


@final
class Distillation:
    """T² Σ_i w_i KL(q_i ‖ p_i) over the teacher's k likeliest tokens and one bucket for all others.

    q and p are teacher's and student's distributions at temperature T, both summed over the bucket; so the
    value is at most the full divergence, and 0 where both agree on the k tokens. The factor T² keeps the
    size of the gradients whatever T is. The weight α stands in the sum of objectives.

    The teacher is the model before this domain, with adapters: the same weights without the new
    adapter. It reads each row once; kept are k token ids (int32) and k + 1 log-probabilities (float16) a
    scored token: 6k + 2 bytes.

    Sources: Hinton et al. 2015 (arXiv 1503.02531); Li and Hoiem 2016 (arXiv 1606.09282), T = 2. Deviations:
    the top k with a bucket, and the recorded answers are those at the label positions of a language model.

    Cost: one forward pass for each domain; a step O(n · v), like cross-entropy.

    Args:
        temperature: T, over 0.
        top_k: k, 1 or more; from v − 1 on nothing is rounded away, the bucket is one token.
        teacher: Another model to learn from, of the same vocabulary; None is the model before this domain.

    Raises:
        ConfigError: T or k is out of range.
    """

    def __init__(self, temperature: float = 2.0, top_k: int = 64, teacher: Any = None) -> None:
        if not (math.isfinite(temperature) and temperature > 0.0):
            raise ConfigError(
                "the temperature of distillation is out of range",
                got=f"temperature = {temperature!r}",
                expected="over 0",
                hint="2",
            )
        if top_k < 1:
            raise ConfigError(
                "distillation keeps no token of the teacher",
                got=f"top_k = {top_k!r}",
                expected="1 or more",
                hint="64",
            )
        self.temperature, self.top_k, self.teacher = temperature, top_k, teacher

    def prepare(self, rows: Sequence[LabelledRow], teachers: Teachers) -> list[LabelledRow]:
        """Attach the teacher's likeliest tokens and their log-probabilities to each scored position.

        Raises:
            ModelError: The teacher's vocabulary is another.
        """
        before = teachers.before()
        teacher = before if self.teacher is None else self.teacher
        known, needed = _vocabulary(teacher), _vocabulary(before)
        if known != needed:
            raise ModelError(
                "the teacher has another vocabulary than the model that learns from it",
                got=f"{known} tokens",
                expected=f"{needed} tokens, with the same ids",
                hint="take a teacher of the same family",
            )
        # Rows of like length together: less padding where no tree can be read.
        order = sorted(range(len(rows)), key=lambda place: len(rows[place].input_ids))
        prepared = list(rows)
        with evaluating(teacher), torch.no_grad():
            for start in range(0, len(order), ROWS_AT_ONCE):
                places = order[start : start + ROWS_AT_ONCE]
                columns = self._columns(teacher, [rows[place] for place in places])
                for place, column in zip(places, columns, strict=True):
                    prepared[place] = rows[place].with_columns(column)
        return prepared

    def loss(self, logits: Tensor, targets: Tensor, extras: Mapping[str, Tensor]) -> Tensor:
        """The sum over n positions of logits (n, v) against the columns (n, k) and (n, k + 1)."""
        student = _top_and_rest(logits / self.temperature, extras[IDS].long())
        # Normalised anew: float16 has rounded the teacher's.
        teacher = extras[LOG_PROBS].float().log_softmax(-1)
        each = nn.functional.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)
        if WEIGHT in extras:
            each = each * extras[WEIGHT]
        return self.temperature**2 * each.sum()

    def _columns(self, teacher: Any, rows: Sequence[LabelledRow]) -> Iterator[dict[str, np.ndarray]]:
        bare = [LabelledRow(row.input_ids, [IGNORED] * len(row.input_ids), row.scored) for row in rows]
        batch = collate_labelled([vars(row) for row in bare], pad_token_id=0)
        inputs = (batch["input_ids"], batch["attention_mask"], batch["scored"])
        k = min(self.top_k, _vocabulary(teacher) - 1)
        if not batch["scored"].any():
            ids, log_probs = torch.zeros(0, k, dtype=torch.long), torch.zeros(0, k + 1)
        else:
            tree = batch_tree(teacher, *inputs)
            device = teacher.get_input_embeddings().weight.device
            logits, _ = (
                tree_label_logits(teacher, tree)
                if tree is not None
                else padded_label_logits(teacher, *(part.to(device) for part in inputs))
            )
            scaled = logits / self.temperature
            ids = scaled.topk(k, dim=-1).indices
            log_probs = _top_and_rest(scaled, ids)
        lengths = [len(row.scored) for row in rows]
        pairs = zip(
            ids.to("cpu", torch.int32).split(lengths),
            log_probs.to("cpu", torch.float16).split(lengths),
            strict=True,
        )
        for own_ids, own_log_probs in pairs:
            # Copies: a view would keep the whole batch's columns alive.
            yield {IDS: own_ids.numpy().copy(), LOG_PROBS: own_log_probs.numpy().copy()}


def _top_and_rest(logits: Tensor, ids: Tensor) -> Tensor:
    """Log-probabilities (n, k + 1) of the tokens ``ids`` (n, k) and of all others together, k under v."""
    total = logits.logsumexp(-1, keepdim=True)
    # Not log(1 − Σ p): where the rest is small, that loses all digits and its gradient explodes.
    rest = logits.scatter(-1, ids, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([logits.gather(-1, ids), rest], dim=-1) - total


def _vocabulary(model: Any) -> int:
    return int(model.get_output_embeddings().weight.shape[0])
