"""What objectives do to rows before a domain is trained: labels taken out, tokens added, columns attached."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from constrained_adapters.data.tokens import Tokens
from constrained_adapters.errors import ConfigError, ModelError, TrainingError
from constrained_adapters.objectives import (
    CrossEntropy,
    Distillation,
    LabelledRow,
    PromptLearning,
    SelectiveTokenMasking,
    Teachers,
    collate_labelled,
    make_objective,
    prepare_rows,
)
from constrained_adapters.objectives.distillation import IDS, LOG_PROBS

from .conftest import log_probabilities


def perplexities(model, row: Tokens) -> dict[int, float]:
    log_probs = log_probabilities(model, row)
    return {
        at: math.exp(-float(log_probs[at - 1, token]))
        for at, token in enumerate(row.labels)
        if at > 0 and token != -100
    }


def test_masking_takes_out_exactly_the_tokens_that_surprise_the_untouched_model(tiny_llama, rows):
    limit = float(np.median([value for row in rows for value in perplexities(tiny_llama, row).values()]))

    def wrong():
        raise AssertionError("not the model before the domain")

    prepared = prepare_rows(
        SelectiveTokenMasking(limit), rows, Teachers(before=wrong, untouched=lambda: tiny_llama)
    )
    num_masked = num_labels = 0
    for row, after in zip(rows, prepared.rows, strict=True):
        seen = perplexities(tiny_llama, row)
        kept = [at for at, value in seen.items() if value <= limit * (1 + 1e-5)]
        assert after.scored == kept
        expected = [label if at in kept else -100 for at, label in enumerate(row.labels)]
        assert after.labels == expected and after.input_ids == row.input_ids
        num_masked, num_labels = num_masked + len(seen) - len(kept), num_labels + len(seen)
    assert 0 < num_masked < num_labels
    assert prepared.facts["masked_ratio"] == pytest.approx(num_masked / num_labels)
    empty = sum(not row.scored for row in prepared.rows)
    assert prepared.facts["unlabelled_rows"] == empty


def test_a_domain_without_any_learnable_token_is_refused(rows, teachers):
    with pytest.raises(TrainingError, match="no token is left to learn"):
        prepare_rows(SelectiveTokenMasking(1.0001), rows, teachers)


def test_a_row_that_comes_again_is_prepared_once(rows, teachers):
    class Counting:
        def prepare(self, given, teachers):
            self.seen = len(given)
            return list(given)

    counting = Counting()
    dataset = prepare_rows(counting, [rows[1], rows[0], rows[1], rows[1]], teachers)
    assert counting.seen == 2
    assert [row.input_ids for row in dataset.rows] == [rows[i].input_ids for i in (1, 0, 1, 1)]
    assert dataset.rows[0] is dataset.rows[3]
    assert dataset.facts == {"masked_ratio": 0.0, "unlabelled_rows": 0.0}


@pytest.mark.parametrize("attention", ["sdpa", "flash_like"])
def test_the_teachers_columns_are_its_likeliest_tokens(tiny_llama, rows, teachers, monkeypatch, attention):
    if attention == "flash_like":  # a model that cannot read a tree
        monkeypatch.setattr("constrained_adapters.objectives.label_logits.tree_masks", lambda model: None)
    objective, k = Distillation(temperature=2.0, top_k=5), 5
    prepared = prepare_rows(objective, rows, teachers)
    for row, after in zip(rows, prepared.rows, strict=True):
        ids, log_probs = after.extras[IDS], after.extras[LOG_PROBS]
        assert (ids.dtype, log_probs.dtype) == (np.int32, np.float16)
        assert ids.shape == (len(after.scored), k) and log_probs.shape == (len(after.scored), k + 1)
        assert ids.base is None and log_probs.base is None
        with torch.no_grad():
            logits = tiny_llama(torch.tensor([row.input_ids])).logits[0, [at - 1 for at in after.scored]]
        full = (logits / 2.0).log_softmax(-1)
        expected, chosen = full.topk(k, dim=-1)
        assert torch.equal(torch.from_numpy(ids).long(), chosen)
        assert torch.allclose(torch.from_numpy(log_probs[:, :k]).float(), expected, atol=5e-3)
        assert np.allclose(np.exp(log_probs.astype(np.float64)).sum(-1), 1.0, atol=5e-3)
        assert not np.array_equal(ids[:, 0], [row.input_ids[at] for at in after.scored])


def test_a_model_that_is_its_own_teacher_has_nothing_to_learn_from_it(tiny_llama, rows, teachers):
    objective = Distillation(temperature=2.0, top_k=20)
    prepared = prepare_rows(objective, rows, teachers)
    batch = collate_labelled([prepared[i] for i in range(len(rows))], pad_token_id=0)
    with torch.no_grad():
        logits = tiny_llama(batch["input_ids"], batch["attention_mask"]).logits[:, :-1]
    scored = batch["scored"]
    columns = {name: column[scored] for name, column in batch["extras"].items()}
    loss = objective.loss(logits[scored[:, 1:]], batch["input_ids"][scored], columns)
    assert 0.0 <= float(loss) < 1e-3 * int(scored.sum())


def test_a_teacher_of_another_vocabulary_is_refused(rows, teachers):
    other = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=99,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
        )
    )
    with pytest.raises(ModelError, match=r"another vocabulary(?s:.*)99 tokens(?s:.*)264 tokens"):
        prepare_rows(Distillation(teacher=other), rows, teachers)


def test_prompts_are_scored_with_a_small_weight_and_count_for_nothing(rows, teachers):
    prepared = prepare_rows(PromptLearning(0.25), rows, teachers)
    for row, after in zip(rows, prepared.rows, strict=True):
        num_tokens = len(row.input_ids) - 1
        learnt = [at for at, label in enumerate(row.labels) if at > 0 and label != -100]
        assert after.labels == row.labels and after.scored == list(range(1, num_tokens + 1))
        weights = dict(zip(after.scored, after.extras["weight"].tolist(), strict=True))
        share = 0.25 * len(learnt) / num_tokens
        assert all(weights[at] == pytest.approx(share + (at in learnt)) for at in after.scored)
        assert sum(weights.values()) == pytest.approx(1.25 * len(learnt))


def test_the_prompts_objective_is_the_sum_of_two_means(tiny_llama, rows, teachers):
    row = rows[2]
    prepared = prepare_rows(make_objective(["prompts"]), [row], teachers).rows[0]
    log_probs = log_probabilities(tiny_llama, row).double()
    nats = {at: -float(log_probs[at - 1, row.input_ids[at]]) for at in range(1, len(row.input_ids))}
    learnt = [at for at, label in enumerate(row.labels) if at > 0 and label != -100]
    answer = sum(nats[at] for at in learnt) / len(learnt)
    everything = sum(nats.values()) / len(nats)
    logits = log_probs[[at - 1 for at in prepared.scored]]
    loss = CrossEntropy().loss(
        logits,
        torch.tensor([row.input_ids[at] for at in prepared.scored]),
        {"weight": torch.from_numpy(prepared.extras["weight"])},
    )
    assert float(loss) / len(learnt) == pytest.approx(answer + 0.25 * everything, rel=1e-6)


def test_columns_follow_the_labels_that_are_kept(rows, teachers, tiny_llama):
    limit = float(np.median([value for row in rows for value in perplexities(tiny_llama, row).values()]))
    all_three = make_objective(["distillation", "stm", "prompts"], settings={"stm": {"threshold": limit}})
    for row in prepare_rows(all_three, rows, teachers).rows:
        assert {len(column) for column in row.extras.values()} == {len(row.scored)}
        assert set(row.extras) == {"weight", IDS, LOG_PROBS}
    late = SelectiveTokenMasking(limit).prepare(
        Distillation(top_k=3).prepare([LabelledRow.of(row) for row in rows], teachers), teachers
    )
    early = Distillation(top_k=3).prepare(
        SelectiveTokenMasking(limit).prepare([LabelledRow.of(row) for row in rows], teachers), teachers
    )
    for one, other in zip(late, early, strict=True):
        assert one.scored == other.scored
        assert np.array_equal(one.extras[IDS], other.extras[IDS])


def test_a_row_whose_answer_is_masked_adds_nothing_of_its_prompt_either(rows, teachers, tiny_llama):
    everything = [perplexities(tiny_llama, Tokens(row.input_ids, row.input_ids)) for row in rows]
    answers = [perplexities(tiny_llama, row) for row in rows]
    limit = 0.999 * max(min(own.values()) for own in answers)  # the answer of that row is gone
    assert any(
        min(whole.values()) < limit < min(own.values())
        for whole, own in zip(everything, answers, strict=True)
    )
    both = make_objective(["stm", "prompts"], settings={"stm": {"threshold": limit}})
    prepared = prepare_rows(both, rows, teachers)
    assert 0 < prepared.facts["unlabelled_rows"] < len(rows)
    for row in prepared.rows:
        assert bool(row.scored) == any(label != -100 for label in row.labels[1:])
        assert len(row.extras["weight"]) == len(row.scored)


def test_a_batch_has_its_columns_where_they_are_scored(rows, teachers):
    prepared = prepare_rows(Distillation(top_k=3), rows, teachers)
    batch = collate_labelled([prepared[i] for i in (2, 0)], pad_token_id=7)
    assert batch["scored"].shape == batch["input_ids"].shape == (2, 12)
    assert batch["scored"].sum(-1).tolist() == [5, 3]
    assert batch["input_ids"][1, 9:].tolist() == [7, 7, 7]
    assert batch["extras"][IDS].shape == (2, 12, 3)
    joined = np.concatenate([prepared.rows[i].extras[IDS] for i in (2, 0)])
    assert np.array_equal(batch["extras"][IDS][batch["scored"]].numpy(), joined)
    assert not batch["extras"][IDS][~batch["scored"]].any()


def test_a_weight_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="weight of the prompts is out of range"):
        PromptLearning(0.0)
