"""Judge an export by what it says: on its base, and against the run that it was made from."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from transformers import AutoConfig

from constrained_adapters.adapters.files import read_facts
from constrained_adapters.errors import UsageError
from constrained_adapters.export.bases import BaseName, find_base, open_base
from constrained_adapters.export.check import Comparison
from constrained_adapters.export.checked_gguf import compare_gguf
from constrained_adapters.export.checkpoint import find_checkpoint
from constrained_adapters.export.gguf_lora import read_gguf_lora
from constrained_adapters.export.lora import make_mix, write_mix
from constrained_adapters.export.quantised import rounding_of
from constrained_adapters.export.reference import Reference, compare_lora, compare_merged, make_reference
from constrained_adapters.export.sources import Source
from constrained_adapters.export.verify import Verdict, verify_form
from constrained_adapters.model.domain_adapters import acting_adapters, adapter_home
from constrained_adapters.workspace import Workspace


def verify_against(
    path: Path,
    workspace: Workspace | None,
    *,
    base_name: str | None = None,
    tolerance: float | None = None,
    device: str = "auto",
) -> Verdict:
    """Load an export as :func:`~constrained_adapters.export.verify.verify_form` found it, and compare.

    Args:
        path: The folder or file.
        workspace: Of the run that it was made from; None loads a LoRA on its base and compares it with
            itself as this library loads it.
        base_name: The base, where it lies elsewhere now.
        tolerance: As :meth:`~constrained_adapters.export.check.Comparison.require`.
        device: Where it is done.

    Raises:
        UsageError: Nothing says what the export was made from.
        ModelError: The base is another one, or the export says something else than the run.
        ConstrainedAdaptersError: As :func:`~constrained_adapters.export.verify.verify_form`.
    """
    verdict = verify_form(path)
    source = _source(path, verdict, workspace)
    base = find_base([source], workspace, base_name)
    if base.fingerprint is None:
        base = replace(base, fingerprint=verdict.record.get("base_fingerprint"))
    checkpoint = find_checkpoint(base)
    rounding = None if checkpoint is None else rounding_of(checkpoint, base)
    reference = make_reference([source], open_base(base, device), rounding)
    comparison = _compare(path, verdict, source, base, reference)
    if not verdict.record.get("compression_error_ratio") or tolerance is not None:
        comparison.require(tolerance)
    return replace(verdict, comparison=comparison)


def _compare(
    path: Path, verdict: Verdict, source: Source, base: BaseName, reference: Reference
) -> Comparison:
    dtype = str(verdict.record.get("dtype", reference.dtype))
    if verdict.kind == "lora":
        return compare_lora(reference, source.name, path, dtype)
    if verdict.kind == "merged":
        return compare_merged(reference, source.name, path, dtype)
    if verdict.kind == "gguf_model":
        kind = str(verdict.record.get("type", "f16"))
        return compare_gguf(reference, reference.answers[source.name], path, kind)
    mix = make_mix(source.adapters)
    checkpoint = find_checkpoint(base)
    config = (
        reference.base.model.config if checkpoint is None else AutoConfig.from_pretrained(checkpoint.folder)
    )
    back = replace(mix, pairs=read_gguf_lora(path, config, list(mix.pairs)))
    with tempfile.TemporaryDirectory(prefix="crma-verify-") as folder:
        write_mix(back, Path(folder), dtype="float32")
        comparison = compare_lora(reference, source.name, Path(folder), dtype)
    return replace(comparison, loaded_by="reading the GGUF file into stock PEFT")


def _source(path: Path, verdict: Verdict, workspace: Workspace | None) -> Source:
    if workspace is None:
        if verdict.kind != "lora":
            raise UsageError(
                "there is nothing to compare this export with",
                got=f"a {verdict.kind.replace('_', ' ')}, and no run",
                hint="--run DIR, the run that it was made from",
            )
        return Source(str(read_facts(path).get("name") or path.resolve().name), {}, {path: 1.0})
    adapters = verdict.record.get("adapters")
    if adapters is None:
        acting = acting_adapters(workspace)
        if path.stem not in acting:
            raise UsageError(
                "nothing says which domain of the run this is",
                got=f"{path} has no record of an export, and no domain is named {path.stem!r}",
                expected=f"an export, or a name among {', '.join(acting)}",
            )
        adapters = acting[path.stem]
    found = {_home(workspace, name): float(weight) for name, weight in adapters.items()}
    return Source(path.stem, dict(verdict.record.get("domains", {})), found)


def _home(workspace: Workspace, adapter: str) -> Path:
    """The run's adapter; an export that was made from folders recorded their paths where names were equal."""
    return Path(adapter) if "/" in adapter else adapter_home(workspace, adapter)
