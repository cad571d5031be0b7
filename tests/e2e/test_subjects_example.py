"""The example in Chinese: three subjects are learnt, found and answered; nothing is done twice."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from constrained_adapters.routing import own_text

EXAMPLE = Path(__file__).parents[2] / "examples" / "subjects_zh.py"
SUBJECTS = ["数学", "历史", "成语"]


@pytest.mark.timeout(900)
def test_on_a_tiny_base(tmp_path, monkeypatch, capsys, tiny_llama, tiny_tokenizer):
    tiny_llama.save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    rows = [{"prompt": f"成语解释：第{n}个意思。\n是哪个成语？", "answer": "画蛇添足"} for n in range(30)]
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "idioms.jsonl").write_text(text, encoding="utf-8")
    monkeypatch.setattr(own_text, "NUM_TEXTS", 8)
    monkeypatch.setattr(own_text, "NUM_TOKENS", 8)
    monkeypatch.chdir(tmp_path)
    options = ["--base", "base", "--idioms", "idioms.jsonl", "--steps", "2", "--examples", "12"]
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *options])
    runpy.run_path(str(EXAMPLE))
    said = capsys.readouterr().out
    assert "已学完： 数学、历史、成语" in said and said.count("答（") == 4
    folders = tmp_path / "学科" / "adapters"
    assert sorted(folder.name for folder in folders.iterdir()) == sorted(SUBJECTS)
    before = {name: (folders / name / "adapter_model.safetensors").read_bytes() for name in SUBJECTS}
    runpy.run_path(str(EXAMPLE))
    assert "已学完" in capsys.readouterr().out
    assert before == {name: (folders / name / "adapter_model.safetensors").read_bytes() for name in SUBJECTS}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_on_the_packaged_model(tmp_path):
    command = [sys.executable, str(EXAMPLE), "--steps", "8", "--examples", "64"]
    done = subprocess.run(
        command,
        capture_output=True,
        encoding="utf-8",
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "答（数学）" in done.stdout and "答（成语）" in done.stdout and "答（基础模型）" in done.stdout
