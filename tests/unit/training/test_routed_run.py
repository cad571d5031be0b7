"""What a run keeps for its router, and the router made of it."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from constrained_adapters.errors import ConfigError, DataError, WorkspaceError
from constrained_adapters.model.opened import load_run_base, open_workspace
from constrained_adapters.routing import BASE, Router, find_router
from constrained_adapters.routing import own_text as own_text_module
from constrained_adapters.routing.build import OWN_TEXT_FILE, build_from_data
from constrained_adapters.routing.preferences import (
    PREFERENCES_FILE,
    RoutingPreferences,
    write_preferences,
)
from constrained_adapters.routing.states import STATISTICS_FILE, PromptStates
from constrained_adapters.workspace import find_workspace

from .conftest import DOMAINS

NAMES = DOMAINS[:2]


@pytest.fixture
def routed(tiny_run, monkeypatch):
    """A finished run of two domains, its base, and what is needed to load its router."""
    monkeypatch.setattr(own_text_module, "NUM_TEXTS", 16)
    monkeypatch.setattr(own_text_module, "NUM_TOKENS", 8)
    tiny_run("separate", names=NAMES)
    workspace = find_workspace(tiny_run.folder / "out")
    base = load_run_base(workspace)
    return workspace, base.model, base.tokenizer


def test_prompts_of_each_domain_are_routed_to_it_and_others_to_the_base(routed):
    router = Router.load(*routed)
    assert router.domains == ("law", "数学")
    for domain in NAMES:
        route = router.route(f"{domain} 77?")
        assert route.domain == domain and route.weights == {domain: 1.0} and route.probability > 0.5
    none = router.route("%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%")
    assert none.domain is None and none.weights == {} and none.probabilities[BASE] > 0.5
    assert sum(none.probabilities.values()) == pytest.approx(1.0)
    assert none.facts()["domain"] == BASE
    empty = router.route("  ")
    assert (empty.domain, empty.probability, empty.reason) == (None, 1.0, "the prompt is empty")


def test_many_prompts_are_decided_as_each_alone(routed):
    router = Router.load(*routed)
    prompts = ["law 3?", "", "数学 5?", "zzzzzz"]
    for prompt, route in zip(prompts, router.route_many(prompts), strict=True):
        alone = router.route(prompt)
        assert route.domain == alone.domain
        assert route.probabilities == pytest.approx(alone.probabilities, abs=1e-5)


def test_of_a_conversation_the_last_turn_counts_and_then_all(routed):
    router = Router.load(*routed)

    def turns(*said: str):
        return [{"role": "user", "content": text} for text in said] + [
            {"role": "assistant", "content": "law 1?"}
        ]

    assert router.route(turns("law 3?", "数学 5?")).domain == "数学"
    follow_up = router.route(turns("数学 5?", "数学 5?", "   "))
    assert follow_up.domain == "数学" and "all turns" in follow_up.reason
    assert router.route([{"role": "system", "content": "law 3?"}]).domain is None


def test_keywords_decide_and_go_with_the_settings(tiny_run, routed):
    workspace, model, tokenizer = routed
    config = tiny_run.config("separate", names=NAMES)
    config.domains[0].keywords = ["pumpernickel", "both"]
    config.domains[1].keywords = ["both"]
    from constrained_adapters.training.run import run_config

    run_config(config)  # goes on with the finished run: only the keywords are new
    router = Router.load(workspace, model, tokenizer)
    route = router.route("%%%% PUMPERNICKEL %%%%")
    assert (route.domain, route.keywords, route.probability) == ("law", ("pumpernickel",), 1.0)
    assert "'pumpernickel'" in route.reason
    assert router.route("数学 5? both").domain == "数学"
    assert router.route("law 5? both").domain == "law"
    tiny_run("separate", names=NAMES)
    assert Router.load(workspace, model, tokenizer).route("%%%% pumpernickel %%%%").domain is None


def test_a_mix_has_the_likely_domains_with_their_shares(routed):
    router = Router.load(*routed, false_choice_rate=1.0)
    route = router.route("law 数学 5?", mix=True)
    if len(route.weights) == 2:
        assert sum(route.weights.values()) == pytest.approx(1.0)
    assert router.route("law 5?", mix=True).weights == {"law": 1.0}
    assert Router.load(*routed, false_choice_rate=0.0).route("law 5?", mix=True).weights == {}


def test_the_explanation_names_words_of_the_prompt(routed):
    route = Router.load(*routed).explain("law 5?")
    assert {word for word, _ in route.words} == {"law", "5", "?"}
    shares = [share for _, share in route.words]
    assert shares == sorted(shares, reverse=True)


def test_the_model_with_its_adapters_routes_as_the_base(tiny_run, routed):
    workspace = routed[0]
    wanted = Router.load(*routed).route("law 5?")
    opened = open_workspace(workspace)
    opened.activate("数学")
    found = Router.load(workspace, opened.model, opened.tokenizer).route("law 5?")
    assert found.probabilities == pytest.approx(wanted.probabilities, abs=1e-6)
    assert opened.model.active_names == ["数学"]


def test_the_base_writes_its_text_once(routed, monkeypatch):
    workspace = routed[0]
    said: list[str] = []
    Router.load(*routed, tell=said.append)
    assert len(said) == 1 and (workspace.memory / OWN_TEXT_FILE).is_file()
    before = torch.random.get_rng_state()
    Router.load(*routed, tell=said.append)
    (workspace.memory / OWN_TEXT_FILE).write_text("{")
    again = Router.load(*routed, tell=said.append)
    assert len(said) == 2 and again.route("law 5?").domain == "law"
    assert torch.equal(before, torch.random.get_rng_state())


def test_adding_a_domain_leaves_the_others_statistics_as_they_were(tiny_run):
    tiny_run("separate", names=NAMES)
    workspace = find_workspace(tiny_run.folder / "out")
    files = [workspace.adapter(name) / STATISTICS_FILE for name in NAMES]
    before = [file.read_bytes() for file in files]
    tiny_run("separate", names=DOMAINS)
    assert [file.read_bytes() for file in files] == before
    assert (workspace.adapter(DOMAINS[2]) / STATISTICS_FILE).is_file()


def test_an_old_run_says_how_its_router_is_built_and_is_built(tiny_run, routed):
    workspace, model, tokenizer = routed
    files = [workspace.adapter(name) / STATISTICS_FILE for name in NAMES]
    before = [load_file(file) for file in files]
    for file in files:
        file.unlink()
    with pytest.raises(WorkspaceError, match="nothing to route by") as caught:
        Router.load(*routed)
    assert caught.value.hint == f"crma route --build --run {workspace.root}"
    build_from_data(workspace, PromptStates(model, tokenizer), print)
    for file, wanted in zip(files, before, strict=True):
        found = load_file(file)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    data = tiny_run.folder / "law.jsonl"
    data.write_text(data.read_text(encoding="utf-8").replace("law", "low"), encoding="utf-8")
    with pytest.raises(DataError, match="has changed since it was learnt"):
        build_from_data(workspace, PromptStates(model, tokenizer), print)
    (tiny_run.folder / "out" / "crma.yaml").unlink()
    with pytest.raises(WorkspaceError, match="data of this run is not known"):
        build_from_data(workspace, PromptStates(model, tokenizer), print)


def test_a_rate_that_is_none_is_refused(routed):
    with pytest.raises(ConfigError, match="no share"):
        Router.load(*routed, false_choice_rate=1.5)


def test_statistics_of_other_vectors_are_refused(routed):
    vectors = PromptStates(*routed[1:])
    vectors.name = "another layer"
    with pytest.raises(WorkspaceError, match="another model") as caught:
        Router.load(*routed, vectors=vectors)
    assert "decoder layer 1" in caught.value.got


def test_what_the_run_prefers_holds_wherever_nothing_else_is_said(routed):
    workspace = routed[0]
    write_preferences(workspace, RoutingPreferences(false_choice_rate=0.0))
    assert Router.load(*routed).route("law 5?").domain is None
    assert Router.load(*routed, false_choice_rate=0.05).route("law 5?").domain == "law"
    write_preferences(workspace, RoutingPreferences(embedding=workspace.root / "none"))
    assert find_router(*routed) is None  # no statistics of an embedding model
    with pytest.raises(DataError):
        Router.load(*routed)


def test_damaged_preferences_say_how_to_go_on(routed):
    write_preferences(routed[0], RoutingPreferences())
    file = routed[0].memory / PREFERENCES_FILE
    file.write_text('{"version": 1, "false_choice_rate": 7, "embedding": null}')
    with pytest.raises(WorkspaceError, match=r"damaged[\s\S]*remove the file"):
        Router.load(*routed)
    file.write_text("{")
    with pytest.raises(WorkspaceError, match="damaged"):
        Router.load(*routed)
