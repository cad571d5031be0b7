"""What an engine behind this server must say: what the embedded engine says, with the same adapters."""

from __future__ import annotations

import openai
import torch

from constrained_adapters import CRMAConfig, CRMAModel

QUESTIONS = ["Why is the sky blue?", "What is a bond?"]
ASKED = [("base", None), ("law", None), ("medicine", None), ("base", {"law": 0.6, "medicine": -0.4})]


def packaged_model_with_adapters():
    """The packaged model in float32 with two random adapters."""
    config = CRMAConfig(
        base_model_name="embedded", adapter_dim=8, init_std=0.1, residual_scaling=1.0, dtype="float32"
    )
    model = CRMAModel.from_pretrained(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        for name in ("law", "medicine"):
            model.create_adapter(name)
            model.freeze_adapter(name)
    return model.eval()


def answers(address):
    """Greedy answers of the server at ``address`` to every question by every model and mix."""
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
            for name, adapters in ASKED
        ]
