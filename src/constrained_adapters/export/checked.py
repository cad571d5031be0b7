"""Exports that are in their place only once they have been loaded back and compared."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from constrained_adapters.export.bases import BaseName, open_base
from constrained_adapters.export.card import CARD_FILE, domain_facts, write_card
from constrained_adapters.export.check import Comparison
from constrained_adapters.export.checkpoint import find_checkpoint
from constrained_adapters.export.folder import new_export, refuse_existing, size_bytes, write_record
from constrained_adapters.export.lora import DType, Mix, make_mix, mix_record, write_mix
from constrained_adapters.export.merged import SHARD_BYTES, write_merged
from constrained_adapters.export.merged_loaded import load_plain, write_merged_loaded
from constrained_adapters.export.quantised import rounding_of
from constrained_adapters.export.reference import compare_lora, compare_merged, make_reference
from constrained_adapters.export.sources import Source
from constrained_adapters.workspace import Workspace, atomic_write_text


@dataclass(frozen=True)
class Checked:
    """One export that was written.

    Args:
        path: The folder or file.
        what: In a few words.
        num_bytes: On disk.
        seconds: To write it, the check not counted.
        comparison: Figures of the check; None where it was not asked for.
    """

    path: Path
    what: str
    num_bytes: int
    seconds: float
    comparison: Comparison | None


def export_loras(
    sources: Sequence[Source],
    output: Path,
    base: BaseName,
    workspace: Workspace | None = None,
    *,
    rank: int | None = None,
    pad_rank: Literal["auto"] | int | None = None,
    dtype: DType = "same",
    check: bool = True,
    tolerance: float | None = None,
    device: str = "auto",
    force: bool = False,
) -> Iterator[Checked]:
    """Write each source as a plain PEFT LoRA folder below ``output``, with its card and its proof.

    Everything that can be refused is refused before the base is loaded.

    Args:
        sources: Of :func:`~constrained_adapters.export.sources.find_sources`.
        output: Gets one folder a source, by the source's name.
        base: Of :func:`~constrained_adapters.export.bases.find_base`.
        workspace: The run's, whose figures go into the card.
        rank: As :func:`~constrained_adapters.export.lora.make_mix`.
        pad_rank: As there.
        dtype: Of the weights.
        check: Load each export back; without, the base is not loaded at all.
        tolerance: Of the check; default: by type, and none for a compressed adapter, whose loss is stated.
        device: That the check runs on.
        force: Replace earlier exports.

    Raises:
        ConstrainedAdaptersError: As :func:`~constrained_adapters.export.lora.export_lora`, or the check
            fails.
    """
    mixes: list[Mix] = []
    for source in sources:
        refuse_existing(output / source.name, force=force)
        mixes.append(make_mix(source.adapters, rank=rank, pad_rank=pad_rank))
    reference = make_reference(sources, open_base(base, device)) if check else None
    for source, mix in zip(sources, mixes, strict=True):
        begun = time.perf_counter()
        with new_export(output / source.name, force=force) as folder:
            kind = write_mix(mix, folder, dtype=dtype, base_name=base.shown)
            seconds = time.perf_counter() - begun
            comparison = None
            if reference is not None:
                comparison = compare_lora(reference, source.name, folder, kind)
                if not mix.error_ratio or tolerance is not None:
                    comparison.require(tolerance)
            facts = domain_facts(source, workspace)
            card = write_card(source, mix, base, facts, dtype=kind, comparison=comparison)
            atomic_write_text(folder / CARD_FILE, card)
            checked = {} if comparison is None else {"check": comparison.record()}
            write_record(folder, {**mix_record(mix, kind), "domains": source.domains, **checked})
        path = output / source.name
        yield Checked(path, _what(mix, kind), size_bytes(path), seconds, comparison)


def export_merged(
    sources: Sequence[Source],
    output: Path,
    base: BaseName,
    workspace: Workspace | None = None,
    *,
    dtype: DType = "same",
    shard_bytes: int = SHARD_BYTES,
    check: bool = True,
    tolerance: float | None = None,
    device: str = "auto",
    force: bool = False,
) -> Iterator[Checked]:
    """Write each source merged into its base, as a model folder of its own below ``output``.

    Args:
        sources: As :func:`export_loras`.
        output: As there.
        base: As there.
        workspace: As there.
        dtype: Of the weights; ``"same"``: as the base keeps them.
        shard_bytes: Most bytes of one weight file, and about what is held in memory.
        check: As there; the base and the merged model are in memory then, one after the other.
        tolerance: As there.
        device: As there.
        force: As there.

    Raises:
        ConstrainedAdaptersError: As :func:`~constrained_adapters.export.merged.write_merged`, or the check
            fails.
    """
    mixes = []
    for source in sources:
        refuse_existing(output / source.name, force=force)
        mixes.append(make_mix(source.adapters))
    checkpoint = find_checkpoint(base)
    rounding = None if checkpoint is None else rounding_of(checkpoint, base)
    reference = make_reference(sources, open_base(base, device), rounding) if check else None
    for source, mix in zip(sources, mixes, strict=True):
        begun = time.perf_counter()
        with new_export(output / source.name, force=force) as folder:
            options: dict[str, Any] = {"dtype": dtype, "shard_bytes": shard_bytes}
            if checkpoint is not None:
                merge = write_merged(checkpoint, mix, folder, rounding=rounding, **options)
            else:
                merge = write_merged_loaded(load_plain(base), mix, folder, **options)
            seconds = time.perf_counter() - begun
            comparison = None
            if reference is not None:
                comparison = compare_merged(reference, source.name, folder, merge.dtype)
                comparison.require(tolerance)
            facts = domain_facts(source, workspace)
            card = write_card(source, mix, base, facts, dtype=merge.dtype, comparison=comparison, merged=True)
            atomic_write_text(folder / CARD_FILE, card)
            checked = {} if comparison is None else {"check": comparison.record()}
            record = {**mix_record(mix, merge.dtype), "kind": "merged", "domains": source.domains, **checked}
            write_record(folder, record)
        path = output / source.name
        files = f"{merge.num_shards} weight file{'s' if merge.num_shards > 1 else ''}"
        what = f"merged model, {merge.dtype}, {files}, {merge.num_merged} layers changed"
        yield Checked(path, what, size_bytes(path), seconds, comparison)


def _what(mix: Mix, kind: str) -> str:
    padding = f" (of them {mix.rank - mix.own_rank} zeros)" if mix.rank > mix.own_rank else ""
    text = f"LoRA of rank {mix.rank}{padding}, {kind}"
    if mix.worst is None:
        return text
    module, share = mix.worst
    return (
        f"{text}; compressed: {100 * mix.error_ratio:.2g} % of ‖ΔW‖ lost, at most {100 * share:.2g} % of one "
        f"layer ({module})"
    )
