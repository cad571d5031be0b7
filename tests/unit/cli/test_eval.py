"""``crma eval`` and ``crma compare`` as a user calls them."""

from __future__ import annotations

import json
import random

import pytest

from constrained_adapters.cli.assessment_tables import print_assessment
from constrained_adapters.results import (
    Assessment,
    Estimate,
    ItemScores,
    MethodResult,
    RunResult,
    SetScores,
    TaskScore,
)

from ..training.conftest import tiny_run  # noqa: F401  # a fixture

DOMAINS = ["law", "数学"]


def items(seed: int, right: float, prefix: str = "k") -> ItemScores:
    rng = random.Random(seed)
    return ItemScores(
        keys=[f"{prefix}{number}" for number in range(40)],
        loss=[rng.uniform(0.5, 1.5) for _ in range(40)],
        num_tokens=[2] * 40,
        exact_match=[float(rng.random() < right) for _ in range(40)],
    )


def write_run(folder, title: str, rights: dict[str, float], prefix: str = "k", with_items: bool = True):
    methods = [
        MethodResult(
            name=name,
            recipe=name,
            settings={},
            domains=DOMAINS,
            matrices={"exact_match": [[0.0] * 2] * 3},
            general_nats=[],
            summary={"accuracy": right},
            records=[],
            items={d: items(number, right, prefix) for number, d in enumerate(DOMAINS)} if with_items else {},
        )
        for name, right in rights.items()
    ]
    run = RunResult(title=title, created="", base={}, environment={}, settings={}, methods=methods)
    folder.mkdir()
    (folder / "results.json").write_text(run.model_dump_json(), encoding="utf-8")
    return folder


def test_methods_of_one_run_are_compared_item_by_item(crma, tmp_path):
    run = write_run(tmp_path / "run", "One run", {"lora": 0.2, "crma": 0.9})
    done = crma("compare", run)
    assert done.exit_code == 0, done.output
    assert "first: crma\nsecond: lora\non the same items" in done.stdout
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("exact match") and "pts" in line]
    assert "+" in line and "80" in line
    assert "McNemar" in done.stdout


def test_methods_of_one_name_of_two_runs_are_compared(crma, tmp_path):
    first = write_run(tmp_path / "march", "March", {"lora": 0.2, "crma": 0.9})
    second = write_run(tmp_path / "may", "May", {"crma": 0.5})
    done = crma("compare", first, second)
    assert f"first: {first}: crma\nsecond: {second}: crma" in done.stdout
    assert "second: lora" not in done.stdout
    other = write_run(tmp_path / "june", "June", {"replay": 0.5})
    assert f"first: {first}: crma\nsecond: {other}: replay" in crma("compare", first, other).stdout
    done = crma("compare", first, second, "--method", "crm")
    assert done.exit_code == 2 and "Try:      crma" in done.stderr


def test_runs_on_other_items_are_refused(crma, tmp_path):
    first = write_run(tmp_path / "march", "March", {"crma": 0.9})
    second = write_run(tmp_path / "may", "May", {"crma": 0.5}, prefix="other")
    done = crma("compare", first, second)
    assert done.exit_code == 2
    assert "the two runs were not scored on the same items" in done.stderr and "0 shared" in done.stderr


def test_an_older_record_says_how_to_get_items(crma, tmp_path):
    run = write_run(tmp_path / "run", "Old", {"lora": 0.2, "crma": 0.9}, with_items=False)
    done = crma("compare", run)
    assert done.exit_code == 0 and "crma and lora: no scores of single items" in done.stdout
    assert "p: chance" not in done.stdout


def test_eval_scores_a_run_and_its_record_can_be_compared(crma, tiny_run, tmp_path):  # noqa: F811
    tiny_run("lora", names=["law"])
    rows = [{"prompt": f"which letter is {i}?", "answer": "xyz"[i % 3]} for i in range(5)]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    record = tmp_path / "record.json"
    # The run lies under the folder that config.output names; --run takes it, as a method's folder too.
    common = ("--run", tiny_run.folder / "out", "--data", f"mine={tmp_path / 'mine.jsonl'}")
    dump = tiny_run.folder / "out" / "crma.yaml"
    assert dump.is_file()
    done = crma("eval", *common, "--output", record)
    assert done.exit_code == 0, done.output
    for words in ("after law", "ACC (exact match)", "mine", "general text", f"record: {record}"):
        assert words in done.stdout
    assert "scoring law with the base alone" in done.stderr
    done = crma("compare", record)
    assert "first: adapted\nsecond: base" in done.stdout
    assert crma("compare", record, record).exit_code == 0


def test_eval_refuses_what_cannot_be(crma, tmp_path):
    done = crma("eval", "--base", "embedded", "--run", tmp_path)
    assert done.exit_code == 2 and "--base and --run exclude each other" in done.stderr
    done = crma("eval", "--adapter", tmp_path)
    assert done.exit_code == 2 and "--adapter needs --base" in done.stderr
    done = crma("eval", "--run", tmp_path / "nothing")
    assert done.exit_code == 1 and "there is no run here" in done.stderr
    done = crma("eval", "--base", "embedded", "--metric", "f1")
    assert done.exit_code == 2 and "no metric named 'f1'" in done.stderr


def test_tasks_stand_beside_one_another(capsys):
    found = Assessment(
        title="A base",
        created="",
        base={},
        environment={},
        settings={},
        models=["base", "adapted"],
        sets=[
            SetScores(
                name="law",
                group="given",
                parts=["law"],
                num_items=3,
                scores={m: {"loss": Estimate(value=1.0, low=0.5, high=2.0)} for m in ("base", "adapted")},
            )
        ],
        tasks=[
            TaskScore(
                task="letters",
                metric="acc",
                num_items=6,
                scores={"base": Estimate(value=0.5), "adapted": Estimate(value=0.25, low=0.0, high=0.75)},
            )
        ],
        notes=["One thing."],
    )
    print_assessment(found)
    shown = capsys.readouterr().out
    assert "letters" in shown and "0.250 [0.000, 0.750]" in shown and "Note: One thing." in shown
    assert all(len(line) <= 80 for line in shown.splitlines())


@pytest.mark.parametrize("arguments", [("--help",), ("eval", "--help"), ("compare", "--help")])
def test_help_says_what_there_is(crma, arguments):
    assert crma(*arguments).exit_code == 0
