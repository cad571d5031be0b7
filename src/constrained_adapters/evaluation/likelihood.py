"""Log-likelihoods of many token sequences that share beginnings, in few forward passes.

Axis letters: n tokens of a packed row, k of them that predict something, v vocabulary.

The sequences of a row are merged into a tree (a trie over tokens): a prompt that twenty choices share
is computed once, and so are equal beginnings of prompts and of choices. The tree goes through the
model as one row of n tokens with batch dimension 1: each token's position id is its depth, and the
attention mask lets it see its ancestors only, so the numbers are those of scoring each sequence by
itself (up to the order of floating-point sums). There is no padding, and logits are computed only
for tokens that predict a scored one. The last token of a sequence predicts nothing and never enters.

A model that cannot read a tree (see :mod:`constrained_adapters.models.token_tree`) is scored sequence by
sequence in right-padded batches; the results are the same, without the sharing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from constrained_adapters.models.modes import evaluating
from constrained_adapters.models.token_tree import (
    TokenSequence,
    TokenTree,
    num_inputs,
    tree_logits,
    tree_masks,
)

# A row longer than this is computed alone. Attention costs n², so longer rows do not pay even where
# items share a beginning; shorter ones leave the matrix products small.
ROW_TOKENS = 512
# Rows of logits that are turned to float32 at a time (v floats each).
LOGIT_ROWS = 128


@dataclass(frozen=True)
class TokenScores:
    """Per scored position: negative log-likelihood in nats, and whether it was the likeliest token."""

    nats: list[float]
    hits: list[bool]


def score_groups(
    model: nn.Module, groups: Sequence[Sequence[TokenSequence]], *, max_groups: int
) -> list[list[TokenScores]]:
    """Score every sequence of every group; the sequences of a group share a beginning.

    Args:
        model: A causal language model of transformers, adapters included; it is put in eval mode for
            the time of the call, and its modes are restored.
        groups: For example one group per question, with one sequence per choice.
        max_groups: Most groups in one forward pass, 1 or more; a row of more than ``ROW_TOKENS``
            tokens is cut between groups (or between the sequences of a long one) before that.

    Returns:
        The scores in the order of ``groups`` and of their sequences.

    Cost: one pass over the n tokens of all trees; memory n² bytes of mask and k × v logits of a row,
    where n is at most ``ROW_TOKENS`` or twice the longest sequence.
    """
    with evaluating(model), torch.no_grad():
        if tree_masks(model) is None:
            return _score_flat(model, groups, max_groups)
        results: list[list[TokenScores]] = [[] for _ in groups]
        for tree in _pack(groups, max_groups):
            for index, scores in _score_tree(model, tree):
                results[index].append(scores)
        return results


def _pack(groups: Sequence[Sequence[TokenSequence]], max_groups: int) -> Iterator[TokenTree]:
    """Fill trees up to ``ROW_TOKENS``; a group is divided only where it is longer by itself."""
    tree, num_groups = TokenTree(), 0
    for index, group in enumerate(groups):
        alone = TokenTree()
        for sequence in group:
            alone.add(index, sequence)
        # A divided group computes its beginning again in each part: let a part hold as much again.
        longest = max(map(num_inputs, group), default=0)
        limit = max(ROW_TOKENS, 2 * longest)
        if tree.members and (num_groups == max_groups or len(tree.tokens) + len(alone.tokens) > ROW_TOKENS):
            yield tree
            tree, num_groups = TokenTree(), 0
        num_groups += 1
        for sequence in group:
            if tree.members and len(tree.tokens) + tree.num_new_tokens(sequence) > limit:
                yield tree
                tree, num_groups = TokenTree(), 1
            tree.add(index, sequence)
    if tree.members:
        yield tree


def _score_tree(model: Any, tree: TokenTree) -> Iterator[tuple[int, TokenScores]]:
    predicting = sorted({node for _, pairs in tree.members for node, _ in pairs})
    if not predicting:
        yield from ((group, TokenScores([], [])) for group, _ in tree.members)
        return
    logits = tree_logits(model, tree, predicting)
    row_of = {node: row for row, node in enumerate(predicting)}
    wanted = [(row_of[node], token) for _, pairs in tree.members for node, token in pairs]
    nats, hits = _read_logits(logits, wanted)
    start = 0
    for group, pairs in tree.members:
        end = start + len(pairs)
        yield group, TokenScores(nats[start:end], hits[start:end])
        start = end


def _score_flat(
    model: Any, groups: Sequence[Sequence[TokenSequence]], max_groups: int
) -> list[list[TokenScores]]:
    """Score sequence by sequence, longest first, in right-padded batches of about ``ROW_TOKENS``."""
    places = [(i, j) for i, group in enumerate(groups) for j in range(len(group))]
    places.sort(key=lambda place: -num_inputs(groups[place[0]][place[1]]))
    results = [[TokenScores([], [])] * len(group) for group in groups]
    device = model.get_input_embeddings().weight.device
    while places and (width := num_inputs(groups[places[0][0]][places[0][1]])):
        size = max(1, min(max_groups, ROW_TOKENS // width))
        batch, places = places[:size], places[size:]
        sequences = [groups[i][j] for i, j in batch]
        rows = [sequence.input_ids[: num_inputs(sequence)] for sequence in sequences]
        lengths = torch.tensor([len(row) for row in rows], device=device)
        logits = model(
            input_ids=torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device),
            attention_mask=(torch.arange(width, device=device) < lengths[:, None]).long(),
            use_cache=False,
        ).logits
        for (i, j), sequence, row in zip(batch, sequences, logits, strict=True):
            wanted = [(position - 1, sequence.input_ids[position]) for position in sequence.scored]
            results[i][j] = TokenScores(*_read_logits(row, wanted))
    return results


def _read_logits(logits: Tensor, wanted: list[tuple[int, int]]) -> tuple[list[float], list[bool]]:
    """Return nats and hits of (row, token) pairs from logits (k × v), in float32 a few rows at a time."""
    parts = logits.split(LOGIT_ROWS)
    log_norms = torch.cat([part.float().logsumexp(-1) for part in parts])
    likeliest = torch.cat([part.argmax(-1) for part in parts])
    rows, tokens = torch.tensor(wanted, device=logits.device).reshape(-1, 2).unbind(-1)
    nats = log_norms[rows] - logits[rows, tokens].float()
    return nats.tolist(), (likeliest[rows] == tokens).tolist()
