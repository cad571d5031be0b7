"""Judge a folder or file that an engine is to load, without its base: is it whole, and who takes it?"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from constrained_adapters.adapters.files import CONFIG_FILE
from constrained_adapters.errors import DataError, ModelError, UsageError
from constrained_adapters.export.check import Comparison
from constrained_adapters.export.checkpoint import INDEX_FILE, Checkpoint
from constrained_adapters.export.folder import read_record
from constrained_adapters.export.gguf_base import RECORD_KEY
from constrained_adapters.export.lora import ENGINE_RANKS
from constrained_adapters.export.plain import read_plain_lora


@dataclass(frozen=True)
class Verdict:
    """What was found out.

    Args:
        kind: ``lora``, ``merged``, ``gguf_lora`` or ``gguf_model``.
        facts: In words, one a line.
        engines: What each engine says to it.
        record: What ``crma export`` wrote down about it; empty for files of another origin.
        comparison: With the model that it was made from, where that was asked for.
    """

    kind: str
    facts: tuple[str, ...]
    engines: Mapping[str, str]
    record: Mapping[str, Any] = field(default_factory=dict)
    comparison: Comparison | None = None


def verify_form(path: Path) -> Verdict:
    """Read all of a LoRA folder, a model folder or a GGUF file; no base is needed.

    Raises:
        UsageError: It is nothing of the kind.
        DataError: It is half-written or damaged, or holds NaN or infinity.
        ModelError: A weight file of a model is missing or damaged.
    """
    if path.suffix == ".gguf" and path.is_file():
        return _gguf(path)
    if (path / CONFIG_FILE).is_file() or any(path.glob("adapter_model.*")):
        return _lora(path)
    if (path / "config.json").is_file():
        return _model(path)
    there = sorted(each.name for each in path.iterdir())[:8] if path.is_dir() else "no such folder"
    raise UsageError(
        "there is nothing to verify",
        got=f"{path}: {there}",
        expected=f"a folder with {CONFIG_FILE} or config.json, or a .gguf file",
    )


def _lora(folder: Path) -> Verdict:
    config = _json(folder / CONFIG_FILE)
    try:
        plain = read_plain_lora(folder)
    except ModelError as error:
        refused = f"no: {error.got}"
        engines = {"PEFT": "yes", "vLLM": refused, "SGLang": refused, "llama.cpp": refused}
        return Verdict("lora", (f"an adapter beyond plain LoRA ({folder})",), engines, read_record(folder))
    ranks = sorted({a.shape[0] for a, _ in plain.pairs.values()})
    facts = (
        f"plain LoRA on {len(plain.pairs)} layers, rank {' and '.join(map(str, ranks))}, "
        f"{str(plain.dtype).removeprefix('torch.')}, all values finite",
        f"base: {plain.base_name or 'not named'}",
    )
    return Verdict("lora", facts, _engines(config, ranks, plain.pairs), read_record(folder))


def _engines(config: Mapping[str, Any], ranks: list[int], modules: Iterable[str]) -> dict[str, str]:
    fitting = [rank for rank in ENGINE_RANKS if rank >= ranks[-1]]
    vllm = f"yes, --max-lora-rank {fitting[0]}" if fitting else f"no: rank {ranks[-1]} > {ENGINE_RANKS[-1]}"
    patterns = [key for key in ("use_rslora", "rank_pattern", "alpha_pattern") if config.get(key)]
    if patterns:
        sglang = f"no: it takes alpha / r and ignores {', '.join(patterns)}; crma export lora bakes them in"
    elif not isinstance(config.get("target_modules"), list):
        sglang = "no: it wants target_modules as a list; crma export lora writes one"
    elif uneven := _without_partner(set(modules)):
        sglang = f"no: it joins q, k and v of a layer and wants both q and v ({uneven} is alone)"
    else:
        sglang = "yes"
    return {"PEFT": "yes", "vLLM": vllm, "SGLang": sglang, "llama.cpp": "after crma export gguf"}


def _without_partner(modules: set[str]) -> str | None:
    """A q, k or v of a layer whose q or v has no adapter, if there is one."""
    for module in sorted(modules):
        parent, _, last = module.rpartition(".")
        if last in {"q_proj", "k_proj", "v_proj"} and not {f"{parent}.q_proj", f"{parent}.v_proj"} <= modules:
            return module
    return None


def _model(folder: Path) -> Verdict:
    checkpoint = Checkpoint(folder)
    index = folder / INDEX_FILE
    listed = _json(index)["weight_map"] if index.is_file() else {}
    lost = sorted(listed.keys() - checkpoint.entries.keys())
    if lost:
        raise DataError(
            "tensors of the model are missing",
            got=f"{len(lost)}, such as {lost[0]} ({folder})",
            expected="all",
        )
    total = 0
    for name, entry in checkpoint.entries.items():
        tensor = checkpoint.read(name)
        total += tensor.nbytes
        bad = int((~tensor.isfinite()).sum()) if entry.dtype.is_floating_point else 0
        if bad:
            raise DataError("the model holds values that are no numbers", got=f"{bad} in {name} ({folder})")
    files = len({entry.file for entry in checkpoint.entries.values()})
    fast = (folder / "tokenizer.json").is_file() or (folder / "tokenizer.model").is_file()
    architecture = ", ".join(checkpoint.config.get("architectures") or ["unknown architecture"])
    facts = (
        f"{architecture}: {len(checkpoint.entries)} tensors in {files} file{'s' if files > 1 else ''}, "
        f"{total / 1e6:.1f} MB, all values finite",
        f"tokenizer: {'there' if fast else 'missing, engines need it'}",
    )
    return Verdict("merged", facts, {"engines": "those that know the architecture"}, read_record(folder))


def _gguf(path: Path) -> Verdict:
    try:
        reader = gguf.GGUFReader(path)
        fields = {name: part.contents() for name, part in reader.fields.items()}
        for tensor in reader.tensors:
            plain = tensor.tensor_type in {gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16}
            if plain and not np.isfinite(tensor.data).all():
                raise DataError("the file holds values that are no numbers", got=f"{tensor.name} ({path})")
    except (ValueError, KeyError, IndexError, OSError) as error:
        raise DataError(
            "the GGUF file is damaged or half-written", got=f"{error} ({path})", expected="a whole file"
        ) from None
    adapter = fields.get("general.type") == "adapter"
    facts = (
        f"GGUF {'LoRA' if adapter else 'model'} for {fields.get('general.architecture')}: "
        f"{len(reader.tensors)} tensors, {path.stat().st_size / 1e6:.1f} MB",
    )
    how = f"yes, --lora {path.name}" if adapter else f"yes, -m {path.name}"
    record = json.loads(fields[RECORD_KEY]) if RECORD_KEY in fields else {}
    return Verdict("gguf_lora" if adapter else "gguf_model", facts, {"llama.cpp": how}, record)


def _json(path: Path) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            "the adapter is half-written", got=f"no {path}", expected="all of its files"
        ) from None
    except ValueError as error:
        raise DataError("a file is damaged", got=f"{path}: {error}", expected="JSON") from None
    return value
