"""What this library's own model says, so that exports can be held against it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from constrained_adapters.adapters.files import read_facts
from constrained_adapters.config.crma import CRMAConfig
from constrained_adapters.errors import ModelError
from constrained_adapters.export.bases import check_fits
from constrained_adapters.export.check import Answers, Comparison, answer, coarsest, compare, prompt_ids
from constrained_adapters.export.plain import read_plain_lora
from constrained_adapters.export.quantised import Rounding
from constrained_adapters.export.sources import Source
from constrained_adapters.model import CRMAModel
from constrained_adapters.models.gguf import quiet
from constrained_adapters.models.load import LoadedBase


@dataclass(frozen=True)
class Reference:
    """The base, and the answers to hold exports against.

    Args:
        base: Without adapters, in evaluation mode.
        dtype: That was computed in.
        prompts: Of :func:`~constrained_adapters.export.check.prompt_ids`.
        base_answers: Of the base alone.
        answers: Of the base with each source's adapters, by the source's name.
    """

    base: LoadedBase
    dtype: str
    prompts: tuple[Tensor, ...]
    base_answers: Answers
    answers: dict[str, Answers]


def make_reference(
    sources: Sequence[Source],
    base: LoadedBase,
    rounding: Rounding | None = None,
    *,
    base_texts: bool = False,
) -> Reference:
    """Let the library's own model answer with the adapters of each source; the base is given back bare.

    Args:
        sources: Their adapters are loaded onto the base, one source after the other.
        base: As :func:`~constrained_adapters.export.bases.open_base` gives it.
        rounding: Of its weights, where the adapters were trained on rounded ones.
        base_texts: Let the base alone go on with the prompts too, for an export of the base.

    Raises:
        ModelError: An adapter belongs to another base.
    """
    if rounding is not None:
        rounding.apply(base.model)
    prompts = tuple(prompt_ids(base.tokenizer))
    plain = answer(base.model, prompts, texts=base_texts)
    found = {}
    for source in sources:
        for folder in source.adapters:
            check_fits(read_plain_lora(folder).pairs, base.model, folder)
        with warnings.catch_warnings():  # what its strength would do to later domains is of no interest here
            warnings.simplefilter("ignore", UserWarning)
            settings = read_facts(next(iter(source.adapters))).get("config", {})
            config = CRMAConfig(**{"base_model_name": str(base.description["model"]), **settings})
            model = CRMAModel.from_base(base, config)
        weights = {f"part{i}": weight for i, weight in enumerate(source.adapters.values())}
        for name, folder in zip(weights, source.adapters, strict=True):
            model.load_adapter(folder, name)
        model.eval()
        model.set_active_adapters(list(weights))
        model.set_adapter_weights(weights)
        found[source.name] = answer(model, prompts)
        model.unload()
    dtype = str(base.model.dtype).removeprefix("torch.")
    return Reference(base, dtype, prompts, plain, found)


def compare_lora(reference: Reference, name: str, folder: Path, dtype: str) -> Comparison:
    """Load an exported LoRA with stock PEFT and hold it against a source.

    Args:
        reference: Its base is left bare.
        name: Of the source.
        folder: The export.
        dtype: Of its weights.

    Raises:
        ModelError: PEFT does not find all layers, or the export belongs to another base.
    """
    base = reference.base.model
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model = PeftModel.from_pretrained(base, str(folder))
    try:
        missing = [str(each.message) for each in told if "missing adapter keys" in str(each.message)]
        if missing:
            raise ModelError(
                "PEFT does not find all of this adapter",
                got=f"{missing[0][:300]} ({folder})",
                expected="all of it",
            )
        theirs = answer(model.eval(), reference.prompts)
    finally:
        model.unload()
    ours = reference.answers[name]
    kind = coarsest(reference.dtype, dtype)
    return compare(ours, theirs, reference.base_answers, dtype=kind, loaded_by="stock PEFT")


def compare_merged(reference: Reference, name: str, folder: Path, dtype: str) -> Comparison:
    """Load a merged model with stock transformers, in the type that the reference computed in.

    Args:
        reference: What it is held against.
        name: Of the source.
        folder: The export.
        dtype: Of its weights.
    """
    device = reference.base.model.device
    kind = getattr(torch, reference.dtype)
    with quiet():
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=kind)
    theirs = answer(model.to(device).eval(), reference.prompts)
    return compare(
        reference.answers[name],
        theirs,
        reference.base_answers,
        dtype=coarsest(reference.dtype, dtype),
        loaded_by="stock transformers",
    )
