"""A tiny model with three adapters, and answers to be written by it."""

from __future__ import annotations

import pytest
import torch

from constrained_adapters import CRMAConfig, CRMAModel
from constrained_adapters.serving.answer import Answer, Wanted
from constrained_adapters.serving.decoder import BatchDecoder
from constrained_adapters.serving.scheduler import Scheduler
from constrained_adapters.serving.waiting import WaitingLine


def with_adapters(base, tokenizer, names=("law", "medicine", "history")):
    """``base`` with adapters that change its answers clearly, each otherwise."""
    config = CRMAConfig(base_model_name="tiny", adapter_dim=4, init_std=0.3, residual_scaling=1.0)
    model = CRMAModel(base, config, tokenizer=tokenizer, fingerprint="tiny")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        for name in names:
            model.create_adapter(name)
            model.freeze_adapter(name)
    return model.eval()


@pytest.fixture
def model(tiny_llama, tiny_tokenizer):
    return with_adapters(tiny_llama, tiny_tokenizer)


class Reader:
    """Collects the pieces of one answer."""

    def __init__(self):
        self.pieces = []

    @property
    def text(self):
        return "".join(piece.text for piece in self.pieces)

    @property
    def last(self):
        return self.pieces[-1]


@pytest.fixture
def ask(tiny_tokenizer):
    """``ask(prompt, adapters, max_new_tokens=…, …)`` → an answer with its reader."""

    def make(prompt, adapters=None, *, max_new_tokens=12, sampling=None, stops=(), ends=(), index=0, **more):
        from constrained_adapters.serving.sampling import Sampling

        reader = Reader()
        ids = tiny_tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt
        answer = Answer(
            ids,
            adapters or {},
            Wanted(max_new_tokens, sampling or Sampling(temperature=0), tuple(stops), **more),
            index=index,
            tokenizer=tiny_tokenizer,
            ends=frozenset(ends),
            deliver=reader.pieces.append,
        )
        answer.reader = reader
        return answer

    return make


def scheduler_for(model, *, slots=4, context_tokens=96, capacity=64, prefill_tokens=64):
    return Scheduler(
        BatchDecoder(model, slots, context_tokens), WaitingLine(capacity), prefill_tokens=prefill_tokens
    )


def run(scheduler, limit=2000):
    """Step until nothing is left."""
    for _ in range(limit):
        if not scheduler.has_work():
            return
        scheduler.step()
    raise AssertionError("the scheduler does not come to an end")
