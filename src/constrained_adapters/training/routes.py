"""What a run keeps of each domain for its router, measured once on the untouched base."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from constrained_adapters.config.run import MethodConfig, RunConfig
from constrained_adapters.data.examples import Domain
from constrained_adapters.recipes import find_recipe
from constrained_adapters.routing.build import domain_prompts, note_domain
from constrained_adapters.routing.keywords import write_keywords
from constrained_adapters.routing.states import STATISTICS_FILE, PromptStates
from constrained_adapters.workspace import Workspace


def note_for_router(
    workspace: Workspace,
    config: RunConfig,
    method: MethodConfig,
    number: int,
    domain: Domain,
    untouched: Callable[[], Any],
    tokenizer: Any,
) -> None:
    """Keep what the router needs to know of a domain just learnt, where its method gives it an adapter.

    Args:
        workspace: Of the method; the domain's folder is there.
        config: Of the run.
        method: Of ``config.methods``.
        number: Of the domain, from 1.
        domain: Its training prompts are measured, unless that was done before.
        untouched: Gives the base as it was before any domain.
        tokenizer: Of the base.

    Cost: the first decoder layer on at most 128 prompts, once.
    """
    if find_recipe(method).trained != "adapters":
        return
    keywords = next((each.keywords for each in config.domains if each.name == domain.name), None)
    write_keywords(workspace, domain.name, keywords or ())
    home = workspace.adapter(domain.name)
    if (home / STATISTICS_FILE).is_file():
        return
    prompts = domain_prompts(domain, seed=config.seed * 1000 + number)
    fingerprint, _ = workspace.read_base()
    note_domain(home, prompts, PromptStates(untouched(), tokenizer), base_fingerprint=fingerprint)
