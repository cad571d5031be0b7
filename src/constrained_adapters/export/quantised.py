"""Bases that were quantised while their adapters were trained: the weights that the adapters saw.

An adapter corrects the *rounded* weights, so these are what it is merged into; never the packed ones, which
would round the sum again. Rounding is bitsandbytes' own, tensor by tensor, and needs no GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from constrained_adapters.errors import MissingExtraError
from constrained_adapters.export.bases import BaseName
from constrained_adapters.export.checkpoint import Checkpoint
from constrained_adapters.export.lora import DTYPES
from constrained_adapters.models.targets import is_linear


@dataclass(frozen=True)
class Rounding:
    """What quantisation does to the weights of linear layers.

    Args:
        kind: As in the settings of a base.
        dtype: That the base was loaded in before it was packed.
        names: Tensors of the checkpoint that are quantised: all linear layers but the output head.
    """

    kind: Literal["4bit", "8bit"]
    dtype: torch.dtype
    names: frozenset[str]

    def __call__(self, weight: Tensor) -> Tensor:
        """Quantise a weight (d_out, d_in) as transformers does, and undo it."""
        import bitsandbytes.functional as bnb

        source = weight.to(self.dtype)
        if self.kind == "4bit":
            packed, state = bnb.quantize_4bit(source, quant_type="nf4", compress_statistics=True)
            return bnb.dequantize_4bit(packed, state)
        packed, scales, _ = bnb.int8_vectorwise_quant(source.half())
        return bnb.int8_vectorwise_dequant(packed, scales)  # type: ignore[no-any-return]

    @torch.no_grad()
    def apply(self, model: Any) -> None:
        """Round the linear layers of a loaded model, so that it computes what the adapters saw."""
        head = model.get_output_embeddings()
        for module in model.modules():
            if is_linear(module) and module is not head:
                module.weight.copy_(self(module.weight))


def rounding_of(checkpoint: Checkpoint, base: BaseName) -> Rounding | None:
    """What a run's quantisation did to the base; None where there was none.

    Raises:
        MissingExtraError: bitsandbytes is not installed.
    """
    if base.quantization is None:
        return None
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise MissingExtraError.of("bitsandbytes", "quant", "to round a base as it was trained on") from None
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(checkpoint.folder))
    head: nn.Module | None = model.get_output_embeddings()
    names = {
        checkpoint.name_of_weight(name)
        for name, module in model.named_modules()
        if is_linear(module) and module is not head
    }
    kind: Literal["4bit", "8bit"] = "4bit" if base.quantization == "4bit" else "8bit"
    return Rounding(kind, DTYPES[base.dtype or "bfloat16"], frozenset(names))
