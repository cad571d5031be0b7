"""GGUF files that are in their place only once they have been read back and compared."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from constrained_adapters.errors import ModelError
from constrained_adapters.export.bases import BaseName, open_base
from constrained_adapters.export.check import Answers, Comparison, answer, coarsest, compare
from constrained_adapters.export.checked import Checked
from constrained_adapters.export.checkpoint import Checkpoint, find_checkpoint
from constrained_adapters.export.folder import new_file, refuse_existing_file
from constrained_adapters.export.gguf_base import GGUFType, write_gguf
from constrained_adapters.export.gguf_lora import LoraType, read_gguf_lora, write_gguf_lora
from constrained_adapters.export.gguf_names import Names
from constrained_adapters.export.lora import Mix, make_mix, mix_record, write_mix
from constrained_adapters.export.merged import merged_reader
from constrained_adapters.export.merged_loaded import load_plain
from constrained_adapters.export.quantised import rounding_of
from constrained_adapters.export.reference import Reference, compare_lora, make_reference
from constrained_adapters.export.sources import Source
from constrained_adapters.models.gguf import quiet

# Of the check; q8_0 rounds each weight to a 127th of the largest of its block.
_DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "q8_0": "bfloat16"}
TOLERANCE_Q8 = 0.1
BASE_FILE = "base.gguf"


def export_ggufs(
    sources: Sequence[Source],
    output: Path,
    base: BaseName,
    *,
    lora_type: LoraType = "f32",
    model_type: GGUFType = "f16",
    merge: bool = False,
    with_base: bool = False,
    check: bool = True,
    tolerance: float | None = None,
    device: str = "auto",
    force: bool = False,
) -> Iterator[Checked]:
    """Write each source as ``NAME.gguf`` below ``output``: an adapter, or the model with it merged in.

    Args:
        sources: As :func:`~constrained_adapters.export.checked.export_loras`.
        output: Gets the files.
        base: As there.
        lora_type: Of adapters.
        model_type: Of whole models.
        merge: Write whole models instead of adapters.
        with_base: Write the base too, as ``base.gguf``.
        check: As there.
        tolerance: As there.
        device: As there.
        force: Replace earlier exports.

    Raises:
        ConstrainedAdaptersError: As :func:`~constrained_adapters.export.gguf_base.write_gguf`, or the check
            fails.
    """
    targets = [output / f"{source.name}.gguf" for source in sources]
    for target in [*targets, *([output / BASE_FILE] if with_base else [])]:
        refuse_existing_file(target, force=force)
    mixes = [make_mix(source.adapters) for source in sources]
    with _checkpoint_of(base) as checkpoint:
        config = AutoConfig.from_pretrained(checkpoint.folder)
        Names(config)  # refuses an architecture that is not known, before the base is loaded
        rounding = rounding_of(checkpoint, base)
        reference = None
        if check:
            loaded = open_base(base, device)
            reference = make_reference(sources, loaded, rounding, base_texts=with_base)
        if with_base:
            yield _write_model(
                checkpoint, None, BASE_FILE, output, base, model_type, reference, tolerance, force
            )
        for source, mix, target in zip(sources, mixes, targets, strict=True):
            if merge:
                merging = (source, mix, rounding)
                yield _write_model(
                    checkpoint, merging, target.name, output, base, model_type, reference, tolerance, force
                )
            else:
                yield _write_lora(config, source, mix, target, lora_type, reference, tolerance, force)


def _write_lora(
    config: Any,
    source: Source,
    mix: Mix,
    target: Path,
    kind: LoraType,
    reference: Reference | None,
    tolerance: float | None,
    force: bool,
) -> Checked:
    begun = time.perf_counter()
    record = {**mix_record(mix, _DTYPES[kind]), "kind": "gguf_lora", "domains": source.domains}
    with new_file(target, force=force) as file:
        write_gguf_lora(mix, config, file, kind, name=source.name, record=record)
        seconds = time.perf_counter() - begun
        comparison = None
        if reference is not None:
            back = replace(mix, pairs=read_gguf_lora(file, config, list(mix.pairs)))
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=".check-") as folder:
                write_mix(back, Path(folder), dtype="float32")
                comparison = compare_lora(reference, source.name, Path(folder), _DTYPES[kind])
            comparison = replace(comparison, loaded_by="reading the GGUF file into stock PEFT")
            comparison.require(tolerance)
    what = f"LoRA of rank {mix.rank} for llama.cpp, {kind}"
    return Checked(target, what, target.stat().st_size, seconds, comparison)


def _write_model(
    checkpoint: Checkpoint,
    merging: tuple[Source, Mix, Any] | None,
    name: str,
    output: Path,
    base: BaseName,
    kind: GGUFType,
    reference: Reference | None,
    tolerance: float | None,
    force: bool,
) -> Checked:
    begun = time.perf_counter()
    target = output / name
    record: dict[str, Any] = {"kind": "gguf_model", "base_fingerprint": base.fingerprint, "type": kind}
    read, title = None, base.shown
    if merging is not None:
        source, mix, rounding = merging
        read, title = merged_reader(checkpoint, mix, rounding), source.name
        record |= {"adapters": mix.weights, "domains": source.domains}
    with new_file(target, force=force) as file:
        write_gguf(checkpoint, file, kind, name=title, read=read, record=record)
        seconds = time.perf_counter() - begun
        comparison = None
        if reference is not None:
            ours = reference.base_answers if merging is None else reference.answers[merging[0].name]
            comparison = compare_gguf(reference, ours, file, kind)
            comparison.require(TOLERANCE_Q8 if tolerance is None and kind == "q8_0" else tolerance)
    what = f"{'merged model' if merging else 'base'} for llama.cpp, {kind}"
    return Checked(target, what, target.stat().st_size, seconds, comparison)


def compare_gguf(reference: Reference, ours: Answers, file: Path, kind: str) -> Comparison:
    """Read a model's GGUF file with transformers, which has a reader of its own, and hold it against ours.

    Args:
        reference: Its prompts and its base's answers.
        ours: What the model should say.
        file: The file; its name may have any ending.
        kind: Of its matrices.

    Raises:
        ModelError: transformers does not read this architecture from GGUF.
    """
    device, dtype = reference.base.model.device, getattr(torch, reference.dtype)
    with quiet():
        try:
            model: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=dtype)
        except (ValueError, NotImplementedError) as error:
            raise ModelError(
                "transformers does not read this GGUF file back, so it cannot be checked here",
                got=str(error).splitlines()[0],
                hint="--no-check, and compare in llama.cpp",
            ) from error
    theirs = answer(model.to(device).eval(), reference.prompts)
    return compare(
        ours,
        theirs,
        reference.base_answers,
        dtype=coarsest(reference.dtype, _DTYPES[kind]),
        loaded_by="transformers' GGUF reader",
    )


@contextmanager
def _checkpoint_of(base: BaseName) -> Iterator[Checkpoint]:
    """The base as a folder of plain safetensors; made for the time being where there is none."""
    found = find_checkpoint(base)
    if found is not None:
        yield found
        return
    with tempfile.TemporaryDirectory(prefix="crma-base-") as folder, quiet():
        loaded = load_plain(base)
        loaded.model.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
        del loaded
        yield Checkpoint(Path(folder))
