"""What a run keeps for its router: statistics in each domain's folder, and text that the base wrote."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from constrained_adapters.config.yaml_file import read_config
from constrained_adapters.data.examples import Domain
from constrained_adapters.data.load import load_domain
from constrained_adapters.errors import DataError, WorkspaceError
from constrained_adapters.memory.reservoir import sample_rows
from constrained_adapters.routing.keywords import write_keywords
from constrained_adapters.routing.own_text import write_own_text
from constrained_adapters.routing.statistics import PromptStatistics
from constrained_adapters.workspace import Workspace, atomic_write_json, finished_domains

NUM_PROMPTS = 128
"""Prompts of a domain that its statistics are of."""
OWN_TEXT_FILE = "own_text.json"


class Vectors(Protocol):
    """Turns texts into vectors."""

    @property
    def name(self) -> str:
        """What the vectors are; statistics of other vectors do not go with them."""

    @property
    def file(self) -> str:
        """Where a domain's folder holds their statistics."""

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """One vector a text, (b, d), and of how many parts it is the mean, (b)."""


def domain_prompts(domain: Domain, *, seed: int) -> list[str]:
    """What is asked in some of a domain's training examples; of running text, the text."""
    examples = sample_rows(domain.train, NUM_PROMPTS, seed)
    return [example.text if example.text is not None else example.task_prompt for example in examples]


def note_domain(folder: Path, prompts: Sequence[str], vectors: Vectors, *, base_fingerprint: str) -> None:
    """Measure the prompts of a domain and write their statistics into its folder.

    Cost: one pass of ``vectors`` over the prompts.
    """
    made, lengths = vectors(prompts)
    statistics = PromptStatistics.of(made, lengths, made_from=vectors.name, base_fingerprint=base_fingerprint)
    statistics.save(folder / vectors.file)


def read_domain(workspace: Workspace, domain: str, vectors: Vectors) -> PromptStatistics:
    """The statistics of a domain.

    Raises:
        WorkspaceError: There are none, they are damaged, or of another base or other vectors.
    """
    file = workspace.adapter(domain) / vectors.file
    if not file.is_file():
        raise WorkspaceError(
            "the run knows nothing to route by",
            got=f"no {vectors.file} in {file.parent}",
            expected="a run that was made, or gone on with, since routing stands",
            hint=f"crma route --build --run {workspace.root}",
        )
    statistics = PromptStatistics.load(file)
    fingerprint, _ = workspace.read_base()
    if statistics.made_from != vectors.name or statistics.base_fingerprint not in {"", fingerprint}:
        raise WorkspaceError(
            "the routing statistics were made by another model",
            got=f"{statistics.made_from}, base {statistics.base_fingerprint[:12]} ({file})",
            expected=f"{vectors.name}, base {fingerprint[:12]}",
            hint=f"crma route --build --run {workspace.root}",
        )
    return statistics


def own_texts(workspace: Workspace, model: Any, tokenizer: Any, tell: Callable[[str], None]) -> list[str]:
    """Text that the base of a run wrote, which is kept with the run; written when it is first asked for.

    Args:
        workspace: Of the run; where it may only be read, nothing is kept.
        model: The base; adapters must be off.
        tokenizer: Of the base.
        tell: Says what takes long.
    """
    file = workspace.memory / OWN_TEXT_FILE
    fingerprint = workspace.read_base()[0]
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept["base_fingerprint"] == fingerprint:
            return [str(text) for text in kept["texts"]]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not there, or damaged: it is written anew, and comes out the same
    tell("once: the base writes text that is of no domain, to tell the router what to leave alone")
    texts = write_own_text(model, tokenizer)
    try:
        atomic_write_json(file, {"version": 1, "base_fingerprint": fingerprint, "texts": texts})
    except (OSError, WorkspaceError):
        tell(f"it cannot be kept in {file.parent}, and will be written again the next time")
    return texts


def build_from_data(workspace: Workspace, vectors: Vectors, tell: Callable[[str], None]) -> None:
    """Make the statistics of a finished run from the data that its ``crma.yaml`` names.

    For runs that were made before there was routing, or for other vectors.

    Args:
        workspace: Of the run.
        vectors: What the router is to go by.
        tell: Says what is being done.

    Raises:
        WorkspaceError: There is no ``crma.yaml`` beside the workspace.
        DataError: The data is not that which the domain was learnt from.
    """
    settings = workspace.root.absolute().parent / "crma.yaml"
    if not settings.is_file():
        raise WorkspaceError("the data of this run is not known", got=f"no {settings}")
    config = read_config(settings)
    learnt = workspace.ledger.standing()
    wanted = finished_domains(workspace)
    for number, named in enumerate(config.domains, start=1):
        if named.name not in wanted:
            continue
        tell(f"{named.name}: reading its data")
        domain = load_domain(named, config.seed)
        if domain.fingerprint != learnt[named.name].get("data_fingerprint", domain.fingerprint):
            raise DataError(
                f"the data of domain {named.name!r} has changed since it was learnt",
                got=f"{domain.source}, fingerprint {domain.fingerprint[:12]}",
                expected=f"fingerprint {learnt[named.name]['data_fingerprint'][:12]}",
                hint="give back the data that the run was made from",
            )
        prompts = domain_prompts(domain, seed=config.seed * 1000 + number)
        folder = workspace.adapter(named.name)
        note_domain(folder, prompts, vectors, base_fingerprint=workspace.read_base()[0])
        if named.keywords:
            write_keywords(workspace, named.name, named.keywords)
