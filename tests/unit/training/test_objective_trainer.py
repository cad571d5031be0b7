"""One objective, however it is computed: as a tree or padded, in one batch or in several, stopped or not."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from constrained_adapters.config.run import TrainingConfig
from constrained_adapters.data.tokens import TokenDataset, Tokens, collate
from constrained_adapters.objectives import (
    LabelledDataset,
    LabelledRow,
    Teachers,
    collate_labelled,
    make_objective,
    prepare_rows,
)
from constrained_adapters.training.domain import train_domain, training_arguments
from constrained_adapters.training.objective_trainer import ObjectiveTrainer
from constrained_adapters.training.observer import SilentObserver

NAMES = {
    "plain": (),
    "stm": ("stm",),
    "distillation": ("distillation",),
    "everything": ("prompts", "stm", "distillation"),
}
SETTINGS = {
    "stm": {"threshold": 300.0},
    "distillation": {"temperature": 2.0, "top_k": 10},
    "prompts": {"weight": 0.25},
}


@pytest.fixture
def rows() -> list[Tokens]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for learnt in (3, 1, 5, 2, 4, 2, 1, 6):
        ids = [5, 6, 7, 8, *torch.randint(10, 250, (learnt + 3,), generator=generator).tolist()]
        made.append(Tokens(ids, [-100] * (len(ids) - learnt) + ids[-learnt:]))
    return made


def other(model) -> nn.Module:
    """A model before the domain that is not the one in training."""
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for number, parameter in enumerate(moved.parameters()):
            parameter.add_(
                0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            )
    return moved


def prepared(kind: str, rows, model, **options):
    objective = make_objective(
        NAMES[kind], settings={name: SETTINGS[name] for name in NAMES[kind]}, **options
    )
    teacher = other(model)
    dataset = prepare_rows(objective, rows, Teachers(before=lambda: teacher, untouched=lambda: teacher))
    return objective, dataset


def trainer_of(model, dataset, folder, *, objective, share=True, **settings) -> ObjectiveTrainer:
    arguments = training_arguments(
        TrainingConfig(
            steps=1, schedule="constant", warmup_ratio=0.0, optimizer="sgd", max_grad_norm=1e9, **settings
        ),
        learning_rate=1.0,
        seed=0,
        folder=folder,
        on_cpu=True,
        in_order=True,
    )
    labelled = isinstance(dataset, LabelledDataset)
    return ObjectiveTrainer(
        objective=objective,
        share_prefixes=share,
        model=model,
        args=arguments,
        train_dataset=dataset,
        data_collator=lambda each: (collate_labelled if labelled else collate)(each, 0),
    )


def step_of(model, dataset, folder, **options) -> dict[str, torch.Tensor]:
    """How far one step of gradient descent at rate 1 moves each weight."""
    own = copy.deepcopy(model)
    trainer_of(own, dataset, folder, **options).train()
    return {
        name: before.detach() - after.detach()
        for (name, before), after in zip(model.named_parameters(), own.parameters(), strict=True)
    }


def assert_same(ours, theirs, rtol: float = 1e-4) -> None:
    largest = max(float(value.abs().max()) for value in theirs.values())
    assert largest > 0
    for name, value in ours.items():
        assert torch.allclose(value, theirs[name], rtol=rtol, atol=1e-5 * largest), name


@pytest.mark.parametrize("kind", NAMES)
def test_a_step_is_the_same_as_a_tree_or_padded_and_in_one_batch_or_in_four(tiny_llama, rows, tmp_path, kind):
    objective, dataset = prepared(kind, rows, tiny_llama)
    assert (0.0 < dataset.facts["masked_ratio"] < 1.0) == ("stm" in NAMES[kind])
    whole = step_of(tiny_llama, dataset, tmp_path, objective=objective, batch_size=8, share=False)
    for share, batch_size in [(True, 8), (True, 2), (False, 2)]:
        step = step_of(
            tiny_llama,
            dataset,
            tmp_path,
            objective=objective,
            share=share,
            batch_size=batch_size,
            gradient_accumulation_steps=8 // batch_size,
        )
        assert_same(step, whole)


def test_a_step_is_the_gradient_of_the_objective_over_the_number_of_labels(tiny_llama, rows, tmp_path):
    objective, dataset = prepared("everything", rows, tiny_llama, label_smoothing=0.1)
    step = step_of(
        tiny_llama, dataset, tmp_path, objective=objective, batch_size=4, gradient_accumulation_steps=2
    )
    own = copy.deepcopy(tiny_llama)
    total = torch.zeros(())
    for row in dataset.rows:  # row by row, without padding
        if row.scored:
            logits = own(torch.tensor([row.input_ids])).logits[0, [at - 1 for at in row.scored]]
            extras = {name: torch.from_numpy(column) for name, column in row.extras.items()}
            total = total + objective.loss(
                logits, torch.tensor([row.input_ids[at] for at in row.scored]), extras
            )
    num_labels = sum(label != -100 for row in dataset.rows for label in row.labels)
    (total / num_labels).backward()
    assert_same(step, {name: parameter.grad for name, parameter in own.named_parameters()})


@pytest.mark.parametrize("share", [True, False])
def test_plain_cross_entropy_is_the_stock_loss_bit_for_bit_where_nothing_is_shared(
    tiny_llama, rows, tmp_path, share
):
    batch = collate([TokenDataset(rows)[i] for i in range(8)], 0)
    trainer = trainer_of(
        tiny_llama, TokenDataset(rows), tmp_path, objective=make_objective(), share=share, batch_size=8
    )
    count = int((batch["labels"] != -100).sum())
    with torch.no_grad():
        ours = trainer.compute_loss(tiny_llama, dict(batch), num_items_in_batch=count)
        stock = tiny_llama(**batch, num_items_in_batch=count).loss
    assert torch.equal(ours, stock) if not share else torch.allclose(ours, stock, rtol=1e-6)


def test_a_batch_without_labels_adds_nothing_and_breaks_nothing(tiny_llama, rows, tmp_path):
    objective, dataset = prepared("everything", rows, tiny_llama)
    bare = [
        LabelledRow(row.input_ids, [-100] * len(row.input_ids), [], {n: c[:0] for n, c in row.extras.items()})
        for row in dataset.rows
    ]
    labelled = LabelledDataset([*dataset.rows[:4], *bare[4:]], {})
    half = LabelledDataset(dataset.rows[:4], {})
    options = {"objective": objective, "batch_size": 4}
    for share in (True, False):
        alone = step_of(tiny_llama, half, tmp_path, share=share, **options)
        mixed = step_of(tiny_llama, labelled, tmp_path, share=share, gradient_accumulation_steps=2, **options)
        assert_same(mixed, alone)
        nothing = step_of(tiny_llama, LabelledDataset(bare[:4], {}), tmp_path, share=share, **options)
        assert all(not value.any() for value in nothing.values())


def run(model, tokenizer, dataset, folder, objective, observer=None, **settings):
    return train_domain(
        model,
        tokenizer,
        dataset,
        TrainingConfig(steps=4, batch_size=2, checkpoint_every_steps=2, **settings),
        method="m",
        domain="d",
        learning_rate=1e-2,
        seed=0,
        folder=folder,
        observer=observer or SilentObserver(),
        objective=objective,
    )


class StopError(Exception):
    """In the middle of a domain."""


class StopAtThree(SilentObserver):
    def steps(self, method, domain, done, total, loss):
        if done == 3:
            raise StopError


def test_terms_are_curves_that_add_up_to_the_loss_and_survive_a_stop(
    tiny_llama, tiny_tokenizer, rows, tmp_path
):
    objective, dataset = prepared("distillation", rows, tiny_llama, weights={"distillation": 0.5})
    settings = {"gradient_accumulation_steps": 2}
    whole = run(copy.deepcopy(tiny_llama), tiny_tokenizer, dataset, tmp_path / "a", objective, **settings)
    loss, plain, distilled = (
        whole.curves[name] for name in ("loss", "loss_cross_entropy", "loss_distillation")
    )
    assert loss[0] == plain[0] == distilled[0] == [1, 2, 3, 4]
    assert torch.tensor(plain[1]) + torch.tensor(distilled[1]) == pytest.approx(torch.tensor(loss[1]))
    assert all(value > 0 for value in distilled[1])

    model = copy.deepcopy(tiny_llama)
    with pytest.raises(StopError):
        run(model, tiny_tokenizer, dataset, tmp_path / "b", objective, StopAtThree(), **settings)
    again = run(copy.deepcopy(tiny_llama), tiny_tokenizer, dataset, tmp_path / "b", objective, **settings)
    for name in ("loss", "loss_cross_entropy", "loss_distillation"):
        assert again.curves[name] == whole.curves[name]


def test_distillation_keeps_the_model_near_its_teacher(tiny_llama, tiny_tokenizer, rows, tmp_path):
    def drift(weight: float) -> float:
        model = copy.deepcopy(tiny_llama)
        objective = make_objective(["distillation"], weights={"distillation": weight})
        before = copy.deepcopy(tiny_llama)
        dataset = prepare_rows(objective, rows, Teachers(before=lambda: before, untouched=lambda: before))
        run(model, tiny_tokenizer, dataset, tmp_path / str(weight), objective)
        ids = torch.tensor([row.input_ids[:7] for row in rows])
        with torch.no_grad():
            p, q = (m(ids).logits.log_softmax(-1) for m in (model, before))
        return float((q.exp() * (q - p)).sum(-1).mean())

    assert drift(10.0) < 0.5 * drift(0.0)


def test_staged_rates_and_rates_of_their_own_survive_a_stop(tiny_llama, tiny_tokenizer, rows, tmp_path):
    def trained(folder, observer=None):
        model = copy.deepcopy(tiny_llama)
        record = train_domain(
            model,
            tiny_tokenizer,
            TokenDataset(rows),
            TrainingConfig(
                steps=6,
                batch_size=2,
                checkpoint_every_steps=2,
                schedule="staged",
                stage_ratios=[0.1, 0.3, 1.0],
                warmup_ratio=0.0,
                weight_decay=0.1,
            ),
            method="m",
            domain="d",
            learning_rate=1e-2,
            seed=0,
            folder=tmp_path / folder,
            observer=observer or SilentObserver(),
            rate_ratios={"lm_head.weight": 0.1, "model.norm.weight": 0.5},
        )
        return model, record

    model, record = trained("a")
    assert record.curves["learning_rate"][1] == pytest.approx([1e-3, 1e-3, 3e-3, 3e-3, 1e-2, 1e-2])
    with pytest.raises(StopError):
        trained("b", StopAtThree())
    again, _ = trained("b")
    for (name, one), other in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other), name

    def moved(name: str) -> float:
        before, after = (m.get_parameter(name).detach() for m in (tiny_llama, model))
        return float((after - before).abs().max())

    assert 0 < moved("lm_head.weight") < 0.2 * moved("model.layers.0.mlp.up_proj.weight")
