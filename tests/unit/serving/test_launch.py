"""What is checked before anything is served."""

import asyncio
import builtins
import tempfile

import pytest
import torch

from constrained_adapters.errors import ConfigError, MissingExtraError
from constrained_adapters.serving import upstream_launch
from constrained_adapters.serving.launch import check_memory, free_bytes
from constrained_adapters.serving.local import context_of
from constrained_adapters.serving.server import check_extra
from constrained_adapters.serving.settings import ServeSettings
from constrained_adapters.serving.slots import SlotCache, slot_bytes
from constrained_adapters.serving.vllm import COMMAND_VARIABLE, VllmProcess, find_vllm

CPU = torch.device("cpu")


def test_the_bytes_that_are_stated_are_those_that_are_taken(tiny_llama):
    cache = SlotCache(tiny_llama.config, 3, 40)
    states = torch.zeros(1, 2, 1, 8)
    cache.aim(slice(0, 1), slice(0, 1), 1)
    for layer in range(2):
        cache.update(states, states, layer)
    taken = sum(block.nbytes for layer in cache.layers for block in (layer.keys, layer.values))
    assert taken == slot_bytes(tiny_llama.config, 3, 40, torch.float32)


def test_more_memory_than_there_is_is_refused_before_anybody_asks():
    free = free_bytes(CPU)
    if free is None:
        pytest.skip("nobody says how much memory is free here")
    check_memory(1, CPU)
    with pytest.raises(ConfigError, match=r"not enough memory[\s\S]*fewer --slots"):
        check_memory(1 << 60, CPU)


def test_the_context_is_the_models_unless_less_is_asked_for(tiny_llama):
    assert context_of(tiny_llama.config, None) == 512
    assert context_of(tiny_llama.config, 100) == 100
    tiny_llama.config.max_position_embeddings = 100_000
    assert context_of(tiny_llama.config, None) == 2048


def test_an_extra_that_is_missing_is_named(monkeypatch):
    original = builtins.__import__

    def without_uvicorn(name, *arguments, **more):
        if name == "uvicorn":
            raise ImportError(name)
        return original(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", without_uvicorn)
    with pytest.raises(MissingExtraError, match=r"constrained-adapters\[serve\]"):
        check_extra()


def test_without_vllm_it_is_said_how_to_name_it(monkeypatch):
    monkeypatch.setenv(COMMAND_VARIABLE, "/nowhere/vllm")
    assert find_vllm() is None
    with pytest.raises(Exception, match=COMMAND_VARIABLE):
        VllmProcess("base", ServeSettings(), max_rank=8, context_tokens=64, on_gpu=False)


def test_a_vllm_that_ends_at_once_is_reported_with_its_last_error(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # its log is kept
    fake = tmp_path / "vllm"
    fake.write_text("#!/bin/sh\necho starting\necho 'ValueError: no such model'\nexit 3\n")
    fake.chmod(0o755)
    monkeypatch.setenv(COMMAND_VARIABLE, str(fake))
    process = VllmProcess("base", ServeSettings(), max_rank=8, context_tokens=64, on_gpu=False)
    with pytest.raises(Exception, match=r"exit code 3: ValueError: no such model"):
        asyncio.run(process.start())


@pytest.mark.parametrize(
    ("installed", "has_gpu", "engine"),
    [(False, False, "local"), (False, True, "local"), (True, False, "local"), (True, True, "vllm")],
)
def test_auto_takes_the_faster_engine_that_is_installed(monkeypatch, installed, has_gpu, engine):
    monkeypatch.setattr(upstream_launch, "find_vllm", lambda: "vllm" if installed else None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    assert upstream_launch.faster_engine()[0] == engine
