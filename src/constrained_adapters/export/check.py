"""The proof of an export: loaded back, it must answer fixed prompts as the model that it was made from.

Compared are the logits at every token of the prompts, and the text that greedy decoding goes on with.

Axis letters: s tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from constrained_adapters.errors import ModelError

PROMPTS = (
    "The court held that the contract was void because",
    "What are the symptoms of pneumonia, and how is it treated?",
    "def mean(values):\n    return",
    "В начале было слово, и 在开始的时候 there were 42 numbers:",
)
NEW_TOKENS = 8
TOLERANCES = {"float32": 1e-4, "float16": 5e-3, "bfloat16": 2e-2}
"""Largest logit difference let pass, as a share of the largest logit, by the coarsest type on the way."""


@dataclass(frozen=True)
class Answers:
    """What a model says to the prompts.

    Args:
        logits: Of each prompt, (s, V) in float32 on the CPU.
        texts: The tokens that greedy decoding appends to each.
    """

    logits: tuple[Tensor, ...]
    texts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Comparison:
    """How far an export is from what it was made from.

    Args:
        largest_difference: Of two logits.
        largest_logit: Of the original's, by size.
        effect: Largest logit difference that the adapters themselves make to the base.
        same_texts: Prompts that greedy decoding goes on with alike.
        num_texts: Prompts.
        dtype: The coarsest type on the way, which the tolerance is chosen by.
        loaded_by: What loaded the export.
    """

    largest_difference: float
    largest_logit: float
    effect: float
    same_texts: int
    num_texts: int
    dtype: str
    loaded_by: str

    @property
    def relative(self) -> float:
        """The largest difference as a share of the largest logit."""
        return self.largest_difference / self.largest_logit if self.largest_logit else 0.0

    def record(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "largest_logit_difference": self.largest_difference,
            "relative_difference": self.relative,
            "largest_effect_of_adapters": self.effect,
            "same_greedy_texts": self.same_texts,
            "num_prompts": self.num_texts,
            "coarsest_dtype": self.dtype,
            "loaded_by": self.loaded_by,
        }

    def sentence(self) -> str:
        """One line for people."""
        return (
            f"loaded back by {self.loaded_by}: largest logit difference {self.largest_difference:.2g} "
            f"({self.relative:.1e} of the largest logit; the adapters themselves change up to "
            f"{self.effect:.2g}), same greedy text {self.same_texts} of {self.num_texts}"
        )

    def require(self, tolerance: float | None = None) -> None:
        """Refuse an export that is too far off.

        Args:
            tolerance: For :attr:`relative`; default: :data:`TOLERANCES` of its type.

        Raises:
            ModelError: It is above the tolerance, or in float32 a text differs.
        """
        limit = TOLERANCES[self.dtype] if tolerance is None else tolerance
        # NaN is never within a limit; in 16 bits two near words may change places.
        texts_fit = self.dtype != "float32" or tolerance is not None or self.same_texts == self.num_texts
        if self.relative <= limit and texts_fit:
            return
        raise ModelError(
            "the export does not say what the model says that it was made from",
            got=self.sentence(),
            expected=f"a largest difference of {limit:.0e} of the largest logit ({self.dtype})"
            + ("" if texts_fit else ", and the same texts"),
            hint="--tolerance lets a larger one pass, where you know why",
        )


def prompt_ids(tokenizer: PreTrainedTokenizerBase) -> list[Tensor]:
    """:data:`PROMPTS` as token ids, each (1, s); the second in the chat template, if there is one."""
    texts = list(PROMPTS)
    if tokenizer.chat_template:
        turns = [{"role": "user", "content": texts[1]}]
        texts[1] = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    return [torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]]) for text in texts]


@torch.no_grad()
def answer(model: Any, prompts: Sequence[Tensor], *, texts: bool = True) -> Answers:
    """Let a model of transformers or PEFT answer.

    Args:
        model: In evaluation mode.
        prompts: Of :func:`prompt_ids`.
        texts: Decode too, which takes most of the time.
    """
    device = model.get_input_embeddings().weight.device
    logits, written = [], []
    for prompt in prompts:
        ids = prompt.to(device)
        mask = torch.ones_like(ids)
        logits.append(model(input_ids=ids, attention_mask=mask).logits[0].float().cpu())
        if texts:
            row = model.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=NEW_TOKENS,
                pad_token_id=int(ids[0, -1]),
            )
            written.append(tuple(row[0, ids.shape[1] :].tolist()))
    return Answers(tuple(logits), tuple(written))


def compare(ours: Answers, theirs: Answers, base: Answers, *, dtype: str, loaded_by: str) -> Comparison:
    """Set two sets of answers side by side.

    Args:
        ours: Of the model that the export was made from.
        theirs: Of the export.
        base: Of the base alone.
        dtype: The coarsest type on the way.
        loaded_by: What loaded the export.

    Raises:
        ModelError: The two have other vocabularies or tokens.
    """
    shapes = [[list(each.shape) for each in answers.logits] for answers in (ours, theirs)]
    if shapes[0] != shapes[1]:
        raise ModelError(
            "the export belongs to another base", got=f"logits of shapes {shapes[1]}", expected=f"{shapes[0]}"
        )
    return Comparison(
        largest_difference=_largest(ours, theirs),
        largest_logit=max(float(each.abs().max()) for each in ours.logits),
        effect=_largest(ours, base),
        same_texts=sum(a == b for a, b in zip(ours.texts, theirs.texts, strict=True)),
        num_texts=len(ours.texts),
        dtype=dtype,
        loaded_by=loaded_by,
    )


def coarsest(*dtypes: str) -> str:
    """The type that rounds most: bfloat16 before float16 before float32."""
    return max((each for each in dtypes), key=lambda each: list(TOLERANCES).index(each))


def _largest(one: Answers, other: Answers) -> float:
    differences = [(a - b).abs().max() for a, b in zip(one.logits, other.logits, strict=True)]
    return float(torch.stack(differences).max())  # max() of torch hands NaN on
