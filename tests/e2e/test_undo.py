"""``crma rollback`` and ``crma remove`` as a user calls them, and what the other commands know afterwards."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from constrained_adapters.cli import undoing
from constrained_adapters.cli.main import app
from constrained_adapters.workspace import Workspace

DOMAINS = ["law", "数学", "Право"]
TRAIN = "constrained_adapters.training.sequence:train_domain"

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("store") / "finished"


@pytest.fixture
def here(tmp_path, tiny_llama, tiny_tokenizer, crma, store) -> Path:
    """A finished run of three domains by an adapter a domain, with kept examples and without; done once."""
    if store.exists():
        return Path(shutil.copytree(store, tmp_path, dirs_exist_ok=True))
    tiny_llama.save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    for number, name in enumerate(DOMAINS):
        rows = [{"prompt": f"{name} {i}?", "answer": "abcd"[(i + number) % 4] * 2} for i in range(24)]
        text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    write_settings(tmp_path)
    assert crma(tmp_path, "run", "crma.yaml", "-q") == 0, crma.text
    shutil.copytree(tmp_path, store)
    return tmp_path


def write_settings(folder: Path, domains: list[str] = DOMAINS) -> None:
    (folder / "crma.yaml").write_text(
        "title: Tiny\noutput: out\nbase: {model: base}\nadapter: {rank: 4}\n"
        "training: {steps: 2, batch_size: 4, max_length_tokens: 48}\nmethods: [crma, lora + replay]\n"
        "evaluation: {max_items: 2, general: null, num_samples: 1, max_new_tokens: 2}\n"
        f"domains: {json.dumps([{'name': n, 'data': f'{n}.jsonl'} for n in domains], ensure_ascii=False)}\n",
        encoding="utf-8",
    )


def test_back_and_on_again(here, crma):
    before = {path: path.read_bytes() for path in here.glob("out/*/adapters/*/*.safetensors")}
    matrices = [each["matrices"] for each in read_results(here)["methods"]]
    assert crma(here, "rollback", "--to", "law", "--yes") == 0, crma.text
    assert "  crma: 数学, Право (" in crma.text and "  lora + replay: 数学, Право (" in crma.text
    assert "'crma run' makes them anew" in crma.text
    assert not (here / "out" / "report.html").exists()
    assert crma(here, "status") == 0
    shown = " ".join(crma.text.split())
    assert "crma 1 of 3 stopped at 数学" in shown and "to go on: crma run" in shown
    assert crma(here, "rollback", "out", "--to", "law", "--yes") == 0
    assert crma.text == "nothing was undone\n"
    assert crma(here, "ask", "Hello", "--domain", "数学", "--run", "out") == 2
    assert "no domain named '数学'" in crma.text
    assert crma(here, "run", "crma.yaml", "-q") == 0, crma.text
    assert {path: path.read_bytes() for path in here.glob("out/*/adapters/*/*.safetensors")} == before
    assert [each["matrices"] for each in read_results(here)["methods"]] == matrices
    assert "rollback" in (here / "out" / "report.html").read_text(encoding="utf-8")


def test_a_domain_is_forgotten_on_purpose(here, crma):
    assert crma(here, "remove", "数学", "-y") == 0, crma.text
    assert "this is deleted:\n  crma: 数学 (" in crma.text
    assert "take 数学 out of your crma.yaml too" in crma.text
    assert crma(here, "status") == 0
    assert "domains: law → Право" in crma.text
    assert "crma 2 of 2 to be scored again from Право on" in " ".join(crma.text.split())
    assert crma(here, "run", "crma.yaml") == 1  # the user's own file has it still
    assert "settings changed since this run began" in crma.text
    write_settings(here, ["law", "Право"])
    assert crma(here, "run", "crma.yaml", "-q", place=TRAIN) == 0, crma.text  # training would kill it
    assert [each["domains"] for each in read_results(here)["methods"]] == [["law", "Право"]] * 2
    assert crma(here, "ask", "Hello", "--domain", "数学", "--run", "out") == 2
    assert crma(here, "ask", "Hello", "--domain", "Право", "--run", "out") == 0, crma.text
    assert crma(here, "export", "lora", "数学", "--run", "out", "-o", "lora") == 2
    assert crma(here, "export", "lora", "Право", "--run", "out", "-o", "lora") == 0, crma.text
    card = next((here / "lora").rglob("README.md")).read_text(encoding="utf-8")
    assert "law" in card and "数学" not in card
    assert crma(here, "status") == 0
    assert "crma 2 of 2 done" in " ".join(crma.text.split())


def read_results(here: Path):
    return json.loads((here / "out" / "results.json").read_text(encoding="utf-8"))


def test_what_is_asked_wrongly_is_refused_and_nothing_is_lost(here, crma):
    before = {path: path.read_bytes() for path in (here / "out").rglob("*") if path.is_file()}
    for call, code, lines in [
        (["rollback"], 2, ["UsageError: nothing was deleted: there is no terminal to ask on", "--yes"]),
        (["remove", "law"], 2, ["UsageError: nothing was deleted", "--yes"]),
        (["rollback", "--to", "lwa"], 2, ["UnknownNameError: no domain named 'lwa'", "Try:      law"]),
        (["remove", "lwa", "out", "-y"], 2, ["UnknownNameError: no domain named 'lwa'", "Try:      law"]),
        (["remove", "law", "out", "--method", "crm"], 2, ["no method named 'crm'", "Try:      crma"]),
        (["rollback", "nowhere"], 1, ["WorkspaceError: there is no run here"]),
        (["remove"], 2, ["Missing argument 'DOMAIN'"]),
    ]:
        assert crma(here, *call) == code, (call, crma.text)
        for line in lines:
            assert line in crma.text, call
        assert "Traceback" not in crma.text
    with Workspace(here / "out" / "lora + replay").lock():
        for call in (["rollback", "-y"], ["remove", "law", "-y"]):
            assert crma(here, *call) == 1
            assert f"process {os.getpid()} holds" in crma.text
    assert {path: path.read_bytes() for path in (here / "out").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("command", ["rollback", "remove"])
def test_help_says_what_is_deleted(tmp_path, crma, command):
    assert crma(tmp_path, command, "--help") == 0
    assert f"Usage: crma {command}" in crma.text
    assert "deleted" in crma.text and "--method" in crma.text and "--yes" in crma.text


def test_on_a_terminal_it_asks(here, monkeypatch):
    monkeypatch.chdir(here)
    monkeypatch.setattr(undoing, "sys", SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True)))
    refused = CliRunner().invoke(app, ["rollback"], input="n\n")
    assert refused.exit_code == 0 and refused.output.endswith("go on? [y/N]: n\nnothing was undone\n")
    agreed = CliRunner().invoke(app, ["rollback"], input="y\n")
    assert agreed.exit_code == 0 and "crma: gone: Право" in agreed.output
