"""``--engine vllm`` for real: the front before vLLM's CPU build, against the embedded engine."""

import os
from pathlib import Path

import openai
import pytest
import torch
from tests.e2e.serving import serving

from constrained_adapters import CRMAConfig, CRMAModel
from constrained_adapters.models.embedded import embedded_model_path
from constrained_adapters.serving.local import LocalEngine
from constrained_adapters.serving.settings import ServeSettings
from constrained_adapters.serving.upstream import UpstreamEngine
from constrained_adapters.serving.vllm import COMMAND_VARIABLE, VllmProcess

COMMAND = Path(__file__).resolve().parents[2] / ".engines" / "vllm" / "bin" / "vllm"
pytestmark = [
    pytest.mark.engines,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not COMMAND.exists(), reason="vLLM is not installed: make test-engines"),
]
SETTINGS = ServeSettings(slots=4, context_tokens=128)
QUESTIONS = ["Why is the sky blue?", "What is a bond?"]


@pytest.fixture
def model():
    config = CRMAConfig(
        base_model_name="embedded", adapter_dim=8, init_std=0.05, residual_scaling=1.0, dtype="float32"
    )
    model = CRMAModel.from_pretrained(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        for name in ("law", "medicine"):
            model.create_adapter(name)
            model.freeze_adapter(name)
    return model.eval()


def answers(address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", timeout=300) as client:
        return [
            client.chat.completions.create(
                model=name,
                messages=[{"role": "user", "content": question}],
                max_tokens=8,
                temperature=0,
                extra_body={"ignore_eos": True, **({"adapters": adapters} if adapters else {})},
            )
            .choices[0]
            .message.content
            for question in QUESTIONS
            for name, adapters in (
                ("base", None),
                ("law", None),
                ("medicine", None),
                ("base", {"law": 0.6, "medicine": -0.4}),
            )
        ]


def test_vllm_answers_as_the_embedded_engine(model, tmp_path, monkeypatch):
    monkeypatch.setenv(COMMAND_VARIABLE, str(COMMAND))
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
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
