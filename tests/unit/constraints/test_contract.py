"""What holds for every constraint there is, whatever it does."""

from __future__ import annotations

import copy
import importlib
import inspect
import pkgutil
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adafactor, AdamW

import constrained_adapters.constraints as room
from constrained_adapters.config.crma import ConstraintType
from constrained_adapters.constraints.attach import attach
from constrained_adapters.constraints.base import Constraint
from constrained_adapters.constraints.penalty import PenaltyConstraint
from constrained_adapters.errors import ModelError
from constrained_adapters.model.binding import make_constraint

from .cases import NAMES, Case, Made, Pairs, Step, all_cases, config, parameters, parts_of

TYPES = [kind for kind in get_args(ConstraintType) if kind != "none"]
OPTIMIZERS = {
    "SGD": lambda ps: SGD(ps, lr=0.02, momentum=0.9, weight_decay=0.1),
    "AdamW": lambda ps: AdamW(ps, lr=0.02, weight_decay=0.1),
    "Adafactor": lambda ps: Adafactor(ps, lr=0.02, weight_decay=0.1),
}
PAPERS = Path(__file__).resolve().parents[3] / "docs" / "papers.md"


@pytest.fixture(params=NAMES)
def case(request, make_memory, layers) -> Case:
    return all_cases(make_memory, layers)[request.param]


class Training:
    """A few steps away from nought, against whatever holds it there, over eight examples."""

    def __init__(
        self, pairs: Pairs, constraint: Constraint | None, make_optimizer=OPTIMIZERS["AdamW"]
    ) -> None:
        self.pairs, self.constraint = pairs, constraint
        self.optimizer = make_optimizer(parameters(pairs))
        self.scaler: torch.amp.GradScaler | None = None
        self.batches, self.clip, self.rescale = 1, None, 1.0

    def loss(self, examples: range, step: int) -> Tensor:
        total = torch.zeros(())
        for place, p in enumerate(parameters(self.pairs)):
            for j in examples:
                generator = torch.Generator().manual_seed(1000 * step + 10 * place + j)
                noise = torch.randn(p.shape, generator=generator)
                total = total + (noise * p.float() - 1.5 * p.float() ** 2).sum() / 8
        return total

    def step(self, number: int) -> Step:
        self.optimizer.zero_grad()
        per_batch = 8 // self.batches
        for batch in range(self.batches):
            loss = self.loss(range(batch * per_batch, (batch + 1) * per_batch), number)
            (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        if self.clip is not None:
            nn.utils.clip_grad_norm_(parameters(self.pairs), self.clip)
        for p in parameters(self.pairs):
            p.grad.mul_(self.rescale)
        own = [p.grad.detach().clone() for p in parameters(self.pairs)]
        before = [p.detach().clone() for p in parameters(self.pairs)]
        attachment = attach(self.constraint, domain="law") if self.constraint is not None else None
        try:
            if self.scaler is None:
                self.optimizer.step()
            else:
                self.scaler.step(self.optimizer)
                self.scaler.update()
        finally:
            if attachment is not None:
                attachment.remove()
        return Step(own, before, [p.grad.detach().clone() for p in parameters(self.pairs)])

    def steps(self, *numbers: int) -> list[Tensor]:
        for number in numbers:
            self.step(number)
        return [p.detach().clone() for p in parameters(self.pairs)]


def same(found: list[Tensor], wanted: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def made(case: Case, pairs: Pairs, finished: int = 2, strength: float = 0.999) -> Made:
    return case.make(pairs, finished, strength)


def test_every_constraint_of_the_room_is_among_the_cases(make_memory, make_pairs, layers):
    for module in pkgutil.iter_modules(room.__path__):
        importlib.import_module(f"{room.__name__}.{module.name}")
    found, todo = set(), [Constraint]
    while todo:
        each = todo.pop()
        todo += each.__subclasses__()
        if each.__module__.startswith(room.__name__) and not inspect.isabstract(each):
            found.add(each)
    cases = all_cases(make_memory, layers).values()
    tried = {type(part) for case in cases for part in parts_of(made(case, make_pairs()).constraint)}
    assert found == tried


def test_the_room_lists_every_type_of_the_config_once():
    assert sorted([*room.SUBSPACE_TYPES, *room.PREDICTED_TYPES]) == sorted(TYPES)


def test_none_has_no_strength():
    assert config("none").effective_strength == 0.0


@pytest.mark.parametrize("name", NAMES)
def test_it_is_documented_with_its_paper_and_its_cost(name):
    case = all_cases(None, None)[name]
    text = case.source.__doc__
    if name != "weight step":
        assert f"``{name.partition(',')[0]}``" in text
    assert "arXiv" in text and "Cost per step" in text
    rows = [line for line in PAPERS.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    assert any(f"`constraints/{case.module}.py`" in row for row in rows)


def test_before_any_domain_is_finished_training_is_plain_bit_for_bit(case, make_pairs):
    plain = Training(make_pairs(), None).steps(0, 1, 2)
    pairs = make_pairs()
    constraint = made(case, pairs, finished=0).constraint
    assert same(Training(pairs, constraint).steps(0, 1, 2), plain)
    assert all(float(value) == 0.0 for value in constraint.measurements().values())


@pytest.mark.parametrize("name", [name for name in NAMES if all_cases(None, None)[name].scales])
def test_at_strength_zero_training_is_plain_bit_for_bit(name, make_pairs, make_memory, layers):
    plain = Training(make_pairs(), None).steps(0, 1, 2)
    pairs = make_pairs()
    constraint = made(all_cases(make_memory, layers)[name], pairs, strength=0.0).constraint
    assert same(Training(pairs, constraint).steps(0, 1, 2), plain)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_step_of_every_optimizer_obeys(case, optimizer, make_pairs):
    pairs = make_pairs()
    case_made = made(case, pairs, strength=1.0 - 1e-7)
    training = Training(pairs, case_made.constraint, OPTIMIZERS[optimizer])
    for number in range(3):
        step = training.step(number)
        assert case_made.violation(step) < 2e-3
    plain = Training(make_pairs(), None, OPTIMIZERS[optimizer]).steps(0, 1, 2)
    assert not same([p.detach() for p in parameters(pairs)], plain)


def test_one_batch_of_eight_is_eight_batches_of_one(case, make_pairs):
    found = []
    for batches in (1, 8):
        torch.manual_seed(0)
        pairs = make_pairs()
        training = Training(pairs, made(case, pairs).constraint)
        training.batches = batches
        found.append(training.steps(0, 1))
    for one, eight in zip(*found, strict=True):
        torch.testing.assert_close(one, eight, rtol=1e-4, atol=1e-5)


def test_gradients_that_a_scaler_scaled_are_bound_as_those_it_did_not(case, make_pairs):
    found = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=2.0**10)):
        torch.manual_seed(0)
        pairs = make_pairs()
        training = Training(pairs, made(case, pairs).constraint)
        training.scaler = scaler
        found.append(training.steps(0, 1))
    assert same(*found)


def test_it_acts_on_the_clipped_gradient(case, make_pairs):
    found, norm = [], 0.5
    for clip in (True, False):
        torch.manual_seed(0)
        pairs = make_pairs()
        training = Training(pairs, made(case, pairs).constraint)
        if clip:
            training.clip = norm
            factor = 1.0
        else:
            probe = make_pairs()
            made(case, probe)
            free = Training(probe, None).step(0)
            factor = norm / (torch.cat([g.flatten() for g in free.own]).norm() + 1e-6)
        training.rescale = factor
        found.append(training.step(0))
    for clipped, small in zip(found[0].seen, found[1].seen, strict=True):
        torch.testing.assert_close(clipped, small, rtol=1e-4, atol=1e-6)
    if not any(isinstance(part, PenaltyConstraint) for part in parts_of(training.constraint)):
        # What a penalty adds is not clipped with the loss.
        assert torch.cat([g.flatten() for g in found[0].seen]).norm() <= norm * (1 + 1e-5)


def test_a_stopped_run_goes_on_bit_for_bit(case, make_pairs):
    torch.manual_seed(0)
    pairs = make_pairs()
    whole = Training(pairs, made(case, pairs).constraint).steps(0, 1, 2, 3)
    torch.manual_seed(0)
    pairs = make_pairs()
    first = Training(pairs, made(case, pairs).constraint)
    frozen_at = [p.detach().clone() for p in parameters(pairs)]
    values, state = first.steps(0, 1), copy.deepcopy(first.optimizer.state_dict())
    random_state = torch.get_rng_state()
    torch.manual_seed(1)
    again = make_pairs()
    constraint = made(case, again).constraint
    assert same([p.detach() for p in parameters(again)], frozen_at)
    for p, value in zip(parameters(again), values, strict=True):
        p.data.copy_(value)
    second = Training(again, constraint)
    second.optimizer.load_state_dict(state)
    torch.set_rng_state(random_state)
    assert same(second.steps(2, 3), whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_it_keeps_dtypes_shapes_and_what_it_was_made_of(case, make_pairs, dtype):
    pairs = make_pairs(dtype=dtype)
    case_made = made(case, pairs)
    constraint, given = case_made.constraint, [t.clone() for t in case_made.given]
    assert {id(p) for p in constraint.parameters} <= {id(p) for p in parameters(pairs)}
    Training(pairs, constraint).steps(0, 1)
    for p, other in zip(parameters(pairs), parameters(make_pairs(dtype=dtype)), strict=True):
        assert p.dtype == p.grad.dtype == dtype
        assert p.shape == p.grad.shape == other.shape
        assert bool(torch.isfinite(p.detach()).all()) and bool(torch.isfinite(p.grad).all())
    assert same(case_made.given, given)
    measured = constraint.measurements()
    assert measured and all(value.ndim == 0 and torch.isfinite(value) for value in measured.values())
    assert 0.0 <= float(measured.get("removed_ratio", 0.0)) <= 1.0
    facts = constraint.describe()
    assert facts and all(isinstance(value, float) for value in facts.values())


def test_a_parameter_without_a_gradient_stays_without_and_does_not_move(case, make_pairs):
    pairs = make_pairs()
    constraint = made(case, pairs).constraint
    for number, p in enumerate(parameters(pairs)):
        p.grad = None if number == 1 else torch.ones_like(p)
    before = pairs[0].b.detach().clone()
    constraint.before_step()
    assert pairs[0].b.grad is None
    constraint.after_step()
    assert torch.equal(pairs[0].b.detach(), before)
    for p in parameters(pairs):
        p.grad = None
    constraint.before_step()
    constraint.after_step()
    assert float(constraint.measurements().get("removed_ratio", torch.zeros(()))) == 0.0


@pytest.mark.parametrize("kind", TYPES)
def test_a_gradient_against_the_memory_loses_a_good_part_of_itself(layers, make_pairs, make_memory, kind):
    pairs, memories = make_pairs(), [make_memory(0)]
    for pair in pairs:
        inner = memories[0].inputs[memories[0].groups[pair.module]]["energy"].dense()
        outer = memories[0].outputs[pair.module].dense()
        pair.a.grad = -(pair.b.T @ outer @ pair.b @ pair.a @ inner).detach()
        pair.b.grad = torch.zeros_like(pair.b)
    constraint = make_constraint(pairs, layers, memories, config(kind, constraint_strength=0.99))
    constraint.before_step()
    assert float(constraint.measurements()["removed_ratio"]) > 0.2


@pytest.mark.parametrize("kind", TYPES)
def test_a_memory_of_other_layers_is_refused(layers, make_pairs, make_memory, kind):
    memory = make_memory(0)
    del memory.groups["v"]
    with pytest.raises(ModelError, match="made for other layers"):
        make_constraint(make_pairs(), layers, [memory], config(kind))
