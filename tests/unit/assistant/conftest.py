"""A folder with two subjects learnt on a tiny base, made once and copied."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from constrained_adapters.assistant import Decoding, SimpleDomainAdapter
from constrained_adapters.config.run import TrainingConfig
from constrained_adapters.routing import own_text

TRAINING = TrainingConfig(steps=4, batch_size=4, learning_rate=1e-2, max_length_tokens=48)


def pairs(subject: str, count: int = 24) -> list[tuple[str, str]]:
    return [(f"{subject} {number}?", "abcd"[number % 4] * 2) for number in range(count)]


@pytest.fixture
def base_folder(tmp_path, tiny_llama, tiny_tokenizer) -> Path:
    folder = tmp_path / "base"
    tiny_llama.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def make(base_folder, tmp_path, monkeypatch):
    """Build a ``SimpleDomainAdapter`` on the tiny base, quickly."""
    monkeypatch.setattr(own_text, "NUM_TEXTS", 16)
    monkeypatch.setattr(own_text, "NUM_TOKENS", 8)

    def build(folder: str = "work", **settings) -> SimpleDomainAdapter:
        chosen = {"training": TRAINING, "decoding": Decoding(max_new_tokens=4), **settings}
        return SimpleDomainAdapter(base_folder, tmp_path / folder, **chosen)

    return build


_LEARNT: dict[str, Path] = {}


@pytest.fixture
def learnt(make, tmp_path, tmp_path_factory) -> SimpleDomainAdapter:
    """Has learnt 数学 and law; training is done once for all tests."""
    if "folder" not in _LEARNT:
        made = make("first")
        made.train_domain("数学", pairs("数学"), keywords=["几何"])
        made.train_domain("law", pairs("law"))
        made.auto_detect_domain("law 3?")  # the base writes its text
        kept = tmp_path_factory.mktemp("learnt") / "work"
        shutil.copytree(tmp_path / "first", kept)
        _LEARNT["folder"] = kept
    shutil.copytree(_LEARNT["folder"], tmp_path / "work")
    return make("work")
