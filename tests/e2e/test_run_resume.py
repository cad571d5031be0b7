"""A whole run, killed with SIGKILL at every kind of moment, ends with the numbers of one that was not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from constrained_adapters.workspace import Workspace

DOMAINS = ["law", "数学", "Право"]
SEQUENCE = "constrained_adapters.training.sequence"
GATHER = "constrained_adapters.memory.measure:gather_statistics"

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


@pytest.fixture
def here(tmp_path, tiny_llama, tiny_tokenizer) -> Path:
    """A folder with a tiny base, three domains and a crma.yaml."""
    tiny_llama.save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    for number, name in enumerate([*DOMAINS, "general"]):
        rows = [{"prompt": f"{name} {i}?", "answer": "abcd"[(i + number) % 4] * 2} for i in range(24)]
        text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    write_settings(tmp_path)
    return tmp_path


def write_settings(folder: Path, domains: list[str] = DOMAINS, more: str = "", **training: Any) -> None:
    """The crma.yaml of a run of a few seconds: 5 steps a domain, a checkpoint every second one."""
    lines = {"steps": 5, "batch_size": 4, "max_length_tokens": 48, "checkpoint_every_steps": 2, **training}
    (folder / "crma.yaml").write_text(
        "title: Tiny\noutput: out\nbase: {model: base}\nadapter: {rank: 4}\n"
        f"training: {json.dumps(lines)}\nmethods: [crma, lora]\n"
        "evaluation: {max_items: 4, general: general.jsonl, num_samples: 1, max_new_tokens: 3}\n"
        f"domains: {json.dumps([{'name': n, 'data': f'{n}.jsonl'} for n in domains], ensure_ascii=False)}\n"
        + more,
        encoding="utf-8",
    )


def numbers(folder: Path) -> Any:
    """All of results.json that is no time, no place and no size of the process."""

    def kept(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                key: kept(inner)
                for key, inner in value.items()
                if not key.endswith("seconds")
                and key not in {"created", "date", "data", "peak_memory_bytes", "output"}
            }
        return [kept(inner) for inner in value] if isinstance(value, list) else value

    text = (folder / "out" / "results.json").read_text(encoding="utf-8")
    begun_in = Path(json.loads(text)["settings"]["output"]).parent  # before it was copied
    return kept(json.loads(text.replace(str(begun_in), "")))


def weights(folder: Path) -> dict[str, bytes]:
    """Every adapter and every memory."""
    files = sorted((folder / "out").glob("*/adapters/*/*")) + sorted((folder / "out").glob("*/memory/*"))
    files = [path for path in files if path.suffix != ".json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("store") / "finished"


@pytest.fixture
def finished(here, crma, store) -> Path:
    """A folder with a run that nothing stopped; it is done once and copied."""
    if not store.exists():
        assert crma(here, "run", "crma.yaml", "-q") == 0, crma.text
        shutil.copytree(here, store)
    shutil.copytree(store, here, dirs_exist_ok=True)
    return here


STEP = "transformers:Trainer.training_step"
# In the order in which a run meets them; each is met in what the stop before it has left.
MOMENTS = [
    ("while the base is scored", f"{SEQUENCE}:score_set", 2, "kill"),
    ("while the base's memory is made", GATHER, 1, "kill"),
    ("in a step before the first checkpoint", STEP, 2, "kill"),
    ("in a step after a checkpoint", STEP, 4, "kill"),
    ("while a checkpoint is written", "torch:save", 2, "kill"),
    ("between a checkpoint and its seal", "pathlib:Path.touch", 1, "kill"),
    ("in a step, by Ctrl-C", STEP, 2, "interrupt"),
    ("while an adapter is written", f"{SEQUENCE}:atomic_write_json", 1, "kill"),
    ("while a memory is made", GATHER, 1, "kill"),
    ("between a memory and its time", f"{SEQUENCE}:atomic_write_json", 1, "kill"),
    ("while a row is scored", f"{SEQUENCE}:score_set", 2, "kill"),
    ("while a row is scored, by Ctrl-C", f"{SEQUENCE}:score_set", 2, "interrupt"),
    ("while samples are written", f"{SEQUENCE}:generate_answers", 1, "kill"),
    ("before a line of the ledger", "constrained_adapters.workspace:Ledger.append", 1, "kill"),
    ("in a step of the second domain", STEP, 4, "kill"),
    ("while a checkpoint is written to a full disk", "torch:save", 1, "full"),
    ("while a file is written to a full disk", "os:fsync", 20, "full"),
    ("in a step of the third domain", STEP, 8, "kill"),
    ("in a step of the second method", STEP, 9, "kill"),
    ("before the results are written", "constrained_adapters.training.run:method_result", 1, "kill"),
]
CODES = {"kill": -9, "interrupt": 1, "full": 1}


def test_a_run_stopped_at_every_kind_of_moment_ends_with_the_same_numbers(finished, store, crma):
    shutil.rmtree(finished / "out")
    for moment, place, number, action in MOMENTS:
        code = crma(finished, "run", "crma.yaml", place=place, number=number, action=action)
        assert code == CODES[action], (moment, crma.text)
        assert "Traceback" not in crma.text, moment
        if action == "interrupt":
            last = crma.text.splitlines()[-1]
            assert last == "stopped; nothing is lost: run the same command again to go on", moment
        if action == "full":
            assert "WorkspaceError: no space left on the disk\n  Got: " in crma.text, (moment, crma.text)
            assert "goes on where it stopped" in crma.text, moment
    assert crma(finished, "run", "crma.yaml") == 0, crma.text
    assert numbers(finished) == numbers(store)
    assert weights(finished) == weights(store)


def test_status_at_each_stage(here, crma):
    assert crma(here, "status") == 1
    assert "there is no run here" in crma.text
    for place, number, state in [
        (f"{SEQUENCE}:score_set", 1, "stopped at law"),
        (STEP, 4, "stopped at law, step 2 saved"),
        (GATHER, 1, "stopped at law"),
        (STEP, 4, "stopped at 数学, step 2 saved"),
    ]:
        assert crma(here, "run", "crma.yaml", place=place, number=number) == -9, crma.text
        assert crma(here, "status") == 0, crma.text
        shown = " ".join(crma.text.split())
        assert state in shown
        assert "lora 0 of 3 not begun" in shown
        assert f"to go on: crma run {here / 'out' / 'crma.yaml'}" in shown
    assert "crma 1 of 3" in shown


def test_two_runs_do_not_write_one_workspace(finished, crma):
    before = (finished / "out" / "results.json").read_bytes()
    with Workspace(finished / "out" / "crma").lock():
        assert crma(finished, "status") == 0
        assert f"running (process {os.getpid()})" in " ".join(crma.text.split()) or "done" in crma.text
        assert crma(finished, "run", "crma.yaml") == 1
    lines = crma.text.splitlines()
    start = lines.index("WorkspaceError: another process is writing this run")
    assert f"process {os.getpid()} holds" in lines[start + 1]
    assert len(lines[start:]) == 3
    assert (finished / "out" / "results.json").read_bytes() == before


def test_domains_that_are_added_at_the_end_are_learnt_as_if_they_had_always_been_there(finished, store, crma):
    shutil.rmtree(finished / "out")
    write_settings(finished, DOMAINS[:2])
    assert crma(finished, "run", "crma.yaml") == 0, crma.text
    assert len(numbers(finished)["methods"][0]["domains"]) == 2
    write_settings(finished)
    assert crma(finished, "run", "crma.yaml") == 0, crma.text
    found, wanted = numbers(finished), numbers(store)
    for entry in [*found["ledger"], *wanted["ledger"]]:
        del entry["scores"]  # of the domains that were known when the line was written
    assert found == wanted
    assert weights(finished) == weights(store)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda here: write_settings(here, steps=6), "training.steps: 5 → 6"),
        (lambda here: write_settings(here, DOMAINS[:2]), "domains"),
        (lambda here: write_settings(here, [DOMAINS[1], DOMAINS[0], DOMAINS[2]]), "domains"),
        (lambda here: write_settings(here, more="seed: 1\n"), "seed: 0 → 1"),
        (lambda here: append_line(here / "law.jsonl"), "fingerprint"),
    ],
    ids=["steps", "a domain less", "another order", "seed", "data"],
)
def test_changed_settings_are_refused_and_nothing_is_lost(finished, crma, change, message):
    before = {path: path.read_bytes() for path in (finished / "out").rglob("*.json")}
    change(finished)
    assert crma(finished, "run", "crma.yaml") == 1
    lines = crma.text.splitlines()
    start = lines.index("WorkspaceError: settings changed since this run began")
    assert message in lines[start + 1]
    assert len(lines[start:]) == 4
    assert {path: path.read_bytes() for path in (finished / "out").rglob("*.json")} == before


def append_line(file: Path) -> None:
    with file.open("a", encoding="utf-8") as lines:
        lines.write('\n{"prompt": "new", "answer": "aa"}')


def test_a_finished_run_is_not_done_again_and_fresh_does_it_anew(finished, store, crma):
    assert crma(finished, "run", "crma.yaml", place=STEP) == 0, crma.text
    assert numbers(finished) == numbers(store)
    assert crma(finished, "run", "crma.yaml", "--fresh", place=STEP) == -9


def test_a_disk_that_is_really_full(here, crma):
    """A small file system of its own, where one can be made."""
    disk = here / "out"
    disk.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("no file system can be mounted")
    try:
        assert crma(here, "run", "crma.yaml") == 1
        assert "WorkspaceError: no space left on the disk\n  Got:      0.0 MB free at " in crma.text
        assert "Traceback" not in crma.text
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        assert crma(here, "run", "crma.yaml", place=STEP, number=7) == -9, crma.text
    finally:
        subprocess.run(["umount", str(disk)], check=True)
