"""Token sequences with equal beginnings merged into a tree, and read by a model as one row.

Each token's position id is its depth, and the attention mask lets it see its ancestors only, so the
numbers are those of reading each sequence by itself (up to the order of floating-point sums), while a
beginning that many share is computed once. It needs a model whose attention takes a mask of ours:
``MASKS`` lists the architectures it is tested on, with the attention of PyTorch (sdpa) or eager.

Axis letters: n tokens of the tree, k of them that predict something, v vocabulary.
"""

from __future__ import annotations

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


@dataclass(frozen=True)
class TokenSequence:
    """Token ids, and the ascending positions (from 1) whose token is scored given all before it."""

    input_ids: list[int]
    scored: list[int]


def tree_masks(model: nn.Module) -> Literal["causal", "window", "mapping"] | None:
    """Return how the model takes a tree's mask, or None where it must be scored flat."""
    config: Any = model.config
    if config._attn_implementation not in {"sdpa", "eager"}:
        return None
    return MASKS.get(config.model_type)


@dataclass
class TokenTree:
    """Sequences merged by equal beginnings; node i is a token whose ancestors came before i."""

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    members: list[tuple[int, list[tuple[int, int]]]] = field(default_factory=list)
    """Per sequence: its group, and (predicting node, token to predict) per scored position."""
    _children: dict[tuple[int, int], int] = field(default_factory=dict)

    def add(self, group: int, sequence: TokenSequence) -> None:
        """Merge a sequence in; ``group`` is handed back in ``members``."""
        ids, node, path = sequence.input_ids, -1, []
        for depth in range(num_inputs(sequence)):
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
        """How many tokens a sequence would add."""
        node, length = -1, num_inputs(sequence)
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


def num_inputs(sequence: TokenSequence) -> int:
    """How many tokens must be read: all before the last scored one."""
    return sequence.scored[-1] if sequence.scored else 0


def tree_logits(model: Any, tree: TokenTree, predicting: list[int]) -> Tensor:
    """Logits (k, v) of the nodes ``predicting`` of a tree that the model can read."""
    device = model.get_input_embeddings().weight.device
    logits: Tensor = model(
        input_ids=torch.tensor([tree.tokens], device=device),
        position_ids=torch.tensor([tree.depths], device=device),
        attention_mask=_model_mask(model, tree, device),
        logits_to_keep=torch.tensor(predicting, device=device),
        use_cache=False,
    ).logits[0]
    return logits


def _model_mask(model: Any, tree: TokenTree, device: torch.device) -> Tensor | dict[str, Tensor]:
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
