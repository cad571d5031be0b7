"""A plan is run: what is done stays, what fails is written down, what changed is refused."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
import torch

from constrained_adapters.benchmark import run as run_module
from constrained_adapters.benchmark.cells import Restriction
from constrained_adapters.benchmark.plan import read_plan
from constrained_adapters.benchmark.run import Options, list_cells, run_benchmark
from constrained_adapters.errors import DataError, TrainingError, WorkspaceError
from constrained_adapters.training.observer import SilentObserver
from constrained_adapters.training.run import peak_memory_bytes
from constrained_adapters.workspace import Workspace

from .conftest import DOMAINS


class Listener(SilentObserver):
    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


def go(plan, **options):
    return run_benchmark(plan, Options(**options), SilentObserver())


def asked(training) -> list[tuple[str, str, int]]:
    return [(c.methods[0].name, c.evaluation.split, c.seed) for c in training.configs]


def test_sweep_then_test_then_tables(plan, training, tmp_path):
    outcome = go(plan)
    assert (outcome.num_done, outcome.num_cells, outcome.failed) == (10, 10, {})
    assert outcome.table == tmp_path / "tables" / "table.md"
    assert asked(training)[:4] == [
        ("lora", "validation", 0),
        ("lora", "validation", 0),
        ("lora", "test", 0),
        ("crma", "test", 0),
    ]
    assert {c.methods[0].learning_rate for c in training.configs if c.evaluation.split == "test"} == {0.01}
    files = sorted(str(p.relative_to(tmp_path / "cells")) for p in (tmp_path / "cells").rglob("*.json"))
    tested = [f"test/{m}/order-{o}-seed-{s}.json" for m in ("crma", "lora") for o in (1, 2) for s in (0, 1)]
    assert files == [*(f"sweep/lora/learning_rate={rate}.json" for rate in (0.001, 0.01)), *tested]
    assert [path.name for path in (tmp_path / "work").iterdir() if path.is_dir()] == []
    assert (tmp_path / "work" / ".gitignore").read_text() == "*\n"


def test_a_run_gets_absolute_paths_and_its_cell_keeps_those_of_the_plan(plan, training, tmp_path):
    (tmp_path / "base").mkdir()
    go(plan)
    assert training.configs[0].base.model == str(tmp_path / "base")
    assert training.configs[0].domains[0].data == str(tmp_path / "law.jsonl")
    text = (tmp_path / "cells/test/crma/order-1-seed-0.json").read_text(encoding="utf-8")
    assert str(tmp_path) not in text
    cell = json.loads(text)
    assert cell["config"]["domains"][0]["data"] == "law.jsonl"
    assert cell["base"]["model"] == "base"
    assert cell["environment"] == {"device": "cpu", "num_threads": 1}
    assert cell["result"]["matrices"]["loss"][3][0] == pytest.approx(1.2)
    assert cell["result"]["records"][0]["curves"] == {} and cell["result"]["samples"] == []


def test_done_cells_are_not_done_again(plan, training, tmp_path):
    go(plan, time_limit_minutes=0)
    assert training.configs == []
    go(plan, restriction=Restriction(seeds=(0,)))
    assert len(training.configs) == 2 + 4
    (tmp_path / "cells/test/crma/order-2-seed-0.json").unlink()
    go(plan)
    assert asked(training)[6:] == [("crma", "test", 0), *(2 * [("lora", "test", 1), ("crma", "test", 1)])]
    shutil.rmtree(tmp_path / "work")  # a fresh checkout has the JSON only
    before = (tmp_path / "tables" / "table.md").read_bytes()
    assert go(plan, phase="tables").num_done == 8
    assert len(training.configs) == 11
    assert (tmp_path / "tables" / "table.md").read_bytes() == before


def test_after_the_time_limit_no_cell_is_begun(plan, training, monkeypatch):
    now = iter(range(0, 10_000, 40))  # seconds
    monkeypatch.setattr(run_module.time, "monotonic", lambda: float(next(now)))
    outcome = go(plan, time_limit_minutes=4)
    assert outcome.out_of_time
    assert 0 < len(training.configs) < 10


def test_a_cell_that_fails_is_written_down_and_the_rest_goes_on(plan, training, tmp_path):
    training.breaks["crma"] = TrainingError("the loss is not finite", got="step 3", hint="lower the rate")
    listener = Listener()
    outcome = run_benchmark(plan, Options(), listener)
    assert (outcome.num_done, outcome.num_cells) == (6, 10)
    assert set(outcome.failed) == {f"test/crma/order-{o}-seed-{s}" for o in (1, 2) for s in (0, 1)}
    assert "test/crma/order-1-seed-0 failed: the loss is not finite (step 3)" in listener.messages
    failures = json.loads((tmp_path / "failures.json").read_text())
    assert failures["test/crma/order-1-seed-0"]["error"] == "TrainingError"
    tried = len(training.configs)
    training.breaks.clear()
    assert len(go(plan).failed) == 4  # not tried again unasked
    assert len(training.configs) == tried
    assert go(plan, retry=True).failed == {}
    assert not (tmp_path / "failures.json").exists()


def test_an_unforeseen_error_is_one_line_too(plan, training):
    training.breaks["crma"] = RuntimeError("mat1 and mat2\nshapes")
    failed = go(plan).failed
    assert set(failed.values()) == {"RuntimeError: mat1 and mat2 shapes"}


def test_what_no_other_cell_would_survive_stops_all(plan, training, tmp_path):
    training.breaks["lora"] = DataError("no such data file", got="law.jsonl")
    with pytest.raises(DataError):
        go(plan)
    assert len(training.configs) == 1
    assert not (tmp_path / "failures.json").exists()


def test_a_setting_that_fails_is_not_chosen(plan, training, tmp_path):
    training.breaks["lora:0.01"] = TrainingError("the loss is not finite")
    go(plan)
    chosen = json.loads((tmp_path / "chosen.json").read_text())["methods"]["lora"]
    assert chosen["setting"] == {"learning_rate": 0.001}
    assert chosen["candidates"][1]["failed"] is True
    rates = [c.methods[0].learning_rate for c in training.configs if c.evaluation.split == "test"]
    assert set(rates[::2]) == {0.001}


def test_a_method_of_which_every_setting_fails_is_left_out(plan, training):
    training.breaks["lora"] = TrainingError("the loss is not finite")
    outcome = go(plan)
    assert (outcome.num_done, outcome.not_chosen) == (4, ["lora"])
    assert len(outcome.failed) == 2


def test_a_plan_that_changed_under_finished_cells_is_refused(plan, training, write_plan):
    go(plan)
    done = len(training.configs)
    training_now = {"steps": 3, "batch_size": 4, "max_length_tokens": 48}
    with pytest.raises(WorkspaceError) as caught:
        go(read_plan(write_plan(training=training_now)))
    assert caught.value.what == "the plan changed since these cells were finished"
    assert caught.value.got == "training.steps: 2 → 3 (sweep/lora/learning_rate=0.001.json and 9 more)"
    assert len(training.configs) == done
    go(read_plan(write_plan(seeds=[0, 1, 2], title="More seeds")))  # growing is no change
    assert len(training.configs) == done + 4


def test_a_sweep_that_got_longer_is_finished_before_it_chooses(plan, training, write_plan):
    go(plan, phase="sweep")
    methods = [{"recipe": "lora", "learning_rates": [0.001, 0.01, 0.1]}, "crma"]
    longer = read_plan(write_plan(methods=methods))
    with pytest.raises(WorkspaceError, match="no method has its setting yet"):
        go(longer, phase="test", restriction=Restriction(methods=("lora",)))
    go(longer, phase="sweep")
    assert len(training.configs) == 3
    assert go(longer, phase="test").not_chosen == []


def test_the_test_phase_waits_for_the_sweep(plan, training):
    outcome = go(plan, phase="test")
    assert outcome.not_chosen == ["lora"]
    assert {method for method, _, _ in asked(training)} == {"crma"}


def test_two_processes_do_not_run_one_benchmark(plan, training, tmp_path):
    with Workspace(tmp_path / "work").lock(), pytest.raises(WorkspaceError, match="another process"):
        go(plan)
    assert training.configs == []


def test_a_damaged_cell_is_told(plan, training, tmp_path):
    go(plan)
    (tmp_path / "cells/test/crma/order-1-seed-0.json").write_text("{", encoding="utf-8")
    with pytest.raises(WorkspaceError, match="damaged or of another version") as caught:
        go(plan, phase="tables")
    assert "order-1-seed-0.json" in caught.value.got


def test_a_dry_run_lists_cells_and_writes_nothing(plan, training, tmp_path):
    lines = list_cells(plan, Options())
    assert lines[0] == "to do  sweep: lora, law → 数学, seed 0, learning_rate=0.001"
    assert lines[2] == "to do  test: lora, law → 数学 → Право, seed 0, as the sweep chooses"
    assert lines[-1] == "10 cells: 10 to do"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.yaml"]
    training.breaks["crma"] = TrainingError("no")
    go(plan, restriction=Restriction(seeds=(0,)))
    lines = list_cells(plan, Options())
    assert lines[2] == "done   test: lora, law → 数学 → Право, seed 0, learning_rate=0.01"
    assert lines[-1] == "10 cells: 4 done, 2 failed, 4 to do"


def test_workspaces_of_finished_cells_are_kept_on_request(plan, training, tmp_path):
    go(plan, keep_work=True, restriction=Restriction(seeds=(0,), orders=(1,)))
    kept = [path.name.rpartition("--")[0] for path in (tmp_path / "work").iterdir() if path.is_dir()]
    assert "test--crma--order-1-seed-0" in kept


def test_what_a_cell_left_with_other_settings_goes(plan, training, tmp_path, write_plan):
    old = tmp_path / "work" / "test--crma--order-1-seed-0--01234567"
    old.mkdir(parents=True)
    go(plan)
    assert not old.exists()


def test_what_every_cell_says_is_said_once(plan, training):
    def noisy(config, *, observer):
        observer.message("law: 3 duplicates dropped.")
        return training(config, observer=observer)

    listener = Listener()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("constrained_adapters.training.run.run_config", noisy)
        run_benchmark(plan, Options(phase="sweep"), listener)
    assert listener.messages[0] == "sweep 1 of 2: lora/learning_rate=0.001"
    assert listener.messages.count("law: 3 duplicates dropped.") == 1
    assert listener.messages[2].startswith("sweep 2 of 2: lora/learning_rate=0.01, about ")


def test_the_peak_of_a_cell_is_its_own():
    if sys.platform != "linux" or torch.cuda.is_available():
        pytest.skip("the peak of this process cannot be read")
    run_module.forget_peak_memory()
    before = peak_memory_bytes()
    heavy = b"x" * 200_000_000
    assert peak_memory_bytes() > before + 150_000_000
    del heavy
    assert peak_memory_bytes() > before + 150_000_000
    run_module.forget_peak_memory()
    assert peak_memory_bytes() < before + 50_000_000


class Watch(SilentObserver):
    """Keeps the stages, and stops a run at one of them as Ctrl-C does."""

    def __init__(self, stop_at: tuple[str, str] | None = None) -> None:
        self.stages: list[tuple[str, str]] = []
        self._stop_at = stop_at

    def stage(self, method: str, domain: str | None, text: str) -> None:
        self.stages.append((method, text))
        if (method, text) == self._stop_at:
            raise KeyboardInterrupt

    def count(self, text: str) -> int:
        return [found for _, found in self.stages].count(text)


def test_real_runs_share_the_base_and_go_on_inside_a_cell(tiny_files, write_plan):
    methods = ["lora", {"recipe": "crma", "learning_rates": [0.001, 0.01]}]
    few = {"orders": [DOMAINS], "seeds": [0]}
    plan = read_plan(write_plan(methods=methods, **few))
    first, second = Watch(stop_at=("crma", "scoring after domain 2")), Watch()
    with pytest.raises(KeyboardInterrupt):
        run_benchmark(plan, Options(), first)
    assert first.count("scoring after domain 1") == 1
    assert run_benchmark(plan, Options(), second).num_done == 4
    # The first sweep cell goes on where it was; the other one and the two of the test begin.
    assert second.count("scoring after domain 1") == 3
    assert second.count("scoring after domain 2") == 4
    # The base is scored once on validation and once on test, and writes its memory once.
    assert first.count("scoring the base") + second.count("scoring the base") == 2
    writes = "making the memory of what the base knows, from text that it writes"
    assert first.count(writes) + second.count(writes) == 1

    alone = read_plan(write_plan(methods=["lora"], output="alone", **few))
    run_benchmark(alone, Options(), SilentObserver())
    path = "cells/test/lora/order-1-seed-0.json"
    results = [json.loads((home / path).read_text("utf-8"))["result"] for home in (plan.home, alone.home)]
    assert results[0]["matrices"] == results[1]["matrices"]
    assert results[0]["general_nats"] == results[1]["general_nats"]
