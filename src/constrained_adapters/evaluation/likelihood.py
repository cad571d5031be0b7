"""Log-likelihoods of many token sequences that share beginnings, in few forward passes.

Axis letters: n tokens of a packed row, k of them that predict something, v vocabulary.

The sequences of a row are merged into a tree (a trie over tokens): a prompt that twenty choices share
is computed once, and so are equal beginnings of prompts and of choices. The tree goes through the
model as one row of n tokens with batch dimension 1: each token's position id is its depth, and the
attention mask lets it see its ancestors only, so the numbers are those of scoring each sequence by
itself (up to the order of floating-point sums). There is no padding, and logits are computed only
for tokens that predict a scored one. The last token of a sequence predicts nothing and never enters.

The tree needs a model whose attention takes a mask of ours: ``MASKS`` lists the architectures it is
tested on, with the attention of PyTorch (sdpa) or eager. Every other model is scored sequence by
sequence in right-padded batches; the results are the same, without the sharing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

# How the decoder of each architecture takes a ready attention mask: one mask for causal layers, one
# for layers with a sliding window, or a mapping from the kind of layer to its mask.
MASKS: dict[str, Literal["causal", "window", "mapping"]] = {
    "gemma2": "mapping",
    "gemma3_text": "mapping",
    "gpt2": "causal",
    "granite": "causal",
    "llama": "causal",
    "mistral": "window",
    "mixtral": "window",
    "olmo2": "causal",
    "phi": "causal",
    "phi3": "window",
    "qwen2": "mapping",
    "qwen3": "mapping",
    "smollm3": "mapping",
    "starcoder2": "window",
}

# A row longer than this is computed alone. Attention costs n², so longer rows do not pay even where
# items share a beginning; shorter ones leave the matrix products small.
ROW_TOKENS = 512
# Rows of logits that are turned to float32 at a time (v floats each).
LOGIT_ROWS = 128


@dataclass(frozen=True)
class TokenSequence:
    """Token ids, and the ascending positions (from 1) whose token is scored given all before it."""

    input_ids: list[int]
    scored: list[int]


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


def tree_masks(model: nn.Module) -> Literal["causal", "window", "mapping"] | None:
    """Return how the model takes a tree's mask, or None where it must be scored flat."""
    config: Any = model.config
    if config._attn_implementation not in {"sdpa", "eager"}:
        return None
    return MASKS.get(config.model_type)


@dataclass
class _Tree:
    """Sequences merged by equal beginnings; node i is a token whose ancestors came before i."""

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    members: list[tuple[int, list[tuple[int, int]]]] = field(default_factory=list)
    """Per sequence: its group, and (predicting node, token to predict) per scored position."""
    _children: dict[tuple[int, int], int] = field(default_factory=dict)

    def add(self, group: int, sequence: TokenSequence) -> None:
        ids, node, path = sequence.input_ids, -1, []
        for depth in range(_num_inputs(sequence)):
            key = (node, ids[depth])
            if (child := self._children.get(key)) is None:
                child = self._children[key] = len(self.tokens)
                self.tokens.append(ids[depth])
                self.parents.append(node)
                self.depths.append(depth)
            node = child
            path.append(node)
        self.members.append((group, [(path[position - 1], ids[position]) for position in sequence.scored]))

    def num_new_tokens(self, sequence: TokenSequence) -> int:
        node, length = -1, _num_inputs(sequence)
        for depth in range(length):
            child = self._children.get((node, sequence.input_ids[depth]))
            if child is None:
                return length - depth
            node = child
        return 0

    def mask(self, window: int | None = None) -> NDArray[np.bool_]:
        """Return n × n: may the token of the row see that of the column?"""
        size = len(self.tokens)
        seen = np.eye(size, dtype=np.bool_)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                seen[node, :node] = seen[parent, :node]
        if window is not None:
            depths = np.asarray(self.depths)
            seen &= depths[:, None] - depths[None, :] < window
        return seen


def _num_inputs(sequence: TokenSequence) -> int:
    """How many tokens must be read: all before the last scored one."""
    return sequence.scored[-1] if sequence.scored else 0


def _pack(groups: Sequence[Sequence[TokenSequence]], max_groups: int) -> Iterator[_Tree]:
    """Fill trees up to ``ROW_TOKENS``; a group is divided only where it is longer by itself."""
    tree, num_groups = _Tree(), 0
    for index, group in enumerate(groups):
        alone = _Tree()
        for sequence in group:
            alone.add(index, sequence)
        # A divided group computes its beginning again in each part: let a part hold as much again.
        longest = max(map(_num_inputs, group), default=0)
        limit = max(ROW_TOKENS, 2 * longest)
        if tree.members and (num_groups == max_groups or len(tree.tokens) + len(alone.tokens) > ROW_TOKENS):
            yield tree
            tree, num_groups = _Tree(), 0
        num_groups += 1
        for sequence in group:
            if tree.members and len(tree.tokens) + tree.num_new_tokens(sequence) > limit:
                yield tree
                tree, num_groups = _Tree(), 1
            tree.add(index, sequence)
    if tree.members:
        yield tree


def _score_tree(model: Any, tree: _Tree) -> Iterator[tuple[int, TokenScores]]:
    predicting = sorted({node for _, pairs in tree.members for node, _ in pairs})
    if not predicting:
        yield from ((group, TokenScores([], [])) for group, _ in tree.members)
        return
    device = model.get_input_embeddings().weight.device
    logits = model(
        input_ids=torch.tensor([tree.tokens], device=device),
        position_ids=torch.tensor([tree.depths], device=device),
        attention_mask=_model_mask(model, tree, device),
        logits_to_keep=torch.tensor(predicting, device=device),
        use_cache=False,
    ).logits[0]
    row_of = {node: row for row, node in enumerate(predicting)}
    wanted = [(row_of[node], token) for _, pairs in tree.members for node, token in pairs]
    nats, hits = _read_logits(logits, wanted)
    start = 0
    for group, pairs in tree.members:
        end = start + len(pairs)
        yield group, TokenScores(nats[start:end], hits[start:end])
        start = end


def _model_mask(model: Any, tree: _Tree, device: torch.device) -> Tensor | dict[str, Tensor]:
    config = model.config
    dtype = model.get_input_embeddings().weight.dtype

    def ready(window: int | None) -> Tensor:
        seen = torch.from_numpy(tree.mask(window)).to(device)[None, None]
        if config._attn_implementation == "sdpa":
            return seen
        # Eager attention adds the mask to its scores.
        return torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill(~seen, torch.finfo(dtype).min)

    kind = tree_masks(model)
    if kind == "mapping":
        windows = {"full_attention": None, "sliding_attention": getattr(config, "sliding_window", None)}
        return {layer: ready(windows[layer]) for layer in sorted(set(config.layer_types))}
    return ready(config.sliding_window if kind == "window" else None)


def _score_flat(
    model: Any, groups: Sequence[Sequence[TokenSequence]], max_groups: int
) -> list[list[TokenScores]]:
    """Score sequence by sequence, longest first, in right-padded batches of about ``ROW_TOKENS``."""
    places = [(i, j) for i, group in enumerate(groups) for j in range(len(group))]
    places.sort(key=lambda place: -_num_inputs(groups[place[0]][place[1]]))
    results = [[TokenScores([], [])] * len(group) for group in groups]
    device = model.get_input_embeddings().weight.device
    while places and (width := _num_inputs(groups[places[0][0]][places[0][1]])):
        size = max(1, min(max_groups, ROW_TOKENS // width))
        batch, places = places[:size], places[size:]
        sequences = [groups[i][j] for i, j in batch]
        rows = [sequence.input_ids[: _num_inputs(sequence)] for sequence in sequences]
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


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode, and every module back to its own mode afterwards."""
    # Module by module: a caller may have frozen some parts in eval mode while others train.
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
