"""Logits where a token is scored, of a batch of rows; what the rows share at their beginnings is read once.

Prompts of one domain begin alike (system message, instruction). The rows of a batch are merged into a
token tree and read as one row without padding, with logits at the scored tokens only: the numbers are
those of the padded batch, up to the order of floating-point sums.

Axis letters: b rows, s tokens of the longest, n scored tokens of all rows, v vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from constrained_adapters.models.token_tree import TokenSequence, TokenTree, tree_logits, tree_masks

MAX_TOKENS = 1024
"""A longer tree is not read as one row: its attention costs n²."""


def batch_tree(model: Any, input_ids: Tensor, attention_mask: Tensor, scored: Tensor) -> TokenTree | None:
    """Merge the rows of a padded batch.

    Args:
        model: That is to read the tree.
        input_ids: Token ids, (b, s).
        attention_mask: 1 on tokens, 0 on padding, (b, s).
        scored: Where a token is scored, (b, s) of bool; the first column counts for nothing.

    Returns:
        The tree, or None where the model cannot read one, nothing is scored or the tree is too long.
    """
    if tree_masks(model) is None:
        return None
    tree = TokenTree()
    batch = (part.cpu() for part in (input_ids, attention_mask.bool(), scored))
    for row, (tokens, keep, wanted) in enumerate(zip(*batch, strict=True)):
        places = [at for at, is_scored in enumerate(wanted[keep].tolist()) if at > 0 and is_scored]
        tree.add(row, TokenSequence(tokens[keep].tolist(), places))
    if not any(pairs for _, pairs in tree.members):
        return None
    return tree if len(tree.tokens) <= MAX_TOKENS else None


def tree_label_logits(model: Any, tree: TokenTree) -> tuple[Tensor, Tensor]:
    """Logits (n, v) in float32 and targets (n) of all scored tokens of a tree, row after row."""
    predicting = sorted({node for _, pairs in tree.members for node, _ in pairs})
    row_of = {node: row for row, node in enumerate(predicting)}
    wanted = [(row_of[node], token) for _, pairs in tree.members for node, token in pairs]
    logits = tree_logits(model, tree, predicting).float()
    rows, targets = torch.tensor(wanted, device=logits.device).unbind(-1)
    return logits[rows], targets


def padded_label_logits(
    model: Any, input_ids: Tensor, attention_mask: Tensor, scored: Tensor
) -> tuple[Tensor, Tensor]:
    """The same of a padded batch, row after row; see :func:`batch_tree` for the arguments."""
    logits = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
    wanted = scored[:, 1:].to(logits.device)
    return logits[:, :-1][wanted].float(), input_ids[:, 1:].to(logits.device)[wanted]
