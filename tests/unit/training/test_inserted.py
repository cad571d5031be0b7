"""Inserted modules as a learner: every use, the stock Trainer, stops and restarts, penalties."""

from __future__ import annotations

import copy

import pytest
import torch

from constrained_adapters.adapters.bottleneck import Bottlenecks
from constrained_adapters.adapters.inserted import InsertedModel
from constrained_adapters.adapters.progressive import Columns
from constrained_adapters.config.run import TrainingConfig
from constrained_adapters.data.tokens import TokenDataset, Tokens
from constrained_adapters.errors import ConfigError
from constrained_adapters.memory.diagonal import DiagonalMemory
from constrained_adapters.training.domain import train_domain
from constrained_adapters.training.inserted import InsertedLearner
from constrained_adapters.training.observer import SilentObserver
from constrained_adapters.training.penalties import IMPORTANCE, EWCPenalty, FrozenPenalty
from constrained_adapters.training.weights import WeightsLearner, trainable_copy

DOMAINS = ["law", "数学"]
FAMILIES = {"bottleneck": Bottlenecks(width=4), "progressive": Columns(width=8)}
USES = [
    ("bottleneck", "together"),
    ("bottleneck", "alone"),
    ("bottleneck", "onward"),
    ("progressive", "together"),
    ("progressive", "alone"),
]
IDS = torch.randint(3, 259, (2, 9), generator=torch.Generator().manual_seed(5))


class StopError(Exception):
    """Raised in the middle of training."""


class StopAt(SilentObserver):
    def __init__(self, step=None):
        self._step = step

    def steps(self, method, domain, done, total, loss):
        if done == self._step:
            raise StopError


def rows_of(number, count=12):
    ids = torch.randint(3, 259, (count, 8), generator=torch.Generator().manual_seed(number)).tolist()
    return [Tokens(each, [-100] * 4 + each[4:]) for each in ids]


def tensors_of(number):
    return [(torch.tensor(row.input_ids), torch.tensor(row.labels)) for row in rows_of(number)]


def train(learner, tokenizer, number, folder, stop_at=None, steps=4, checkpointing=False):
    domain = DOMAINS[number - 1]
    torch.manual_seed(number)
    learner.begin(number, domain, tensors_of(number))
    try:
        train_domain(
            learner.module,
            tokenizer,
            TokenDataset(rows_of(number)),
            TrainingConfig(
                steps=steps, batch_size=4, checkpoint_every_steps=2, gradient_checkpointing=checkpointing
            ),
            method="m",
            domain=domain,
            learning_rate=1e-2,
            seed=number,
            folder=folder / f"checkpoints-{number}",
            observer=StopAt(stop_at),
        )
    finally:
        if stop_at is None:
            (folder / domain).mkdir(parents=True)
            learner.finish(domain, folder / domain)


def make(base, kind="bottleneck", use="onward", penalty=None):
    return InsertedLearner(InsertedModel(base, FAMILIES[kind], fingerprint="f"), use, penalty)


@torch.no_grad()
def logits(learner, row, number):
    learner.show(row, number)
    return learner.module.eval()(input_ids=IDS).logits


@pytest.mark.parametrize(("kind", "use"), USES)
def test_each_use_shows_what_it_says_and_comes_back_bit_for_bit(
    kind, use, tmp_path, tiny_llama, tiny_tokenizer
):
    base, plain = copy.deepcopy(tiny_llama), tiny_llama(input_ids=IDS).logits.detach()
    learner = make(base, kind, use)
    learner.prepare(print)
    train(learner, tiny_tokenizer, 1, tmp_path)
    first = logits(learner, 1, 1)
    assert torch.equal(logits(learner, 0, 0), plain)
    assert not torch.equal(first, plain)
    train(learner, tiny_tokenizer, 2, tmp_path)
    if use == "alone":
        assert torch.equal(logits(learner, 2, 1), first)
        assert torch.equal(logits(learner, 2, 0), plain)
        assert [learner.shown_since(2, number) for number in (0, 1, 2)] == [0, 1, 2]
    else:
        assert not torch.equal(logits(learner, 2, 1), first)
        assert torch.equal(logits(learner, 2, 1), logits(learner, 2, 0))
        assert learner.shown_since(2, 1) == 2
    again = make(copy.deepcopy(tiny_llama), kind, use)
    for number, domain in enumerate(DOMAINS, start=1):
        again.resume(number, domain, tmp_path / domain)
        if number == 1:
            assert torch.equal(logits(again, 1, 1), first)
    for number in (0, 1, 2):
        assert torch.equal(logits(again, 2, number), logits(learner, 2, number))
    assert learner.remembers("law", tmp_path) and learner.describe() == {}
    assert learner.predicted_increase_nats("law") == {}
    learner.release()
    assert torch.equal(base(input_ids=IDS).logits, plain)
    assert all(torch.equal(p, q) for p, q in zip(base.parameters(), tiny_llama.parameters(), strict=True))


@pytest.mark.parametrize(("kind", "use"), [("bottleneck", "together"), ("progressive", "together")])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_that_was_stopped_ends_with_the_same_weights(
    kind, use, checkpointing, tmp_path, tiny_llama, tiny_tokenizer
):
    def learnt(name, *stops):
        for stop in [*stops, None]:
            learner = make(copy.deepcopy(tiny_llama), kind, use)
            try:
                train(learner, tiny_tokenizer, 1, tmp_path / name, stop_at=stop, checkpointing=checkpointing)
            except StopError:
                continue
        return dict(learner.module.named_parameters())

    whole, stopped = learnt("whole"), learnt("stopped", 3)
    assert (tmp_path / "stopped" / "checkpoints-1" / "checkpoint-2").is_dir()
    assert all(torch.equal(p, stopped[name]) for name, p in whole.items())
    files = list((tmp_path / "stopped").glob("checkpoints-1/*/model.safetensors"))
    assert files and all(file.stat().st_size < 200_000 for file in files)  # the base alone is larger


def test_one_set_is_learnt_in_the_place_of_the_first_domain(tmp_path, tiny_llama, tiny_tokenizer):
    tiny_llama.is_quantized = True  # the stock Trainer refuses such a base without modules of its own
    learner = make(tiny_llama, use="once")
    train(learner, tiny_tokenizer, 1, tmp_path)
    assert torch.equal(logits(learner, 2, 2), logits(learner, 1, 1))
    assert [learner.shown_since(row, 1) for row in (0, 1, 2)] == [0, 1, 1]


@pytest.mark.parametrize("kind", [EWCPenalty, FrozenPenalty])
@pytest.mark.parametrize("trained", ["bottleneck", "weights"])
def test_a_penalty_holds_what_is_trained_on(kind, trained, tmp_path, tiny_llama, tiny_tokenizer):
    def make_learner(penalty):
        if trained == "weights":
            return WeightsLearner(trainable_copy(tiny_llama), penalty)
        return make(copy.deepcopy(tiny_llama), penalty=penalty)

    def moved(name, penalty):
        learner = make_learner(penalty)
        train(learner, tiny_tokenizer, 1, tmp_path / name)
        assert learner.remembers("law", tmp_path) == (penalty is None)
        learner.remember(1, "law", tmp_path, tensors_of(1))
        assert learner.remembers("law", tmp_path)
        before = {k: p.detach().clone() for k, p in learner.module.named_parameters() if p.requires_grad}
        train(learner, tiny_tokenizer, 2, tmp_path / name)
        after = {k: p.detach() for k, p in learner.module.named_parameters() if p.requires_grad}
        return {k: after[k] - before[k] for k in before}

    strength = {EWCPenalty: 1e6, FrozenPenalty: 0.1}[kind]
    free = moved("free", None)
    held = moved("held", kind(strength, tmp_path / "memory"))
    assert set(free) == set(held)
    if kind is FrozenPenalty:
        memory = DiagonalMemory.load(tmp_path / "memory" / "frozen" / IMPORTANCE)
        least = torch.cat([each.flatten() for each in memory.importance.values()]).quantile(0.91)
        top = {k: each >= least for k, each in memory.importance.items()}
        assert all(not bool(held[k][top[k]].any()) for k in held)
        moving = torch.cat([free[k][top[k]] != 0.0 for k in free])
        assert float(moving.double().mean()) > 0.5  # embeddings that the second domain does not use rest
    else:
        size = sum(float(change.square().sum()) for change in held.values())
        assert size < 0.9 * sum(float(change.square().sum()) for change in free.values())
    again = make_learner(kind(strength, tmp_path / "memory"))
    again.resume(1, "law", tmp_path / "held" / "law")
    assert again.remembers("law", tmp_path)


def test_what_makes_no_sense_is_refused(tmp_path, tiny_llama):
    with pytest.raises(ConfigError, match=r"each domain has its own(?s:.*)use='onward'"):
        make(tiny_llama, use="alone", penalty=EWCPenalty(1.0, tmp_path))
    with pytest.raises(ConfigError, match="stay as they were learnt"):
        make(tiny_llama, kind="progressive", use="onward")
