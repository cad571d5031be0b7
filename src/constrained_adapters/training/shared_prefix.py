"""A Trainer that computes what the examples of a batch share only once.

Prompts of one domain begin alike (system message, instruction). The rows of a batch are merged into a
token tree and read as one row without padding, with logits at the answers only: the loss and its
gradients are those of the padded batch, up to the order of floating-point sums.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from constrained_adapters.models.token_tree import TokenSequence, TokenTree, tree_logits, tree_masks

MAX_TOKENS = 1024
"""A longer tree is not read as one row: its attention costs n²."""


class SharedPrefixTrainer(Trainer):
    """The stock Trainer with another way to the same loss, where it pays and the model allows it."""

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Negative log-likelihood of the answer tokens, divided by ``num_items_in_batch`` where given."""
        tree = None if return_outputs or tree_masks(model) is None else batch_tree(inputs)
        if tree is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss = tree_loss(model, tree)
        count = len([pair for _, pairs in tree.members for pair in pairs])
        return loss / (count if num_items_in_batch is None else num_items_in_batch)


def batch_tree(inputs: dict[str, Tensor | Any]) -> TokenTree | None:
    """Merge the rows of a padded batch; None where nothing is learnt or the tree is too long.

    Args:
        inputs: ``input_ids``, ``labels`` (−100: no loss) and ``attention_mask``, each (b, s).
    """
    tree = TokenTree()
    ids, labels, mask = (inputs[key].cpu() for key in ("input_ids", "labels", "attention_mask"))
    for row, (tokens, targets, keep) in enumerate(zip(ids, labels, mask.bool(), strict=True)):
        kept, learnt = tokens[keep].tolist(), targets[keep].tolist()
        tree.add(row, TokenSequence(kept, [i for i, label in enumerate(learnt) if i > 0 and label != -100]))
    if not any(pairs for _, pairs in tree.members):
        return None
    return tree if len(tree.tokens) <= MAX_TOKENS else None


def tree_loss(model: Any, tree: TokenTree) -> Tensor:
    """Sum of the negative log-likelihoods of all scored tokens of a tree, differentiable."""
    predicting = sorted({node for _, pairs in tree.members for node, _ in pairs})
    row_of = {node: row for row, node in enumerate(predicting)}
    wanted = [(row_of[node], token) for _, pairs in tree.members for node, token in pairs]
    logits = tree_logits(model, tree, predicting).float()
    rows, tokens = torch.tensor(wanted, device=logits.device).unbind(-1)
    return nn.functional.cross_entropy(logits[rows], tokens, reduction="sum")
