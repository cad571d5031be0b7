"""``--engine vllm`` for real: the front before vLLM's CPU build, against the embedded engine."""

import os
from pathlib import Path

import pytest
from tests.e2e.serving import serving

from constrained_adapters.models.embedded import embedded_model_path
from constrained_adapters.serving.local import LocalEngine
from constrained_adapters.serving.settings import ServeSettings
from constrained_adapters.serving.upstream import UpstreamEngine
from constrained_adapters.serving.vllm import COMMAND_VARIABLE, VllmProcess

from .upstream import answers, packaged_model_with_adapters

COMMAND = Path(__file__).resolve().parents[2] / ".engines" / "vllm" / "bin" / "vllm"
pytestmark = [
    pytest.mark.engines,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not COMMAND.exists(), reason="vLLM is not installed: make test-engines"),
]
SETTINGS = ServeSettings(slots=4, context_tokens=128)


def test_vllm_answers_as_the_embedded_engine(tmp_path, monkeypatch):
    monkeypatch.setenv(COMMAND_VARIABLE, str(COMMAND))
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
    model = packaged_model_with_adapters()
    folders = {}
    for name in model.adapter_names:
        model.save_adapter(tmp_path / name, name)
        folders[name] = {str(tmp_path / name): 1.0}
    domains = {name: {name: 1.0} for name in model.adapter_names}
    with serving(LocalEngine(model, model.tokenizer, domains, SETTINGS), SETTINGS) as address:
        wanted = answers(address)
    process = VllmProcess(str(embedded_model_path()), SETTINGS, max_rank=16, context_tokens=128, on_gpu=False)
    engine = UpstreamEngine(process.start, process.stop, folders, SETTINGS, base_model="base", name="vllm")
    with serving(engine, SETTINGS, seconds=600.0) as address:
        found = answers(address)
    assert len(set(wanted)) == len(wanted)  # each adapter says something else
    assert found == wanted
