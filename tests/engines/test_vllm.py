"""vLLM's CPU build: several exported adapters and a mix in one engine say what our own model says."""

from __future__ import annotations

import pytest
import torch

from constrained_adapters.config.crma import CRMAConfig
from constrained_adapters.config.run import BaseConfig
from constrained_adapters.export.lora import export_lora
from constrained_adapters.model import CRMAModel
from constrained_adapters.models.embedded import embedded_model_path
from constrained_adapters.models.load import load_base

from .conftest import python_of

pytestmark = [pytest.mark.engines, pytest.mark.slow]

MIX = {"law": 0.7, "medicine": -0.3}
ASKED = {None: {}, "law": {"law": 1.0}, "medicine": {"medicine": 1.0}, "mix": MIX}
TEXTS = ["The court held that the contract was void because", "def mean(values):\n    return"]


@pytest.fixture
def model():
    """Our own model with two random adapters of different ranks, strong enough to change what is said."""
    config = CRMAConfig(base_model_name="embedded", dtype="float32", adapter_dim=12, residual_scaling=2.0)
    made = CRMAModel.from_base(load_base(BaseConfig(dtype="float32", device="cpu")), config)
    generator = torch.Generator().manual_seed(0)
    for name, rank in {"law": 12, "medicine": 5}.items():
        made.create_adapter(name, adapter_dim=rank)
        for key, parameter in made.named_parameters():
            if f".{name}." in key:
                std = 0.15 if ".lora_B." in key else parameter.shape[1] ** -0.5
                parameter.data = torch.randn(parameter.shape, generator=generator) * std
    return made.eval()


@pytest.mark.timeout(900)
def test_adapters_and_a_mix_in_one_engine(model, ask, tmp_path):
    python_of("vllm")
    for name in ("law", "medicine"):
        model.save_adapter(tmp_path / "adapters" / name, name)
    home, folders = tmp_path / "adapters", {}
    for name, weights in ASKED.items():
        if weights:
            parts = {home / part: weight for part, weight in weights.items()}
            exported = export_lora(parts, tmp_path / "out" / name, pad_rank="auto")
            folders[name] = str(exported.folder)
    prompts = [model.tokenizer(text)["input_ids"] for text in TEXTS]
    task = {
        "model": str(embedded_model_path()),
        "adapters": folders,
        "max_lora_rank": 32,
        "prompts": prompts,
        "max_tokens": 8,
        "requests": [[number, name] for name in ASKED for number in range(len(prompts))],
    }
    answers = ask("vllm", task)["answers"]
    first = []
    for answer in answers:
        weights = ASKED[answer["adapter"]]
        model.set_active_adapters(list(weights))
        model.set_adapter_weights(weights)
        prompt, tokens = prompts[answer["prompt"]], answer["tokens"]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
        ours = logits.log_softmax(-1)
        assert ours.argmax(-1).tolist() == tokens, answer["adapter"]
        chosen = ours.gather(-1, torch.tensor(tokens)[:, None])[:, 0]
        assert (chosen - torch.tensor(answer["logprobs"])).abs().max() < 1e-3, answer["adapter"]
        if answer["prompt"] == 0:
            first.append(answer["logprobs"][0])
    # Each says something else, so that none was left out.
    assert min(abs(a - b) for i, a in enumerate(first) for b in first[:i]) > 0.01
