"""Any PEFT LoRA as a domain: its adapter, and a memory from text that the model writes with it.

The text stands in for the domain's data, which nobody has: prompts and answers where the tokenizer has a
chat template, running text elsewhere. It is never written to the disk.
"""

from __future__ import annotations

import tempfile
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from constrained_adapters.adapters.files import read_facts
from constrained_adapters.config.crma import CRMAConfig
from constrained_adapters.errors import AdapterStateError, WorkspaceError
from constrained_adapters.export.bases import BaseName, check_fits
from constrained_adapters.export.folder import refuse_existing, write_record
from constrained_adapters.export.lora import Mix, make_mix, mix_record, write_mix
from constrained_adapters.model import CRMAModel
from constrained_adapters.model.binding import check_base
from constrained_adapters.models.gguf import quiet
from constrained_adapters.models.load import LoadedBase
from constrained_adapters.rehearsal.generative import write_examples
from constrained_adapters.training.domain import TrainingRecord
from constrained_adapters.training.sequence import TRAINING_FILE
from constrained_adapters.workspace import Workspace, atomic_directory, atomic_write_json

LENGTH_TOKENS = 96
_SCRATCH = "layers_of_later_domains"


@dataclass(frozen=True)
class Imported:
    """What was brought in.

    Args:
        folder: Of the adapter, with its memory.
        name: Of the domain.
        rank: Of the adapter.
        num_texts: That the model wrote for the memory; 0 where none was made.
    """

    folder: Path
    name: str
    rank: int
    num_texts: int


def import_adapter(
    folder: Path,
    target: Path | Workspace,
    base: LoadedBase,
    name: BaseName,
    *,
    domain: str,
    num_texts: int = 64,
    seed: int = 0,
    force: bool = False,
) -> Imported:
    """Bring an adapter in as a domain.

    Args:
        folder: A PEFT LoRA folder.
        target: Where the domain's folder is written; or a run's workspace, whose next ``crma run`` finds
            the domain learnt, if its crma.yaml names it.
        base: That the adapter was trained on.
        name: Of the base.
        domain: Name of the domain.
        num_texts: How many texts the model writes for the memory; 0 makes none.
        seed: Of the writing.
        force: Replace an earlier import; never one in a run.

    Returns:
        What was written; the base is bare again.

    Raises:
        DataError: No whole adapter is there.
        ModelError: It is no plain LoRA, or belongs to another base.
        AdapterStateError: The run has learnt such a domain already, or the model repeats itself, so that
            there is no text to make a memory from.
        WorkspaceError: The target exists, or cannot be written.
    """
    mix = make_mix({folder: 1.0})
    check_base(read_facts(folder).get("base_fingerprint"), base.fingerprint, where=str(folder))
    check_fits(mix.pairs, base.model, folder)
    home = target if isinstance(target, Path) else _free_home(target, domain, base.fingerprint)
    if isinstance(target, Path):
        refuse_existing(target, force=force)
    model, written = _with_memory(mix, base, name, domain, num_texts, seed)
    with atomic_directory(home) as new:
        model.save_adapter(new, domain)
        if isinstance(target, Path):
            write_record(new, {**mix_record(mix, "float32"), "kind": "imported", "from": str(folder)})
        else:
            facts = {**asdict(TrainingRecord()), "constraint": {}, "predicted_increase_nats": {}}
            atomic_write_json(new / TRAINING_FILE, {**facts, "imported_from": str(folder)})
    model.unload()
    return Imported(home, domain, mix.rank, written)


def _with_memory(
    mix: Mix, base: LoadedBase, name: BaseName, domain: str, num_texts: int, seed: int
) -> tuple[CRMAModel, int]:
    with warnings.catch_warnings():  # no step is constrained here
        warnings.simplefilter("ignore", UserWarning)
        config = CRMAConfig(base_model_name=name.name, adapter_dim=mix.rank, residual_scaling=1.0)
        model = CRMAModel.from_base(base, config)
    with tempfile.TemporaryDirectory(prefix="crma-import-") as plain, quiet():
        write_mix(mix, Path(plain), dtype="float32", base_name=name.shown)
        model.load_adapter(plain, domain)
    model.eval()
    model.set_active_adapter(domain)
    if not num_texts:
        return model, 0
    rows = _written_rows(model, base.tokenizer, num_texts, seed)
    if not rows:
        model.unload()
        raise AdapterStateError(
            "the model writes no text with this adapter, so it has no memory",
            got=f"{num_texts} attempts, all of them empty or alike",
            hint="--texts 0 imports it without a memory; later domains may hurt it then",
        )
    # Later domains adapt the layers of the settings, so the memory must know these too.
    model.create_adapter(_SCRATCH)
    model.update_gradient_memory(domain, rows, max_examples=len(rows))
    model.delete_adapter(_SCRATCH)
    return model, len(rows)


def _written_rows(model: CRMAModel, tokenizer: Any, count: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    rows = write_examples(
        model,
        tokenizer,
        num_examples=count,
        max_length_tokens=LENGTH_TOKENS,
        seed=seed,
        running_text=not tokenizer.chat_template,
    )
    return [
        (torch.tensor(row.input_ids, dtype=torch.int32), torch.tensor(row.labels, dtype=torch.int32))
        for row in rows
    ]


def _free_home(workspace: Workspace, domain: str, fingerprint: str) -> Path:
    home = workspace.adapter(domain)
    if home.exists():
        raise AdapterStateError(
            f"the run has a domain named {domain!r} already", got=str(home), hint="--name OTHER"
        )
    if workspace.base_file.is_file():
        known = workspace.read_base()[0]
        if known != fingerprint:
            raise WorkspaceError(
                "the run is on another base",
                got=f"fingerprint {fingerprint}",
                expected=f"fingerprint {known}",
            )
    return home
