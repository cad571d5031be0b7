"""What a user gets wrong: at most four lines that name the place, an exit code, no traceback."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


@pytest.fixture
def here(tmp_path, tiny_llama, tiny_tokenizer) -> Path:
    """A run that would work: each test breaks one thing."""
    tiny_llama.save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    rows = [{"prompt": f"Law {i}?", "answer": "abcd"[i % 4]} for i in range(20)]
    (tmp_path / "law.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    write(tmp_path)
    return tmp_path


def write(folder: Path, **changes: str) -> None:
    """The crma.yaml, with some of its lines replaced, added, or left out where empty."""
    lines = {
        "output": "out",
        "base": "{model: base}",
        "training": "{steps: 1, max_length_tokens: 32}",
        "methods": "[lora]",
        "evaluation": "{max_items: 1, general: null, num_samples: 0}",
        "domains": "[{name: law, data: law.jsonl}]",
        **changes,
    }
    text = "".join(f"{key}: {value}\n" for key, value in lines.items())
    (folder / "crma.yaml").write_text(text, encoding="utf-8")


def break_line(here: Path) -> None:
    lines = (here / "law.jsonl").read_text().splitlines()
    (here / "law.jsonl").write_text("\n".join([*lines[:4], '{"prompt": "torn', *lines[5:]]))


def recode(here: Path) -> None:
    rows = [json.dumps({"prompt": f"Право {i}?", "answer": "да"}, ensure_ascii=False) for i in range(20)]
    (here / "law.jsonl").write_bytes("\n".join(rows).encode("cp1251"))


def drop_answers(here: Path) -> None:
    rows = [json.dumps({"prompt": f"Law {i}?", "label_text": "a"}) for i in range(20)]
    (here / "law.jsonl").write_text("\n".join(rows))


def one_class(here: Path) -> None:
    rows = [json.dumps({"prompt": f"Law {i}?", "answer": "a", "choices": ["a", "b"]}) for i in range(20)]
    (here / "law.jsonl").write_text("\n".join(rows))


CASES = {
    "answers of one class": (
        one_class,
        2,
        [
            "DataError: the answers of set 'law' are one class only",
            "evaluation: {metrics: [loss, exact_match]}",
        ],
    ),
    "a metric that fits no domain": (
        lambda h: write(h, evaluation="{metrics: [choice_accuracy]}"),
        2,
        ["DataError: metric 'choice_accuracy' does not fit set 'law'", "leave evaluation.metrics out"],
    ),
    "an unknown metric": (
        lambda h: write(h, evaluation="{metrics: [f1]}"),
        2,
        ["ConfigError", "token_f1", "crma.yaml, line"],
    ),
    "one file as two domains": (
        lambda h: write(h, domains="[{name: law, data: law.jsonl}, {name: law2, data: law.jsonl}]"),
        2,
        ["DataError: all of the new data is old data", "law2: each of 20 examples stands in law"],
    ),
    "a missing crma.yaml": (lambda h: (h / "crma.yaml").unlink(), 2, ["ConfigError: there is no such file"]),
    "a missing data file": (
        lambda h: (h / "law.jsonl").unlink(),
        2,
        ["DataError: no such data file", "law.jsonl"],
    ),
    "a misspelt data file": (
        lambda h: write(h, domains="[{name: law, data: laws.jsonl}]"),
        2,
        ["DataError", "law.jsonl"],
    ),
    "an empty domain": (lambda h: (h / "law.jsonl").write_text(""), 2, ["DataError", "law.jsonl"]),
    "a domain of blank lines": (
        lambda h: (h / "law.jsonl").write_text("\n\n\n"),
        2,
        ["DataError", "law.jsonl"],
    ),
    "no answer column": (drop_answers, 2, ["DataError", "law.jsonl", "label_text"]),
    "a named answer column that is absent": (
        lambda h: write(h, domains="[{name: law, data: law.jsonl, answer: reply}]"),
        2,
        ["reply", "law.jsonl"],
    ),
    "a broken line": (break_line, 2, ["DataError", "law.jsonl, line 5"]),
    "no UTF-8": (recode, 2, ["DataError", "law.jsonl", "UTF-8"]),
    "a domain named twice": (
        lambda h: write(h, domains="[{name: law, data: law.jsonl}, {name: Law, data: law.jsonl}]"),
        2,
        ["ConfigError", "named twice", "crma.yaml, line"],
    ),
    "a domain named ../x": (
        lambda h: write(h, domains="[{name: ../x, data: law.jsonl}]"),
        2,
        ["ConfigError: '../x' cannot be a domain's name", "crma.yaml, line"],
    ),
    "a base on no hub": (
        lambda h: write(h, base="{model: nobody/nothing}"),
        1,
        ["ModelError: no base model 'nobody/nothing'"],
    ),
    "a base in no folder": (
        lambda h: write(h, base="{model: ./bas}"),
        2,
        ["UsageError: no base model", "base"],
    ),
    "a base that is damaged": (
        lambda h: (h / "base" / "model.safetensors").write_bytes(b"torn"),
        1,
        ["ModelError", "cannot be loaded"],
    ),
    "an unknown key": (
        lambda h: write(h, training="{stepps: 1}"),
        2,
        ["ConfigError: no setting named 'stepps'", "training.stepps (crma.yaml, line 3)", "Try:      steps"],
    ),
    "a value of the wrong kind": (
        lambda h: write(h, training="{steps: many}"),
        2,
        ["ConfigError: the setting 'training.steps' is not valid"],
    ),
    "an unknown recipe": (
        lambda h: write(h, methods="[loar]"),
        2,
        ["UnknownNameError: no recipe named 'loar'", "Try:      lora"],
    ),
    "a setting without effect": (
        lambda h: write(h, methods="[{recipe: lora, constraint_strength: 0.8}]"),
        2,
        ["ConfigError: the setting 'constraint_strength' has no effect on the recipe 'lora'", "crma"],
    ),
    "a strength out of range": (
        lambda h: write(h, methods="[{recipe: crma, constraint_strength: 1.5}]"),
        2,
        ["ConfigError", "constraint_strength", "less than or equal to 1"],
    ),
    "layers that the base does not have": (
        lambda h: write(h, adapter="{layers: [q_porj]}"),
        2,
        ["q_porj", "q_proj"],
    ),
    "an optimizer that does not exist": (
        lambda h: write(h, training="{steps: 1, optimizer: adamx}"),
        2,
        ["UnknownNameError: no optimizer named 'adamx'", "adamw_torch"],
    ),
    "a file where the folder should be": (
        lambda h: (h / "out").write_text("mine"),
        1,
        ["WorkspaceError: the run's folder cannot be written"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_four_lines_an_exit_code_and_nothing_begun(here, crma, case):
    break_it, code, words = CASES[case]
    break_it(here)
    found = crma(here, "run", "crma.yaml")
    assert found == code, crma.text
    lines = (here / "stderr.txt").read_text("utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.partition(":")[0].endswith("Error"))
    error = lines[start:]
    assert 2 <= len(error) <= 4, error
    assert [line[:11] for line in error[1:]] == [
        label
        for label in ("  Got:     ", "  Expected:", "  Try:     ")
        if any(e.startswith(label) for e in error)
    ]
    for word in words:
        assert word in "\n".join(error)
    assert "Traceback" not in crma.text
    assert not list((here).glob("out/**/adapter_model.safetensors"))


def test_a_setting_that_was_refused_can_be_put_right(here, crma):
    for wrong in ({"adapter": "{layers: [q_porj]}"}, {"training": "{steps: 1, optimizer: adamx}"}):
        write(here, **wrong)
        assert crma(here, "run", "crma.yaml") == 2
    write(here)
    assert crma(here, "run", "crma.yaml") == 0, crma.text


@pytest.mark.parametrize("precision", ["float32", "bf16", "fp16"])
def test_the_unbroken_run_works(here, crma, precision):
    checkpointing = "true" if precision == "bf16" else "false"
    write(
        here,
        training=f"{{steps: 1, precision: {precision}, gradient_checkpointing: {checkpointing}}}",
        base="{model: base, device: cpu}",
    )
    assert crma(here, "run", "crma.yaml") == 0, crma.text


def test_debug_shows_where(here, crma):
    (here / "law.jsonl").unlink()
    assert crma(here, "run", "crma.yaml", "--debug") == 2
    assert "Traceback (most recent call last)" in crma.text
