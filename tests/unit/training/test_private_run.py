"""A private run leaves nothing of the data on disk: every byte that it writes is searched for it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from cryptography.fernet import Fernet

from constrained_adapters.data.examples import Example
from constrained_adapters.data.tokens import encode_example
from constrained_adapters.rehearsal import KeptFile, ReplayBuffer
from constrained_adapters.rehearsal.kept_file import KEY_VARIABLE

from .conftest import DOMAINS, StopAt, StopError

ENCODINGS = ("<i8", "<i4", "<i2", "<f4")
LEAST_TOKENS = 5


def searched_for(folder: Path, tokenizer, domains: list[str]) -> dict[str, list[bytes]]:
    """For each prompt of the data the ways in which it, or its tokens, could stand in a file."""
    prompts = [
        json.loads(line)["prompt"]
        for name in domains
        for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    found = {}
    for prompt in prompts:
        ids = tokenizer(prompt)["input_ids"]
        assert len(ids) >= LEAST_TOKENS
        found[prompt] = [
            prompt.encode(),
            prompt.encode("utf-16-le"),
            json.dumps(prompt).strip('"').encode(),
            json.dumps(ids).strip("[]").encode(),
            *(np.asarray(ids, dtype=kind).tobytes() for kind in ENCODINGS),
        ]
    return found


def traces(folder: Path, wanted: dict[str, list[bytes]]) -> list[tuple[str, str]]:
    """Files and prompts that were found in them."""
    contents = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert contents
    return [
        (path.name, prompt)
        for path, content in contents.items()
        for prompt, forms in wanted.items()
        if any(form in content for form in forms)
    ]


def test_the_search_finds_rows_and_texts(tiny_run, tiny_tokenizer):
    wanted = searched_for(tiny_run.folder, tiny_tokenizer, DOMAINS)
    folder = tiny_run.folder / "out"
    folder.mkdir()
    (folder / "clean.json").write_text(json.dumps({"domain": DOMAINS, "loss": [1.5, 2.5]}))
    assert traces(folder, wanted) == []

    row = encode_example(Example(prompt="数学 3?", answer="bb"), tiny_tokenizer, 48)
    buffer = ReplayBuffer(3).with_domain("数学", [row], seed=0)
    KeptFile(folder / "buffer", private=False).write(buffer)
    (folder / "samples.json").write_text(json.dumps({"prompt": "数学 3?"}))
    assert sorted(traces(folder, wanted)) == [("buffer", "数学 3?"), ("samples.json", "数学 3?")]


@pytest.mark.parametrize(
    ("method", "private"),
    [
        ({"recipe": "crma + replay + distillation"}, True),
        ({"recipe": "lora + generative_replay", "generated_examples": 4}, True),
        ({"recipe": "full + replay", "replay_selection": "highest_loss"}, "encrypted"),
    ],
    ids=["crma + replay + distillation", "lora + generative_replay", "full + replay, encrypted"],
)
def test_nothing_of_the_data_is_on_disk_neither_in_the_middle_of_a_run_nor_after_it(
    tiny_run, tiny_tokenizer, monkeypatch, method, private
):
    monkeypatch.setenv(KEY_VARIABLE, Fernet.generate_key().decode())
    wanted = searched_for(tiny_run.folder, tiny_tokenizer, [*DOMAINS, "general"])
    options = {"names": DOMAINS[:2], "private": private}
    with pytest.raises(StopError):
        tiny_run(method, observer=StopAt(step=("数学", 3)), **options)
    assert list((tiny_run.folder / "out").rglob("checkpoint-2"))
    assert traces(tiny_run.folder / "out", wanted) == []
    result = tiny_run(method, **options)
    assert len(result.methods[0].records) == 2
    assert traces(tiny_run.folder / "out", wanted) == []
