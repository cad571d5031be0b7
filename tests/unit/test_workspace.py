"""The workspace: writes that are whole or not there, the ledger, the lock, the two checks."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from constrained_adapters.errors import WorkspaceError
from constrained_adapters.workspace import (
    Ledger,
    Workspace,
    atomic_directory,
    atomic_write_json,
    atomic_write_text,
    recover,
)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def full_disk(*_args):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_files_are_replaced_and_nothing_is_left_beside_them(tmp_path):
    file = tmp_path / "数据" / "a.json"
    atomic_write_json(file, {"Право": 1})
    atomic_write_json(file, {"Право": 2})
    assert json.loads(file.read_text(encoding="utf-8")) == {"Право": 2}
    assert names(file.parent) == {"a.json"}


def test_json_has_no_word_for_nan(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        atomic_write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert names(tmp_path) == set()


def test_a_full_disk_leaves_the_old_file_and_says_what_to_do(tmp_path, monkeypatch):
    file = tmp_path / "a.txt"
    atomic_write_text(file, "old")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(WorkspaceError, match="no space left") as caught:
        atomic_write_text(file, "new")
    assert "MB free" in caught.value.got
    assert "run the same command again" in caught.value.hint
    assert file.read_text() == "old"
    assert names(tmp_path) == {"a.txt"}


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    target = tmp_path / "law"
    for content in ("old", "new"):
        with atomic_directory(target) as folder:
            (folder / "inner").mkdir()
            (folder / "inner" / content).write_text(content)
            assert content == "old" or names(target / "inner") == {"old"}
    assert names(target / "inner") == {"new"}
    assert names(tmp_path) == {"law"}


def test_a_folder_that_fails_leaves_the_old_one(tmp_path):
    target = tmp_path / "law"
    with atomic_directory(target) as folder:
        (folder / "old").touch()
    with pytest.raises(ZeroDivisionError), atomic_directory(target) as folder:
        (folder / "new").touch()
        raise ZeroDivisionError
    assert names(target) == {"old"}
    assert names(tmp_path) == {"law"}


def test_a_disk_that_fills_up_inside_a_library_is_reported_as_such(tmp_path):
    class SafetensorError(Exception):
        pass

    with pytest.raises(WorkspaceError, match="no space left"), atomic_directory(tmp_path / "law"):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert names(tmp_path) == set()


KILLED = """
import os, sys
from pathlib import Path
from constrained_adapters.workspace import Ledger, atomic_directory, atomic_write_text

folder, survives = Path(sys.argv[1]), 0

def dies_later(function):
    def call(*args, **kwargs):
        global survives
        survives -= 1
        if survives < 0:
            os.kill(os.getpid(), 9)
        return function(*args, **kwargs)
    return call

for name in ("fsync", "open", "unlink", "rename", "replace", "truncate"):
    setattr(os, name, dies_later(getattr(os, name)))
for name in ("replace", "mkdir", "open"):
    setattr(Path, name, dies_later(getattr(Path, name)))

deaths = 0
while True:
    child = os.fork()
    if child == 0:
        survives = deaths
        with atomic_directory(folder / "law") as new:
            (new / "weights").write_text("new")
            (new / "config").write_text("new")
        atomic_write_text(folder / "state.json", "new")
        Ledger(folder / "ledger.jsonl").append({"event": "new"})
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    print(deaths, status, flush=True)
    sys.stdin.readline()  # the test looks, and puts the old state back
    if status == 0:
        break
    deaths += 1
"""


@pytest.mark.skipif(os.name == "nt", reason="needs fork")
def test_killed_at_any_moment_the_state_is_old_or_new_and_never_mixed(tmp_path):
    """A writer is killed before its 1st, 2nd, 3rd ... system call that matters, until it gets through."""
    law, state, ledger = tmp_path / "law", tmp_path / "state.json", Ledger(tmp_path / "ledger.jsonl")

    def put_old_state():
        with atomic_directory(law) as folder:
            (folder / "weights").write_text("old")
            (folder / "config").write_text("old")
        atomic_write_text(state, "old")
        ledger.path.write_text('{"event": "old"}\n')

    put_old_state()
    seen = set()
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as writer:
        for line in writer.stdout:
            status = int(line.split()[1])
            recover(tmp_path)
            assert names(tmp_path) == {"law", "state.json", "ledger.jsonl"}
            assert names(law) == {"weights", "config"}
            weights = (law / "weights").read_text()
            assert (law / "config").read_text() == weights
            events = [entry["event"] for entry in ledger.entries()]
            seen.add((weights, state.read_text(), events[-1]))
            assert events in (["old"], ["old", "new"])
            put_old_state()
            writer.stdin.write("\n")
            writer.stdin.flush()
            if status == 0:
                break
            assert os.WTERMSIG(status) == signal.SIGKILL
    # Each step was met undone and done, in this order and no other.
    assert seen == {("old",) * 3, ("new", "old", "old"), ("new", "new", "old"), ("new",) * 3}


def test_the_ledger_grows_and_keeps_what_it_does_not_know(tmp_path):
    ledger = Ledger(tmp_path / "run" / "ledger.jsonl")
    assert ledger.entries() == []
    ledger.append({"domain": "数学", "date": "2026-03-01", "of a later version": [1]})
    ledger.append({"domain": "Право"})
    first, second = ledger.entries()
    assert first == {"domain": "数学", "date": "2026-03-01", "of a later version": [1]}
    assert second["date"].endswith("+00:00")
    assert "数学" in ledger.path.read_text(encoding="utf-8")


def test_an_undone_domain_stands_no_longer_and_learnt_again_it_has_a_new_entry(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for number, name in enumerate(["数学", "Право", "law"]):
        ledger.append({"domain": name, "number": number})
    ledger.append({"event": "rollback", "removed": ["Право", "law"]})
    ledger.append({"event": "of a later version"})
    assert list(ledger.standing()) == ["数学"]
    ledger.append({"domain": "law", "number": 7})
    ledger.append({"event": "remove", "removed": ["数学"]})
    ledger.append({"domain": "Право", "number": 8})
    assert {name: entry["number"] for name, entry in ledger.standing().items()} == {"law": 7, "Право": 8}
    assert list(ledger.standing()) == ["law", "Право"]
    assert len(ledger.entries()) == 8  # nothing is ever taken out of it


def test_every_torn_last_line_is_ignored_and_repaired(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append({"domain": "数学"})
    whole = ledger.path.read_bytes()
    ledger.append({"domain": "Право"})
    both = ledger.path.read_bytes()
    for length in range(len(whole), len(both) + 1):
        ledger.path.write_bytes(both[:length])
        complete = length >= len(both) - 1  # only the line's end may be missing
        expected = ["数学", "Право"] if complete else ["数学"]
        assert [entry["domain"] for entry in ledger.entries()] == expected
        ledger.append({"domain": "last"})
        assert [entry["domain"] for entry in ledger.entries()] == [*expected, "last"]
        assert ledger.path.read_bytes().count(b"\n") == len(expected) + 1


def test_a_line_damaged_in_the_middle_is_named(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.path.write_text('{"a": 1}\n{"b": \n{"c": 3}\n')
    with pytest.raises(WorkspaceError, match="damaged") as caught:
        ledger.append({"d": 4})
    assert "line 2" in caught.value.got
    assert ledger.path.read_text().count("\n") == 3


HOLDER = """
import sys, time
from constrained_adapters.workspace import Workspace
with Workspace(sys.argv[1]).lock():
    print("locked", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_and_told_who_holds_the_lock(tmp_path):
    workspace = Workspace(tmp_path / "crma")
    assert workspace.running_pid() is None
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(workspace.root)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "locked\n"
        assert workspace.running_pid() == holder.pid
        with pytest.raises(WorkspaceError, match="another process") as caught, workspace.lock():
            pass
        assert f"process {holder.pid} " in caught.value.got
        holder.kill()
        holder.wait()
        assert workspace.running_pid() is None
        with workspace.lock():
            assert workspace.running_pid() == os.getpid()
    assert workspace.running_pid() is None


def test_the_next_start_clears_up(tmp_path):
    workspace = Workspace(tmp_path)
    leftover = workspace.adapter("law").with_name(".law.0123abcd.new")
    leftover.mkdir(parents=True)
    kept = tmp_path / ".hidden"
    kept.touch()
    with workspace.lock():
        assert not leftover.exists()
        assert kept.exists()


def test_a_folder_that_cannot_be_written_is_our_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(WorkspaceError, match="cannot be written"), Workspace(tmp_path / "file").lock():
        pass


def test_paths_stay_inside_and_take_any_script(tmp_path):
    workspace = Workspace(tmp_path)
    assert workspace.adapter("数学") == tmp_path / "adapters" / "数学"
    assert workspace.checkpoints("Право") == tmp_path / "checkpoints" / "Право"
    with pytest.raises(ValueError, match="cannot be a domain's name"):
        workspace.adapter("../up")


def test_evaluations_are_found_in_order(tmp_path):
    workspace = Workspace(tmp_path)
    for row in (10, 2, 0):
        workspace.write_evaluation(row, {"law": {"exact_match": 0.5}}, general_nats=2.5)
    assert workspace.rows() == [0, 2, 10]
    assert workspace.read_evaluation(2) == {"scores": {"law": {"exact_match": 0.5}}, "general_nats": 2.5}
    with pytest.raises(WorkspaceError, match="row 1 is not measured yet"):
        workspace.read_evaluation(1)
    workspace.evaluation(1).write_text("{")
    with pytest.raises(WorkspaceError, match="damaged"):
        workspace.read_evaluation(1)


def test_another_base_is_refused_with_both_fingerprints(tmp_path):
    workspace = Workspace(tmp_path)
    workspace.remember_base("aaaa", {"model": "embedded"})
    workspace.remember_base("aaaa", {"model": "embedded"})
    with pytest.raises(WorkspaceError, match="base model is not the one") as caught:
        workspace.remember_base("bbbb", {"model": "/models/x"})
    assert caught.value.got == "fingerprint bbbb (/models/x)"
    assert caught.value.expected == "fingerprint aaaa (embedded)"


def test_changed_settings_are_refused_by_name(tmp_path):
    workspace = Workspace(tmp_path)
    settings = {"seed": 0, "training": {"steps": 30, "epochs": None}, "domains": [{"name": "law"}]}
    workspace.remember_settings(settings)
    workspace.remember_settings(settings)
    changed = {**settings, "training": {"steps": 40, "epochs": None}, "domains": [{"name": "право"}]}
    with pytest.raises(WorkspaceError, match="settings changed") as caught:
        workspace.remember_settings(changed)
    assert 'training.steps: 30 → 40; domains[0].name: "law" → "право"' in caught.value.got
    assert "--fresh" in caught.value.hint


def test_domains_may_be_added_at_the_end_only(tmp_path):
    workspace = Workspace(tmp_path)
    workspace.remember_settings({"domains": ["law"]}, growing=("domains",))
    workspace.remember_settings({"domains": ["law", "medicine"]}, growing=("domains",))
    with pytest.raises(WorkspaceError, match="settings changed"):
        workspace.remember_settings({"domains": ["law"]}, growing=("domains",))
    with pytest.raises(WorkspaceError, match="settings changed"):
        workspace.remember_settings({"domains": ["law", "medicine", "maths"]})


def test_a_workspace_of_a_newer_version_is_refused(tmp_path):
    workspace = Workspace(tmp_path)
    workspace.settings_file.write_text('{"schema_version": 99, "settings": {}}')
    with pytest.raises(WorkspaceError, match="newer version"):
        workspace.remember_settings({})


def test_fresh_removes_what_the_run_wrote_and_nothing_else(tmp_path):
    workspace = Workspace(tmp_path)
    with workspace.lock():
        workspace.remember_base("a", {})
        workspace.remember_settings({"seed": 0})
        workspace.write_evaluation(0, {})
        workspace.ledger.append({})
        with atomic_directory(workspace.adapter("law")):
            pass
        (tmp_path / "notes.txt").touch()
        workspace.clear()
    assert {name for name in names(tmp_path) if not name.startswith(".")} == {"notes.txt"}


def test_the_workspace_needs_no_torch():
    modules = "constrained_adapters.workspace, constrained_adapters.config.template"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
