"""The router of a run: prompts in, domains out, each decision with its reason."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Self

from torch import Tensor

from constrained_adapters.routing.build import Vectors, own_texts, read_domain
from constrained_adapters.routing.discriminant import Discriminant
from constrained_adapters.routing.embedding import EMBEDDING_FILE, load_embedding
from constrained_adapters.routing.keywords import found_keywords, read_keywords
from constrained_adapters.routing.preferences import RoutingPreferences, read_preferences
from constrained_adapters.routing.route import BASE, Route
from constrained_adapters.routing.states import STATISTICS_FILE, PromptStates
from constrained_adapters.workspace import Workspace, finished_domains

LEAST_SHARE = 0.1
"""A domain that is less likely takes no part in a mix."""

Prompt = str | Sequence[Mapping[str, str]]
"""A text, or a conversation as a list of ``{"role", "content"}``."""


class Router:
    """Picks the domain of a prompt, a mix of domains, or the base where none fits.

    Args:
        domains: Names, in the order of the discriminant.
        vectors: Turns prompts into vectors.
        discriminant: Over these vectors.
        keywords: The user's words for each domain.
    """

    def __init__(
        self,
        domains: Sequence[str],
        vectors: Vectors,
        discriminant: Discriminant,
        keywords: Mapping[str, Sequence[str]],
    ) -> None:
        self.domains = tuple(domains)
        self._vectors, self._discriminant, self._keywords = vectors, discriminant, dict(keywords)

    @classmethod
    def load(
        cls,
        workspace: Workspace,
        model: Any,
        tokenizer: Any,
        *,
        false_choice_rate: float | None = None,
        vectors: Vectors | None = None,
        tell: Callable[[str], None] = lambda text: None,
    ) -> Self:
        """Read what a run keeps for routing.

        Args:
            workspace: Of the run.
            model: Its base, or a ``CRMAModel`` on it, whose adapters are switched off while it is asked. Two
                threads must not use it at once.
            tokenizer: Of the base.
            false_choice_rate: Share of the base's own text, 0 … 1, that may be taken for a domain's; the
                threshold follows from it. None: as the run prefers
                (:mod:`constrained_adapters.routing.preferences`), 0.05 unless it was set.
            vectors: Other vectors, such as an embedding model's; None: as the run prefers, the base's hidden
                states unless it was set.
            tell: Says what takes long: the first router of a run lets the base write text.

        Raises:
            WorkspaceError: The run has no statistics to route by, or they are damaged.
            ConfigError: The rate is no share.
            DataError: The embedding model that the run prefers has gone.
        """
        preferred = read_preferences(workspace)
        if false_choice_rate is not None:
            preferred = replace(preferred, false_choice_rate=false_choice_rate)
        vectors = vectors or preferred_vectors(preferred, model, tokenizer)
        domains = finished_domains(workspace)
        statistics = [read_domain(workspace, domain, vectors) for domain in domains]
        with getattr(model, "base_only", nullcontext)():
            texts = own_texts(workspace, model, tokenizer, tell)
        discriminant = Discriminant.fit(
            statistics, vectors(texts), false_choice_rate=preferred.false_choice_rate
        )
        keywords = {domain: read_keywords(workspace.adapter(domain)) for domain in domains}
        return cls(domains, vectors, discriminant, keywords)

    def route(self, prompt: Prompt, *, mix: bool = False) -> Route:
        """Decide on one prompt; see :meth:`route_many`."""
        return self.route_many([prompt], mix=mix)[0]

    def route_many(self, prompts: Sequence[Prompt], *, mix: bool = False) -> list[Route]:
        """Decide on prompts.

        Of a conversation the last turn of the user counts; where that fits no domain (such as 'and why?'),
        all that the user said. Keywords come first: the domain of a keyword is chosen, and where several
        domains have one in the prompt, the likeliest of them.

        Args:
            prompts: Texts or conversations.
            mix: Answer with a mix of the likely domains, weighted by their probabilities, instead of one.

        Cost: one pass of the vectors over all prompts, and another over conversations that fit no domain.
        """
        turns = [_user_turns(prompt) for prompt in prompts]
        routes = self._decide([said[-1] for said in turns])
        whole = [at for at, said in enumerate(turns) if len(said) > 1 and routes[at].domain is None]
        if whole:
            for at, found in zip(whole, self._decide(["\n".join(turns[at]) for at in whole]), strict=True):
                if found.domain is not None:
                    routes[at] = replace(
                        found, reason=f"the last turn fits no domain; all turns: {found.reason}"
                    )
        return [_mixed(route) for route in routes] if mix else routes

    def explain(self, prompt: Prompt) -> Route:
        """As :meth:`route`, with the words that speak for the likeliest domain, and against it."""
        route = self.route(prompt)
        text = _user_turns(prompt)[-1]
        if not isinstance(self._vectors, PromptStates) or not text.strip():
            return route
        domain = route.domain or max(self.domains, key=lambda name: route.probabilities[name])
        words, parts = self._vectors.words(text)
        pulls = self._discriminant.pull(parts, self.domains.index(domain)).tolist()
        sums: dict[str, float] = {}
        for word, pull in zip(words, pulls, strict=True):
            if word:
                sums[word] = sums.get(word, 0.0) + pull
        return replace(route, words=tuple(sorted(sums.items(), key=lambda item: -item[1])))

    def _decide(self, texts: Sequence[str]) -> list[Route]:
        asked = [at for at, text in enumerate(texts) if text.strip()]
        empty = Route(
            None,
            {},
            {**dict.fromkeys(self.domains, 0.0), BASE: 1.0},
            dict.fromkeys(self.domains, math.inf),
            dict.fromkeys(self.domains, self._discriminant.threshold),
            reason="the prompt is empty",
        )
        found = [empty] * len(texts)
        if asked:
            vectors, lengths = self._vectors([texts[at] for at in asked])
            distances = self._discriminant.distances(vectors)
            probabilities = self._discriminant.probabilities(distances, lengths)
            thresholds = self._discriminant.threshold * self._discriminant.widening(lengths)
            for at, near, likely, bars in zip(asked, distances, probabilities, thresholds, strict=True):
                found[at] = self._route(texts[at], near, likely, bars)
        return found

    def _route(self, text: str, distances: Tensor, probabilities: Tensor, bars: Tensor) -> Route:
        names = (*self.domains, BASE)
        likely = dict(zip(names, probabilities.tolist(), strict=True))
        near = dict(zip(self.domains, distances.tolist(), strict=True))
        thresholds = dict(zip(self.domains, bars.tolist(), strict=True))
        words = found_keywords(text, self._keywords)
        if words:
            kept = {name: likely[name] if name in words else 0.0 for name in names}
            total = sum(kept.values())
            kept = {n: (p / total if total else float(n in words) / len(words)) for n, p in kept.items()}
            domain = max(words, key=lambda name: kept[name])
            found = ", ".join(repr(word) for word in words[domain])
            reason = f"the prompt has the keyword {found}"
            return Route(domain, {domain: 1.0}, kept, near, thresholds, words[domain], reason)
        best = max(names, key=lambda name: likely[name])
        if best == BASE:
            nearest = max(self.domains, key=lambda name: likely[name])
            where = (
                f"{near[nearest]:.1f} of its spread from {nearest}, and {thresholds[nearest]:.1f} is allowed"
            )
            return Route(None, {}, likely, near, thresholds, reason=f"no domain fits: {where}")
        where = f"{near[best]:.1f} of its spread away, and {thresholds[best]:.1f} is allowed"
        return Route(best, {best: 1.0}, likely, near, thresholds, reason=f"nearest is {best}: {where}")


def preferred_vectors(preferred: RoutingPreferences, model: Any, tokenizer: Any) -> Vectors:
    """What turns prompts into vectors: the embedding model that is preferred, or the base's own states.

    Raises:
        DataError: There is no embedding model in that folder.
        MissingExtraError: The library that it was made with is not installed.
    """
    if preferred.embedding is not None:
        return load_embedding(preferred.embedding)
    return PromptStates(model, tokenizer)


def find_router(
    workspace: Workspace, model: Any, tokenizer: Any, *, tell: Callable[[str], None] = lambda text: None
) -> Router | None:
    """The router of a run; None where the run was made before there was one and knows nothing to route by.

    Raises:
        WorkspaceError: What it knows is damaged.
    """
    file = STATISTICS_FILE if read_preferences(workspace).embedding is None else EMBEDDING_FILE
    known = [workspace.adapter(name) / file for name in finished_domains(workspace)]
    if not all(each.is_file() for each in known):
        return None
    return Router.load(workspace, model, tokenizer, tell=tell)


def _user_turns(prompt: Prompt) -> list[str]:
    if isinstance(prompt, str):
        return [prompt]
    said = [str(turn.get("content") or "") for turn in prompt if turn.get("role") == "user"]
    return said or [""]


def _mixed(route: Route) -> Route:
    if route.domain is None:
        return route
    shares = {n: p for n, p in route.probabilities.items() if n != BASE and p >= LEAST_SHARE}
    total = sum(shares.values())
    weights = {name: share / total for name, share in shares.items()} if shares else route.weights
    return replace(route, weights=weights)
