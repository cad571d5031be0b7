"""Domains that are undone: back to an earlier one, or one left out; and the run that follows."""

from __future__ import annotations

import itertools
import json
import shutil

import pytest

from constrained_adapters.config.yaml_file import read_config
from constrained_adapters.data.load import load_domain
from constrained_adapters.errors import AdapterStateError, UnknownNameError, WorkspaceError
from constrained_adapters.evaluation.items import mean_scores
from constrained_adapters.evaluation.scored_set import score_set
from constrained_adapters.model.domain_adapters import acting_adapters
from constrained_adapters.model.opened import open_workspace
from constrained_adapters.rehearsal import KeptFile
from constrained_adapters.training.undo import remove, rollback
from constrained_adapters.workspace import Workspace, finished_domains
from constrained_adapters.workspace import undo as undoing

from .conftest import DOMAINS, StopAt, StopError, numbers

FIRST, MIDDLE, LAST = DOMAINS
SETTINGS = {
    "lora + replay": {"replay_ratio": 0.5, "replay_capacity": 7},
    "lora + generative_replay": {"generated_examples": 3, "generated_ratio": 0.25},
}


def method_of(recipe: str) -> dict:
    return {"recipe": recipe, **SETTINGS.get(recipe, {})}


def workspace_of(tiny_run, recipe: str, output: str = "out") -> Workspace:
    return Workspace(tiny_run.folder / output / recipe)


def files(workspace: Workspace) -> dict[str, bytes]:
    """Every adapter and every memory."""
    found = [*workspace.root.glob("adapters/*/*"), *workspace.memory.rglob("*")]
    kept = [path for path in sorted(found) if path.is_file() and path.name != "training.json"]
    return {str(path.relative_to(workspace.root)): path.read_bytes() for path in kept}


def figures(result):
    """All of a method's result that does not depend on when and where it was made."""
    return numbers(result.methods[0].model_dump())


RECIPES = [
    "crma",
    "lora + replay",
    "lora + ewc + ogd",
    "olora + online_ewc + gem",
    "isolation",
    "progressive",
    "houlsby + ewc",
    "lora + generative_replay",
    "full",
    "ewc",
    "online_ewc",
    "osf",
    "joint",
]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_after_a_rollback_ends_as_one_that_was_never_undone(tiny_run, recipe):
    method = method_of(recipe)
    whole = tiny_run(method)
    workspace = workspace_of(tiny_run, recipe)
    before = files(workspace)
    (undone,) = rollback(tiny_run.folder / "out", FIRST)
    again = recipe in {"full", "ewc", "online_ewc", "osf", "joint"}
    assert undone.removed == (tuple(DOMAINS) if again else (MIDDLE, LAST))
    assert undone.again == ((FIRST,) if again else ())
    assert undone.num_bytes > 0
    assert finished_domains(workspace) == (() if again else (FIRST,))
    assert workspace.rows() == ([] if again else [0, 1])
    left = {path.name for path in (workspace.root / "adapters").iterdir()}
    assert left == (set() if again else {FIRST})
    assert not (tiny_run.folder / "out" / "results.json").exists()
    if not again:
        assert rollback(tiny_run.folder / "out", FIRST) == []  # the second time changes nothing
    result = tiny_run(method)
    assert figures(result) == figures(whole)
    assert files(workspace) == before
    events = [entry.get("domain") or entry["event"] for entry in result.ledger]
    assert events == [*DOMAINS, "rollback", *(DOMAINS if again else DOMAINS[1:])]
    assert list(workspace.ledger.standing()) == DOMAINS


def test_left_out_the_last_domain_goes(tiny_run):
    tiny_run("lora")
    (undone,) = rollback(tiny_run.folder / "out")
    assert undone.removed == (LAST,)
    assert list(acting_adapters(workspace_of(tiny_run, "lora"))) == [FIRST, MIDDLE]


def test_other_domains_may_follow_and_under_an_old_name_other_data(tiny_run):
    tiny_run("lora + replay")
    rollback(tiny_run.folder / "out", FIRST)
    source = tiny_run.folder / f"{MIDDLE}.jsonl"
    rows = [{"prompt": f"new {i}?", "answer": "dcba"[i % 4]} for i in range(24)]
    source.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    names = [FIRST, MIDDLE]
    fresh = tiny_run("lora + replay", names=names, output="fresh")
    after = tiny_run("lora + replay", names=names)
    assert figures(after) == figures(fresh)
    assert files(workspace_of(tiny_run, "lora + replay")) == files(
        workspace_of(tiny_run, "lora + replay", "fresh")
    )


def test_what_is_half_learnt_goes_too(tiny_run):
    whole = tiny_run("crma", output="whole")
    with pytest.raises(StopError):
        tiny_run("crma", observer=StopAt(step=(LAST, 3)))
    workspace = workspace_of(tiny_run, "crma")
    assert workspace.checkpoints(LAST).is_dir()
    rollback(tiny_run.folder / "out", MIDDLE)
    assert not workspace.checkpoints(LAST).exists()
    assert [each["name"] for each in workspace.read_settings()["domains"]] == [FIRST, MIDDLE]
    assert figures(tiny_run("crma")) == figures(whole)


class PowerCutError(Exception):
    """The process ends."""


class Power:
    """Goes off at the given one of the steps that change a folder; 0: it stays on."""

    def __init__(self, monkeypatch) -> None:
        self.left = 0
        for name in ("_delete", "_forget_row", "_forget_settings", "sync", "atomic_write_json"):
            monkeypatch.setattr(undoing, name, self._metered(getattr(undoing, name)))

    def _metered(self, step):
        def metered(*args):
            self.left -= 1
            if self.left == 0:
                raise PowerCutError
            return step(*args)

        return metered


@pytest.mark.parametrize("recipe", ["ewc", "lora + replay"])
def test_interrupted_anywhere_it_is_completed_by_the_next_call(tiny_run, monkeypatch, recipe):
    whole = tiny_run(method_of(recipe))
    run, store = tiny_run.folder / "out", tiny_run.folder / "store"
    workspace = workspace_of(tiny_run, recipe)
    before, power = files(workspace), Power(monkeypatch)
    shutil.copytree(run, store)
    for step in itertools.count(1):
        shutil.rmtree(run)
        shutil.copytree(store, run)
        power.left = step
        try:
            rollback(run, FIRST)
            break
        except PowerCutError:
            power.left = 0
            begun = (workspace.root / undoing.UNDO_FILE).is_file()
            if workspace.settings_file.is_file():  # once begun, no name is needed, and it is not one more
                rollback(run, None if begun else FIRST)
                assert not (workspace.root / undoing.UNDO_FILE).exists()
        assert finished_domains(workspace) == (() if recipe == "ewc" else (FIRST,))
        assert [entry["event"] for entry in workspace.ledger.entries() if "event" in entry] == ["rollback"]
        if step in {2, 7}:  # the same is left at each step: two of the runs after it will do
            assert figures(tiny_run(method_of(recipe))) == figures(whole)
            assert files(workspace) == before
    assert step > 8


def test_a_run_completes_what_was_interrupted(tiny_run, monkeypatch):
    whole = tiny_run("crma")
    before = files(workspace_of(tiny_run, "crma"))
    with monkeypatch.context() as patch:
        patch.setattr(undoing, "_delete", lambda path: (_ for _ in ()).throw(PowerCutError))
        with pytest.raises(PowerCutError):
            rollback(tiny_run.folder / "out", FIRST)
    assert finished_domains(workspace_of(tiny_run, "crma")) == (FIRST,)  # nobody asks what is half gone
    assert figures(tiny_run("crma")) == figures(whole)
    assert files(workspace_of(tiny_run, "crma")) == before


def test_all_methods_of_a_run_go_back_or_the_one_that_is_named(tiny_run):
    whole = tiny_run("lora", "full")
    run = tiny_run.folder / "out"
    assert [undo.method for undo in rollback(run, method="lora")] == ["lora"]
    assert finished_domains(workspace_of(tiny_run, "full")) == tuple(DOMAINS)
    assert [undo.removed for undo in rollback(run, MIDDLE)] == [tuple(DOMAINS)]  # lora is there already
    again = tiny_run("lora", "full")
    assert [numbers(each.model_dump()) for each in again.methods] == [
        numbers(each.model_dump()) for each in whole.methods
    ]


def test_a_rollback_is_refused_with_the_reason(tiny_run):
    tiny_run("lora", names=[FIRST])
    run = tiny_run.folder / "out"
    with pytest.raises(AdapterStateError, match="no earlier domain") as error:
        rollback(run)
    assert "--fresh" in str(error.value)
    with pytest.raises(UnknownNameError) as error:
        rollback(run, "lwa")
    assert error.value.hint == FIRST
    with pytest.raises(UnknownNameError, match="no method named"):
        rollback(run, FIRST, method="crma")
    with pytest.raises(WorkspaceError, match="there is no run here"):
        rollback(tiny_run.folder / "nowhere")
    with workspace_of(tiny_run, "lora").lock(), pytest.raises(WorkspaceError, match="another process"):
        rollback(run, FIRST)
    with pytest.raises(StopError):
        tiny_run("lora", observer=StopAt(step=(MIDDLE, 1)))
    with pytest.raises(AdapterStateError, match="is not learnt"):
        rollback(run, MIDDLE)


def test_what_is_not_agreed_to_is_not_done(tiny_run):
    tiny_run("lora")
    shown = []
    run, before = tiny_run.folder / "out", files(workspace_of(tiny_run, "lora"))
    assert rollback(run, agree=lambda undos: bool(shown.extend(undos))) == []
    assert [undo.removed for undo in shown] == [(LAST,)]
    assert remove(FIRST, run, agree=lambda undos: False) == []
    assert files(workspace_of(tiny_run, "lora")) == before
    assert (run / "results.json").is_file()


# -- remove -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "recipe", ["crma", "lora + replay", "olora + ewc_lora", "separate", "separate + houlsby", "base"]
)
def test_a_removed_domain_is_gone_and_the_others_are_measured_without_training(tiny_run, monkeypatch, recipe):
    method = method_of(recipe)
    tiny_run(method)
    run, workspace = tiny_run.folder / "out", workspace_of(tiny_run, recipe)
    kept = {name: content for name, content in files(workspace).items() if f"adapters/{MIDDLE}/" not in name}
    kept = {name: content for name, content in kept.items() if name.startswith("adapters")}
    (undone,) = remove(MIDDLE, run)
    assert undone.removed == (MIDDLE,)
    assert finished_domains(workspace) == (FIRST, LAST)
    assert [domain.name for domain in read_config(run / "crma.yaml").domains] == [FIRST, LAST]
    assert workspace.rows() == [0, 1]
    for path in run.rglob("*"):  # the ledger says that it was there, and its texts and files are gone
        if path.is_file() and path.name not in {"ledger.jsonl", "training.json"}:
            assert MIDDLE.encode() not in path.read_bytes(), path
            assert json.dumps(MIDDLE).strip('"').encode() not in path.read_bytes(), path
        assert MIDDLE not in path.name
    with pytest.raises(UnknownNameError):
        remove(MIDDLE, run)
    monkeypatch.setattr("constrained_adapters.training.sequence.train_domain", None)
    result = tiny_run(method, names=[FIRST, LAST])
    assert result.methods[0].domains == [FIRST, LAST]
    assert {n: c for n, c in files(workspace).items() if n.startswith("adapters")} == kept
    assert list(workspace.ledger.standing()) == [FIRST, LAST]
    assert next(entry for entry in result.ledger if "event" in entry)["removed"] == [MIDDLE]


def test_the_model_that_is_measured_is_that_of_the_adapters_that_are_left(tiny_run):
    tiny_run("crma")
    run = tiny_run.folder / "out"
    remove(MIDDLE, run)
    result = tiny_run("crma", names=[FIRST, LAST])
    opened = open_workspace(workspace_of(tiny_run, "crma"))
    opened.model.set_active_adapters([FIRST, LAST])
    config = read_config(run / "crma.yaml")
    for column, named in enumerate(config.domains):
        items = score_set(
            opened.model,
            opened.tokenizer,
            load_domain(named, config.seed).test[:3],
            metrics=None,
            batch_size=16,
            max_length=48,
            max_new_tokens=2,
        )
        assert result.methods[0].matrices["loss"][2][column] == mean_scores(items)["loss"]


def test_an_interrupted_removal_is_completed_when_it_is_asked_for_again(tiny_run, monkeypatch):
    tiny_run("lora")
    run, workspace = tiny_run.folder / "out", workspace_of(tiny_run, "lora")
    with monkeypatch.context() as patch:
        patch.setattr(undoing, "_delete", lambda path: (_ for _ in ()).throw(PowerCutError))
        with pytest.raises(PowerCutError):
            remove(MIDDLE, run)
    assert finished_domains(workspace) == (FIRST, LAST)
    assert workspace.adapter(MIDDLE).is_dir()
    (undone,) = remove(MIDDLE, run)
    assert (undone.event, undone.removed) == ("remove", (MIDDLE,))
    assert not workspace.adapter(MIDDLE).exists()
    assert tiny_run("lora", names=[FIRST, LAST]).methods[0].domains == [FIRST, LAST]


def test_kept_examples_of_a_removed_domain_are_gone_and_the_others_are_kept_again(tiny_run):
    method = method_of("lora + replay")
    tiny_run(method)
    remove(MIDDLE, tiny_run.folder / "out")
    memory = workspace_of(tiny_run, "lora + replay").memory
    assert list(memory.iterdir()) == []
    tiny_run(method, names=[FIRST, LAST])
    assert list(KeptFile(memory / "replay_buffer.safetensors", private=False).read().rows) == [FIRST, LAST]


@pytest.mark.parametrize(
    ("recipe", "reason"),
    [
        ("full", "later domains trained on the same weights"),
        ("ewc", "later domains trained on the same weights"),
        ("osf", "later domains trained on the same weights"),
        ("houlsby", "later domains trained on the same weights"),
        ("progressive", "the columns of later domains read its own"),
        ("isolation", "the shared adapter was learnt with it"),
        ("joint", "all domains were learnt together"),
    ],
)
def test_what_cannot_be_taken_out_is_refused_with_a_way_out(tiny_run, recipe, reason):
    tiny_run(recipe, names=DOMAINS[:2], training={"steps": 1})
    run = tiny_run.folder / "out"
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    domain = FIRST if recipe == "isolation" else MIDDLE
    with pytest.raises(AdapterStateError, match=reason) as error:
        remove(domain, run)
    assert len(str(error.value).splitlines()) == 4
    assert ("--fresh" if domain == FIRST else f"--to {FIRST}") in error.value.hint
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_the_only_domain_and_an_unknown_one_are_refused(tiny_run):
    tiny_run("lora", names=[FIRST])
    with pytest.raises(AdapterStateError, match="the only domain"):
        remove(FIRST, tiny_run.folder / "out")
    with pytest.raises(UnknownNameError) as error:
        remove("lwa", tiny_run.folder / "out")
    assert error.value.hint == FIRST


def test_of_several_methods_one_may_forget_and_the_runs_settings_keep_what_the_other_has(tiny_run):
    tiny_run("lora", "separate")
    run = tiny_run.folder / "out"
    remove(MIDDLE, run, method="lora")
    assert [domain.name for domain in read_config(run / "crma.yaml").domains] == DOMAINS
    assert finished_domains(workspace_of(tiny_run, "separate")) == tuple(DOMAINS)
    assert [undo.method for undo in remove(MIDDLE, run)] == ["separate"]
    assert [domain.name for domain in read_config(run / "crma.yaml").domains] == [FIRST, LAST]


def test_a_domain_that_is_learnt_again_gets_a_new_entry(tiny_run):
    tiny_run("crma")
    remove(LAST, tiny_run.folder / "out")
    result = tiny_run("crma")
    assert [e.get("domain") or e["event"] for e in result.ledger] == [*DOMAINS, "remove", LAST]
