"""Text that the base writes itself."""

from __future__ import annotations

import pytest
import torch

from constrained_adapters.errors import TrainingError
from constrained_adapters.memory.base_text import write_base_text


def test_rows_are_repeatable_and_leave_model_and_random_state_alone(tiny_llama):
    tiny_llama.train()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = write_base_text(tiny_llama, num_texts=5, length_tokens=12, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert tiny_llama.training
    again = write_base_text(tiny_llama, num_texts=5, length_tokens=12, seed=3)
    other = write_base_text(tiny_llama, num_texts=5, length_tokens=12, seed=4)
    assert [ids.tolist() for ids, _ in first] == [ids.tolist() for ids, _ in again]
    assert [ids.tolist() for ids, _ in first] != [ids.tolist() for ids, _ in other]


def test_every_token_but_the_start_carries_loss_and_nothing_follows_the_end(tiny_llama):
    end = tiny_llama.config.eos_token_id
    tiny_llama.lm_head.weight.data[end] *= 4.0  # so that some texts end early
    rows = write_base_text(tiny_llama, num_texts=64, length_tokens=12, seed=0)
    assert len(rows) == 64
    for ids, labels in rows:
        assert int(ids[0]) == end  # no start token of its own
        assert int(labels[0]) == -100 and torch.equal(labels[1:], ids[1:])
        assert 2 <= len(ids) <= 13
        assert end not in ids[1:-1].tolist()
        assert len(ids) == 13 or int(ids[-1]) == end
    assert len({len(ids) for ids, _ in rows}) > 1


def test_tokens_follow_the_model_at_temperature_one(tiny_llama):
    """Also where the model's own generation settings say otherwise."""
    tiny_llama.generation_config.repetition_penalty = 1.5
    rows = write_base_text(tiny_llama, num_texts=4000, length_tokens=1, seed=1)
    start = rows[0][0][:1].long()
    with torch.no_grad():
        probs = tiny_llama(input_ids=start[None]).logits[0, -1].softmax(-1)
    counts = torch.bincount(torch.stack([ids[1] for ids, _ in rows]).long(), minlength=len(probs)) / 4000
    noise = float((1 - probs.square().sum()).sqrt() / 4000**0.5)
    assert float((counts - probs).norm()) < 1.3 * noise


def test_each_module_stays_in_its_mode_even_where_it_is_interrupted(tiny_llama, monkeypatch):
    tiny_llama.train()
    tiny_llama.model.layers[0].eval()
    modes = [module.training for module in tiny_llama.modules()]
    write_base_text(tiny_llama, num_texts=2, length_tokens=2, seed=0)
    assert [module.training for module in tiny_llama.modules()] == modes

    def interrupted(**options):
        raise KeyboardInterrupt

    monkeypatch.setattr(tiny_llama, "generate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_base_text(tiny_llama, num_texts=2, length_tokens=2, seed=0)
    assert [module.training for module in tiny_llama.modules()] == modes


def test_a_broken_base_is_told_before_a_token_is_drawn(tiny_llama):
    tiny_llama.model.layers[1].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(TrainingError, match=r"cannot write text(?s:.*)logits of token 2"):
        write_base_text(tiny_llama, num_texts=2, length_tokens=4, seed=0)
