"""Text that the base writes itself, as what belongs to no domain: questions of users, and running text."""

from __future__ import annotations

from typing import Any

import torch

from constrained_adapters.evaluation.decoding import continue_prompts
from constrained_adapters.evaluation.samples import special_tokens
from constrained_adapters.memory.base_text import write_base_text

NUM_TEXTS = 96
NUM_TOKENS = 40
_STAND_IN = "question_to_be_written"


def write_own_text(model: Any, tokenizer: Any, *, seed: int = 0) -> list[str]:
    """Let the base write what it could be asked and what it could read, adapters off.

    Half of the texts begin where its chat template has the user begin to speak, after Xu et al. 2024
    (arXiv 2406.08464), the others at its start token; without a template all do. So no data is needed, and
    the texts follow the base's own idea of what users say.

    Args:
        model: A causal language model of transformers; adapters must be off.
        tokenizer: Of the model.
        seed: Of the sampling; the global random state is left as it was.

    Cost: :data:`NUM_TOKENS` decoding steps, twice, at a batch of half of :data:`NUM_TEXTS`.
    """
    asked: list[list[int]] = []
    head = _user_head(tokenizer)
    num_asked = NUM_TEXTS // 2 if head else 0
    if head:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            asked = continue_prompts(
                model,
                [head] * num_asked,
                ends=sorted(special_tokens(tokenizer)),
                padding=tokenizer.pad_token_id or 0,
                max_new_tokens=NUM_TOKENS,
                batch_size=num_asked,
                sampling={"do_sample": True, "top_k": 0},
            )
    written = write_base_text(model, num_texts=NUM_TEXTS - num_asked, length_tokens=NUM_TOKENS, seed=seed)
    rows = [*asked, *(ids[1:].tolist() for ids, _ in written)]
    return [str(tokenizer.decode(row, skip_special_tokens=True)).strip() for row in rows]


def _user_head(tokenizer: Any) -> list[int]:
    """What the chat template writes before a user's words; empty where there is no template."""
    if not getattr(tokenizer, "chat_template", None):
        return []
    turns = [{"role": "user", "content": _STAND_IN}]
    rendered = str(tokenizer.apply_chat_template(turns, tokenize=False))
    head = rendered.partition(_STAND_IN)[0]
    return list(tokenizer(head, add_special_tokens=False)["input_ids"]) if head else []
