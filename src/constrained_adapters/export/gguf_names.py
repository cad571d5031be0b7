"""How llama.cpp names, permutes and shifts the tensors of each architecture.

The same rules as llama.cpp's own converters (``convert_hf_to_gguf.py``), against which the tests hold this
mapping tensor by tensor:

* Llama and Mistral: the rows of Q and K are reordered within each head, because llama.cpp rotates pairs of
  neighbours where transformers rotates halves. Qwen and Gemma are rotated in halves there too.
* Gemma: one is added to the weights of the norms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gguf
from torch import Tensor

from constrained_adapters.errors import ModelError


@dataclass(frozen=True)
class Family:
    """What is special about an architecture.

    Args:
        arch: Its name in llama.cpp.
        reorders: Q and K are reordered.
        norm_shift: Added to the weights of norms.
        key_length: The width of a head is written down, whatever it is.
    """

    arch: gguf.MODEL_ARCH
    reorders: bool = False
    norm_shift: float = 0.0
    key_length: bool = False


FAMILIES = {
    "LlamaForCausalLM": Family(gguf.MODEL_ARCH.LLAMA, reorders=True),
    "MistralForCausalLM": Family(gguf.MODEL_ARCH.LLAMA, reorders=True),
    "Qwen2ForCausalLM": Family(gguf.MODEL_ARCH.QWEN2),
    "Qwen3ForCausalLM": Family(gguf.MODEL_ARCH.QWEN3),
    "GemmaForCausalLM": Family(gguf.MODEL_ARCH.GEMMA, norm_shift=1.0, key_length=True),
    "Gemma2ForCausalLM": Family(gguf.MODEL_ARCH.GEMMA2, norm_shift=1.0, key_length=True),
    "Gemma3ForCausalLM": Family(gguf.MODEL_ARCH.GEMMA3, norm_shift=1.0, key_length=True),
}
_CONVERTERS = "llama.cpp's own convert_hf_to_gguf.py on a folder of 'crma export merged'"


class Names:
    """From tensors of transformers to those of llama.cpp.

    Args:
        config: Of the model, as transformers reads it.

    Raises:
        ModelError: The architecture is not known here.
    """

    def __init__(self, config: Any) -> None:
        architecture = (config.architectures or [type(config).__name__])[0]
        if architecture not in FAMILIES:
            raise ModelError(
                "this architecture is not mapped to GGUF here",
                got=architecture,
                expected=", ".join(FAMILIES),
                hint=_CONVERTERS,
            )
        self.family = FAMILIES[architecture]
        self.config = config
        self.heads: int = config.num_attention_heads
        self.kv_heads: int = getattr(config, "num_key_value_heads", None) or self.heads
        self._map = gguf.get_tensor_name_map(self.family.arch, config.num_hidden_layers)

    @property
    def arch_name(self) -> str:
        """What the architecture is called in a GGUF file."""
        return gguf.MODEL_ARCH_NAMES[self.family.arch]

    def name(self, tensor: str) -> str:
        """The name in llama.cpp of ``model.layers.0.self_attn.q_proj.weight``: ``blk.0.attn_q.weight``.

        Raises:
            ModelError: It has none.
        """
        found = self._map.get_name(tensor, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise ModelError(
                "llama.cpp has no place for a tensor of this model",
                got=f"{tensor} ({self.arch_name})",
                hint=_CONVERTERS,
            )
        return found

    def convert(self, tensor: str, value: Tensor) -> Tensor:
        """The values as llama.cpp wants them: a weight, a bias, or the B of an adapter (d_out, r)."""
        if self.family.reorders:
            if ".q_proj." in tensor:
                return reorder_heads(value, self.heads)
            if ".k_proj." in tensor:
                return reorder_heads(value, self.kv_heads)
        if self.family.norm_shift and tensor.endswith("norm.weight"):
            return value.float() + self.family.norm_shift
        return value


def reorder_heads(rows: Tensor, heads: int) -> Tensor:
    """Within each head, rows 0, 1, 2, … become 0, d/2, 1, d/2 + 1, …: halves become pairs of neighbours."""
    width = rows.shape[0] // heads
    return rows.reshape(heads, 2, width // 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def restore_heads(rows: Tensor, heads: int) -> Tensor:
    """Undo :func:`reorder_heads`."""
    width = rows.shape[0] // heads
    return rows.reshape(heads, width // 2, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)
