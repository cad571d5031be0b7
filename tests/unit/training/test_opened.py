"""A finished run opened again answers as it was measured."""

from __future__ import annotations

import pytest
import torch

from constrained_adapters.config.run import DomainConfig
from constrained_adapters.data.load import load_domain
from constrained_adapters.errors import ConfigError, ModelError, UnknownNameError, WorkspaceError
from constrained_adapters.evaluation.items import mean_scores
from constrained_adapters.evaluation.scores import score_items
from constrained_adapters.model.opened import open_workspace
from constrained_adapters.workspace import Workspace, find_workspace

from .conftest import DOMAINS, StopAt, StopError

NAMES = DOMAINS[:2]


def loss_of(opened, folder, domain: str) -> float:
    data = load_domain(DomainConfig(name=domain, data=str(folder / f"{domain}.jsonl")), 0)
    scores = score_items(opened.model, opened.tokenizer, data.test[:3], batch_size=16, max_length=48)
    return mean_scores(scores)["loss"]


@pytest.mark.parametrize(
    "recipe, second",
    [
        ("crma", {"law": 1.0, "数学": 1.0}),
        ("separate", {"数学": 1.0}),
        ("isolation", {"shared": 1.0, "数学": 1.0}),
        ("joint", {"law": 1.0}),
    ],
)
def test_each_domain_is_answered_as_it_was_right_after_it_was_learnt(tiny_run, recipe, second):
    tiny_run(recipe, names=NAMES)
    workspace = find_workspace(tiny_run.folder / "out")
    opened = open_workspace(workspace)
    assert opened.domains == tuple(NAMES) and not opened.model.training and not opened.model.active_names
    assert opened.adapters_for("数学") == second
    for row, domain in enumerate(NAMES, start=1):
        opened.activate(domain)
        measured = workspace.read_evaluation(row)["scores"][domain]["loss"]
        assert loss_of(opened, tiny_run.folder, domain) == pytest.approx(measured, rel=1e-5)
    opened.activate(None)
    assert loss_of(opened, tiny_run.folder, "数学") == pytest.approx(
        workspace.read_evaluation(0)["scores"]["数学"]["loss"], rel=1e-5
    )


def test_a_mix_adds_up_the_updates_of_its_domains(tiny_run):
    tiny_run("crma", names=NAMES)
    opened = open_workspace(find_workspace(tiny_run.folder / "out"))
    assert opened.adapters_for({"law": 0.25, "数学": 0.5}) == {"law": 0.75, "数学": 0.5}
    ids = torch.tensor([[5, 6, 7, 8]])
    updates = []
    layer = "model.layers.1.self_attn.q_proj"
    for asked in ("law", "数学", {"law": 0.25, "数学": 0.5}):
        opened.activate(asked)
        with torch.no_grad():
            opened.model(ids)  # folds the active set
        found = opened.model.get_base_model().get_submodule(layer)
        x = torch.eye(found.in_features)
        with torch.no_grad():
            updates.append(found(x) - found.base_layer(x))
    law, maths, mixed = updates
    assert law.abs().max() > 1e-4
    torch.testing.assert_close(mixed, 0.25 * law + 0.5 * maths, rtol=1e-4, atol=1e-7)


def test_what_cannot_be_asked_for_is_refused(tiny_run):
    tiny_run("lora", names=["law"])
    opened = open_workspace(Workspace(tiny_run.folder / "out" / "lora"))
    with pytest.raises(UnknownNameError, match="no domain named 'laws'") as caught:
        opened.adapters_for("laws")
    assert caught.value.hint == "law"
    for weight in ("1", float("nan"), True, None):
        with pytest.raises(ConfigError, match="not a finite number"):
            opened.adapters_for({"law": weight})


def test_a_method_without_lora_adapters_is_refused(tiny_run):
    tiny_run("full", names=["law"])
    with pytest.raises(ModelError, match="no LoRA adapters") as caught:
        open_workspace(Workspace(tiny_run.folder / "out" / "full"))
    assert "'full'" in caught.value.got


def test_a_run_without_a_finished_domain_is_refused_and_one_with_some_is_opened(tiny_run):
    workspace = Workspace(tiny_run.folder / "out" / "crma")
    with pytest.raises(StopError):
        tiny_run("crma", names=NAMES, observer=StopAt(row=1))
    with pytest.raises(WorkspaceError, match="no domain of this run is finished"):
        open_workspace(workspace)
    with pytest.raises(StopError):
        tiny_run("crma", names=NAMES, observer=StopAt(row=2))
    assert open_workspace(workspace).domains == ("law",)


def test_another_base_is_refused_and_another_type_is_put_right(tiny_run, tiny_llama):
    tiny_run("crma", names=["law"])
    workspace = Workspace(tiny_run.folder / "out" / "crma")
    assert open_workspace(workspace, dtype="auto").base.description["dtype"] == "float32"
    with pytest.raises(ModelError):  # rounded weights are others than those that were trained on
        open_workspace(workspace, dtype="bfloat16")
    with torch.no_grad():
        tiny_llama.model.norm.weight.add_(1.0)
    tiny_llama.save_pretrained(tiny_run.folder / "base")
    with pytest.raises(ModelError):
        open_workspace(workspace)
