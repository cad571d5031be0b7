"""The joint memory against per-sequence gradients of the weights by autograd, in float64."""

from __future__ import annotations

import copy

import pytest
import torch

from constrained_adapters.errors import TrainingError
from constrained_adapters.memory.gather import gather_statistics
from constrained_adapters.memory.gradient_sketch import GradientSketch, SketchAccumulator
from constrained_adapters.memory.low_rank import LowRank
from constrained_adapters.memory.reservoir import pad_rows
from constrained_adapters.memory.rounding import packed_bytes

NAMES = [f"model.layers.{i}.self_attn.{n}" for i in (0, 1) for n in ("q_proj", "v_proj", "o_proj")]


def gather(model, rows, *, batch_size=3, seed=5, **settings) -> GradientSketch:
    modules = {name: model.get_submodule(name) for name in NAMES}
    batches = (pad_rows(rows[i : i + batch_size], "cpu") for i in range(0, len(rows), batch_size))
    listener = SketchAccumulator(**settings)
    generator = torch.Generator().manual_seed(seed)
    gather_statistics(model, modules, batches, generator=generator, accumulators=[listener])
    return listener.finish()


def oracle(model, rows, seed=5):
    """Per sequence the gradient of every weight on drawn labels; the mean one on the data's own."""
    model = copy.deepcopy(model).double()
    weights = [model.get_submodule(name).weight for name in NAMES]
    generator = torch.Generator().manual_seed(seed)
    drawn_gradients, own_sum, num_loss_tokens = [], [torch.zeros_like(w) for w in weights], 0
    for ids, labels in rows:
        place = [t for t in range(len(ids) - 1) if labels[t + 1] != -100]
        if not place:
            continue
        log_probs = model(input_ids=ids[None].long(), use_cache=False).logits[0].log_softmax(-1)
        uniform = [torch.rand(1, generator=generator).double() for _ in place]
        drawn = [int((log_probs[t].exp().cumsum(0) < u).sum()) for t, u in zip(place, uniform, strict=True)]
        loss = -sum(log_probs[t, label] for t, label in zip(place, drawn, strict=True))
        own = -sum(log_probs[t, int(labels[t + 1])] for t in place)
        drawn_gradients.append(torch.autograd.grad(loss, weights, retain_graph=True))
        own_sum = [
            total + part for total, part in zip(own_sum, torch.autograd.grad(own, weights), strict=True)
        ]
        num_loss_tokens += len(place)
    return drawn_gradients, [total / num_loss_tokens for total in own_sum], num_loss_tokens


def steps(model, seed=0, scale=0.05) -> dict[str, LowRank]:
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name in NAMES:
        d_out, d_in = model.get_submodule(name).weight.shape
        left = scale * torch.randn(d_out, 2, generator=generator)
        made[name] = LowRank(left, torch.randn(2, d_in, generator=generator))
    return made


def dense(deltas: dict[str, LowRank]) -> dict[str, torch.Tensor]:
    return {name: delta.dense() for name, delta in deltas.items()}


@pytest.mark.parametrize("kind", ["dense", "low rank"])
def test_with_enough_pairs_it_is_the_brute_force(tiny_llama, rows, kind):
    sketch = gather(tiny_llama, rows, rank=11, mean_rank=32)
    gradients, means, num_loss_tokens = oracle(tiny_llama, rows)
    assert (sketch.num_examples, sketch.num_loss_tokens) == (len(gradients), num_loss_tokens)
    assert sketch.kept_share == pytest.approx(1.0, abs=1e-4)
    deltas = steps(tiny_llama) if kind == "low rank" else dense(steps(tiny_llama))
    exact = [delta.double() for delta in dense(steps(tiny_llama)).values()]
    products = torch.stack(
        [sum((g * d).sum() for g, d in zip(each, exact, strict=True)) for each in gradients]
    )
    scale = float(products.abs().max())
    torch.testing.assert_close(sketch.inner_products(deltas).double(), products, rtol=0.02, atol=0.01 * scale)
    second = 0.5 * float(products.square().sum()) / num_loss_tokens
    first = float(sum((m * d).sum() for m, d in zip(means, exact, strict=True)))
    assert sketch.predicted_increase_nats(deltas) == pytest.approx(second, rel=0.02)
    size = second + float(sum(m.norm() * d.norm() for m, d in zip(means, exact, strict=True)))
    found = sketch.predicted_increase_nats(deltas, first_order=True)
    assert found == pytest.approx(first + second, abs=0.002 * size)


def test_k_pairs_hold_the_best_share(tiny_llama, rows):
    gradients, _, _ = oracle(tiny_llama, rows)
    whole = sum(float(g.square().sum()) for each in gradients for g in each)
    for rank in (1, 2, 4):
        best = sum(float(torch.linalg.svdvals(g)[:rank].square().sum()) for each in gradients for g in each)
        assert gather(tiny_llama, rows, rank=rank).kept_share == pytest.approx(best / whole, rel=2e-3)


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_it_does_not_depend_on_the_batch_size(tiny_llama, rows, batch_size):
    found = gather(tiny_llama, rows, batch_size=batch_size, rank=2)
    expected = gather(tiny_llama, rows, rank=2)
    assert found.num_loss_tokens == expected.num_loss_tokens
    deltas = steps(tiny_llama)
    torch.testing.assert_close(
        found.inner_products(deltas), expected.inner_products(deltas), rtol=0.02, atol=0.01
    )
    one, other = (each.predicted_increase_nats(deltas, first_order=True) for each in (found, expected))
    assert one == pytest.approx(other, rel=0.02)


def test_it_takes_no_more_examples_than_it_may(tiny_llama, rows):
    limited = gather(tiny_llama, rows, batch_size=3, max_examples=4)
    first = gather(tiny_llama, rows[:4], batch_size=3)
    assert limited.num_examples == first.num_examples == 4
    assert limited.num_loss_tokens == first.num_loss_tokens
    assert all(value.shape[0] == 4 for value in limited.left.values())


def test_gradient_checkpointing_changes_nothing(tiny_llama, rows):
    expected = gather(tiny_llama, rows).tensors()
    model = tiny_llama.train()
    model.activation_checkpointing_enable()
    found = gather(model, rows).tensors()
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_it_predicts_the_true_increase_where_kfac_sees_too_little(tiny_llama):
    """Many tokens, one small step of all layers: KL of the model before and after."""
    generator = torch.Generator().manual_seed(4)
    ids = [torch.randint(3, 259, (12,), generator=generator).int() for _ in range(400)]
    sketch = gather(tiny_llama, [(row, row) for row in ids], batch_size=100, rank=11, max_examples=400)
    deltas = dense(steps(tiny_llama, scale=0.002))
    moved = copy.deepcopy(tiny_llama)
    with torch.no_grad():
        for name, delta in deltas.items():
            moved.get_submodule(name).weight += delta
        batch = torch.stack(ids).long()
        before, after = (
            m(input_ids=batch).logits[:, :-1].double().log_softmax(-1) for m in (tiny_llama, moved)
        )
    divergence = float((before.exp() * (before - after)).sum(-1).mean())
    assert sketch.predicted_increase_nats(deltas) == pytest.approx(divergence, rel=0.2)


def test_it_comes_back_from_what_a_file_holds_and_has_the_bytes_that_are_stated(tiny_llama, rows):
    sketch = gather(tiny_llama, rows, rank=2, mean_rank=4)
    found = GradientSketch.restored(sketch.facts(), sketch.tensors())
    assert (found.num_loss_tokens, found.kept_share) == (sketch.num_loss_tokens, sketch.kept_share)
    deltas = steps(tiny_llama)
    one, other = (each.predicted_increase_nats(deltas, first_order=True) for each in (found, sketch))
    assert one == other
    assert all(torch.equal(value, found.tensors()[name]) for name, value in sketch.tensors().items())
    columns, widths = 6 * 2 + 4, [w for name in NAMES for w in tiny_llama.get_submodule(name).weight.shape]
    stated = sum(packed_bytes(width, columns) for width in widths)
    assert sum(t.numel() * t.element_size() for t in sketch.tensors().values()) == stated
    assert sum(widths) * columns < stated < 1.3 * sum(widths) * columns


def test_what_is_rounded_stays_as_it_is(tiny_llama, rows):
    sketch = gather(tiny_llama, rows)
    again = sketch.rounded()
    for name in NAMES:
        assert torch.equal(again.left[name], sketch.left[name])
        assert torch.equal(again.right[name], sketch.right[name])
        assert torch.equal(again.means[name].dense(), sketch.means[name].dense())


def test_the_data_s_own_labels_are_asked_for_until_it_is_full(tiny_llama, rows):
    listener, passes = SketchAccumulator(max_examples=4), []

    class Listener:
        wants_true_labels = False

        def start_batch(self, lengths, loss_lengths):
            passes.append(set())

        def add_inputs(self, name, key, inputs):
            pass

        def add_gradients(self, name, key, inputs, gradients, source):
            passes[-1].add(source)

        def end_batch(self):
            pass

    modules = {name: tiny_llama.get_submodule(name) for name in NAMES}
    batches = [pad_rows(rows[i : i + 2], "cpu") for i in (0, 2, 4)]
    generator = torch.Generator().manual_seed(5)
    gather_statistics(tiny_llama, modules, batches, generator=generator, accumulators=[listener, Listener()])
    asked, spared = {"states", "drawn", "own"}, {"states", "drawn"}
    counts = [int((each["labels"][:, 1:] != -100).any(1).sum()) for each in batches]
    full = [sum(counts[:i]) >= 4 for i in range(3)]
    assert passes == [spared if done else asked for done in full] and full[-1]
    assert listener.finish().num_examples == 4


def test_values_that_are_not_finite_are_an_error(tiny_llama, rows):
    tiny_llama.model.norm.weight.data[0] = float("nan")
    with pytest.raises(TrainingError, match="not finite"):
        gather(tiny_llama, rows)
