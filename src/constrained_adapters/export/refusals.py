"""What inference engines cannot take, said before anything is written.

Read from the sources of vLLM 0.33, SGLang 0.5.23, llama.cpp and PEFT 0.21.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from constrained_adapters.errors import ModelError

HARMLESS_INITS = frozenset({"gaussian", "eva", "orthogonal", "mica", "lora_ga"})
"""Ways to start an adapter that leave the base as it is, so that the file is a plain LoRA."""
# Fields of PEFT's LoraConfig that make it more than s B A x, with what engines do about them.
_FEATURES = {
    "use_dora": "DoRA: vLLM and SGLang refuse it, llama.cpp would drop its magnitudes",
    "lora_bias": "a bias beside B: no engine adds it",
    "modules_to_save": "whole modules trained beside the LoRA: engines refuse them",
    "trainable_token_indices": "trained token embeddings: engines refuse them",
    "target_parameters": "LoRA on expert tensors: written in a form of PEFT's own",
    "layer_replication": "replicated layers: the base would need them too",
    "alora_invocation_tokens": "activated LoRA: engines would apply it to every token",
    "use_qalora": "QA-LoRA: pools its inputs, which engines do not",
    "use_bdlora": "block-diagonal LoRA: engines would read its blocks as one matrix",
    "arrow_config": "Arrow routing: engines do not route inside a layer",
    "kasa_config": "KaSA: scales by learnt singular values, which engines do not",
    "velora_config": "VeLoRA: computes its inputs otherwise",
    "monteclora_config": "MonteCLoRA: samples its weights",
}
_OF_EMBEDDINGS = ("embed_tokens", "lm_head", "wte", "embed_out", "word_embeddings", "output_layer")


def reasons_against(config: Mapping[str, Any], tensors: Iterable[str]) -> list[str]:
    """Why an adapter is no plain LoRA that every engine serves; empty where it is one.

    Args:
        config: Content of its ``adapter_config.json``.
        tensors: Names in its weight file.
    """
    found = [reason for field, reason in _FEATURES.items() if config.get(field)]
    if config.get("bias", "none") != "none":
        found.append(f"bias={config['bias']!r}: engines have no place for trained biases")
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower() not in HARMLESS_INITS:
        found.append(f"init_lora_weights={init!r}: it changed the base, which engines do not do again")
    for name in tensors:
        module = name.partition(".lora_")[0]
        if ".lora_embedding_" in name or module.rpartition(".")[2] in _OF_EMBEDDINGS:
            found.append(
                f"an adapter on embeddings or the output head ({module}): llama.cpp and SGLang refuse it"
            )
            break
        if ".lora_A." not in name and ".lora_B." not in name:
            found.append(f"a tensor that is no A or B ({name})")
            break
    return found


def refuse_unservable(config: Mapping[str, Any], tensors: Iterable[str], *, where: str) -> None:
    """Refuse what :func:`reasons_against` finds.

    Raises:
        ModelError: The adapter is no plain LoRA; the message gives each reason.
    """
    reasons = reasons_against(config, tensors)
    if reasons:
        raise ModelError(
            "engines cannot take this adapter as a LoRA",
            got=f"{'; '.join(reasons)} ({where})",
            expected="low-rank matrices on linear layers and nothing else",
            hint="merge it into its base with PEFT's merge_and_unload() and serve the merged model",
        )
