"""Tasks of lm-evaluation-harness on local files: the base beside what was made of it."""

from __future__ import annotations

import json

import pytest

from constrained_adapters.assessment.assess import ADAPTED, BASE, Asked, assess_adapters
from constrained_adapters.assessment.harness import Tasks, check_tasks
from constrained_adapters.assessment.scoring import Scoring
from constrained_adapters.errors import DataError, MissingExtraError, UnknownNameError

TASK = """
task: letters
dataset_path: json
dataset_kwargs:
  data_files: {test: letters.jsonl}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: label
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    home = tmp_path / "tasks"
    home.mkdir()
    (home / "letters.yaml").write_text(TASK, encoding="utf-8")
    rows = [{"question": f"{i}?", "choices": [" x", " y"], "label": i % 2} for i in range(6)]
    (home / "letters.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return home


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_a_local_task_is_scored_with_and_without_adapters(folder, tiny_run):
    pytest.importorskip("lm_eval")
    tiny_run("lora", names=["law"])
    home = tiny_run.folder / "out" / "lora" / "adapters" / "law"
    asked = Asked(Scoring(max_length=64, batch_size=2), tasks=Tasks(folder=folder))
    found = assess_adapters(str(tiny_run.folder / "base"), [home], asked, lambda text: None)
    (line,) = found.tasks
    assert (line.task, line.metric, line.num_items) == ("letters", "acc", 6)
    assert set(line.scores) == {BASE, ADAPTED}
    assert all(0.0 <= each.value <= 1.0 for each in line.scores.values())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_tasks_that_are_not_there_are_refused(folder, tmp_path):
    pytest.importorskip("lm_eval")
    assert check_tasks(Tasks(folder=folder)) == ["letters"]
    with pytest.raises(UnknownNameError, match="no task named 'letter'") as caught:
        check_tasks(Tasks(("letter",), folder))
    assert caught.value.hint == "letters"
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no task"):
        check_tasks(Tasks(folder=tmp_path / "empty"))
    with pytest.raises(DataError, match="no task is named"):
        check_tasks(Tasks())


def test_without_the_extra_it_says_what_to_install(folder, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MissingExtraError, match=r"constrained-adapters\[eval\]"):
        check_tasks(Tasks())
