"""The statistics against a brute-force oracle: one row at a time, unpadded, float64, without hooks."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from torch import nn

from constrained_adapters.errors import TrainingError
from constrained_adapters.memory.gather import gather_statistics
from constrained_adapters.memory.kfac import KFACMemory
from constrained_adapters.memory.reservoir import pad_rows
from constrained_adapters.memory.statistics import Statistics

LLAMA_LAYERS = ["self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj"]
LLAMA = [f"model.layers.{index}.{name}" for index in (0, 1) for name in LLAMA_LAYERS]
GPT2 = [f"transformer.h.{index}.attn.{name}" for index in (0, 1) for name in ("c_attn", "c_proj")]
KINDS = ("energy", "sensitivity", "output")


class Probe(nn.Module):
    """Adds a tensor of zeros to a layer's output, whose gradient is then the output's."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, source):
        output = self.inner(source)
        self.source = source.detach()
        self.zero = torch.zeros_like(output, requires_grad=True)
        return output + self.zero


def oracle(model, names, rows, seed):
    """Sums over single tokens, as the module's docstring defines them; per module, nothing shared."""
    model = copy.deepcopy(model).double()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    probes = {}
    for name in names:
        probes[name] = Probe(model.get_submodule(name))
        model.set_submodule(name, probes[name])
    generator = torch.Generator().manual_seed(seed)
    signs = torch.Generator().manual_seed(seed + 1)
    states = {}
    model.get_output_embeddings().register_forward_pre_hook(lambda _, args: states.update(h=args[0]))
    sums = {kind: dict.fromkeys(names, 0.0) for kind in KINDS}
    num_tokens = num_loss_tokens = loss_nats = 0
    for ids, labels in rows:
        place = [t for t in range(len(ids) - 1) if labels[t + 1] != -100]
        if not place:
            continue
        log_probs = model(input_ids=ids[None].long(), use_cache=False).logits[0].log_softmax(-1)
        loss = 0.0
        for t in place:
            uniform = torch.rand(1, generator=generator).double()
            drawn = int((log_probs[t].exp().cumsum(0) < uniform).sum())
            loss = loss - log_probs[t, drawn]
            loss_nats -= float(log_probs[t, labels[t + 1]].detach())
        h = states["h"][0, place]
        moved = (h * (2 * torch.randint(0, 2, h.shape, generator=signs) - 1)).sum()
        zeros = [probes[name].zero for name in names]
        jacobians = torch.autograd.grad(moved, zeros, retain_graph=True)
        gradients = torch.autograd.grad(loss, zeros)
        for name, jacobian, gradient in zip(names, jacobians, gradients, strict=True):
            for a, j, g in zip(probes[name].source[0], jacobian[0], gradient[0], strict=True):
                sums["energy"][name] += torch.outer(a, a)
                sums["sensitivity"][name] += j.norm() * torch.outer(a, a)
                sums["output"][name] += torch.outer(g, g)
        num_tokens += len(ids)
        num_loss_tokens += len(place)
    return sums, num_tokens, num_loss_tokens, loss_nats / num_loss_tokens


def gather(model, names, rows, *, batch_size=3, seed=5, **settings):
    modules = {name: model.get_submodule(name) for name in names}
    batches = (pad_rows(rows[i : i + batch_size], "cpu") for i in range(0, len(rows), batch_size))
    return gather_statistics(
        model, modules, batches, generator=torch.Generator().manual_seed(seed), **settings
    )


@pytest.mark.parametrize(("fixture", "names"), [("tiny_llama", LLAMA), ("tiny_gpt2", GPT2)])
def test_statistics_equal_brute_force_over_single_tokens(request, fixture, names, rows):
    model = request.getfixturevalue(fixture).double()
    stats = gather(model, names, rows)
    sums, num_tokens, num_loss_tokens, loss_nats = oracle(model, names, rows, seed=5)

    assert (stats.num_tokens, stats.num_loss_tokens) == (num_tokens, num_loss_tokens)
    assert stats.loss_nats == pytest.approx(loss_nats, rel=1e-5)
    assert set(stats.output) == set(stats.groups) == set(names)
    for name in names:
        members = [other for other in names if stats.groups[other] == name]
        if members:
            close(stats.energy[name], sums["energy"][name] / num_tokens)
            even = [sums["sensitivity"][m] / sums["sensitivity"][m].trace() for m in members]
            close(stats.sensitivity[name], sum(even) / len(even))
        close(stats.output[name], sums["output"][name] / num_loss_tokens)


def close(found, expected):
    assert found.dtype == torch.float32
    scale = float(expected.abs().max())
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5 * scale)


def test_only_modules_with_the_same_input_share_a_key(tiny_llama, rows):
    groups = gather(tiny_llama, LLAMA, rows).groups
    for layer in ("model.layers.0.", "model.layers.1."):
        short = {name.removeprefix(layer): key for name, key in groups.items() if name.startswith(layer)}
        assert short == {
            "self_attn.q_proj": f"{layer}self_attn.q_proj",
            "self_attn.v_proj": f"{layer}self_attn.q_proj",
            "self_attn.o_proj": f"{layer}self_attn.o_proj",
            "mlp.gate_proj": f"{layer}mlp.gate_proj",
            "mlp.up_proj": f"{layer}mlp.gate_proj",
        }


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_the_result_does_not_depend_on_the_batch_size(tiny_llama, rows, batch_size):
    found, expected = gather(tiny_llama, LLAMA, rows, batch_size=batch_size), gather(tiny_llama, LLAMA, rows)
    assert found.groups == expected.groups
    assert (found.num_tokens, found.num_loss_tokens) == (expected.num_tokens, expected.num_loss_tokens)
    assert found.num_examples == expected.num_examples == 6
    for kind in KINDS:
        for name, value in getattr(expected, kind).items():
            close(getattr(found, kind)[name], value.double())


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_only_the_first_examples_make_the_output_factor(tiny_llama, rows, batch_size):
    loss = [row for row in rows if (row[1][1:] != -100).any()]
    found = gather(tiny_llama, LLAMA, rows, batch_size=batch_size, drawn_examples=3)
    few, every = gather(tiny_llama, LLAMA, loss[:3]), gather(tiny_llama, LLAMA, rows)
    for name in LLAMA:
        close(found.output[name], few.output[name].double())
    for name, value in every.sensitivity.items():
        close(found.sensitivity[name], value.double())


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_energy_can_be_of_the_first_examples_only(tiny_llama, rows, batch_size):
    loss = [row for row in rows if (row[1][1:] != -100).any()]
    found = gather(tiny_llama, LLAMA, rows, batch_size=batch_size, energy_examples=3)
    few, every = gather(tiny_llama, LLAMA, loss[:3]), gather(tiny_llama, LLAMA, rows)
    assert found.num_tokens == few.num_tokens and found.num_loss_tokens == every.num_loss_tokens
    for name, value in few.energy.items():
        close(found.energy[name], value.double())
        close(found.sensitivity[name], every.sensitivity[name].double())


def test_no_logits_are_made_where_no_label_is_drawn(tiny_llama, tiny_gpt2, rows):
    """The output layer sees one position of a row then, and the final states are the same."""
    for model, names in ((tiny_llama, LLAMA), (tiny_gpt2, GPT2)):
        seen = []
        handle = model.get_output_embeddings().register_forward_hook(
            lambda module, args, output, seen=seen: seen.append(output.shape[1])
        )
        found = gather(model, names, rows, batch_size=2, drawn_examples=2)
        handle.remove()
        assert seen[0] > 1 and seen[1:] == [1, 1, 1]
        expected = gather(model, names, rows, batch_size=2, drawn_examples=7)
        loss = [row for row in rows if (row[1][1:] != -100).any()]
        assert found.loss_nats == pytest.approx(gather(model, names, loss[:2]).loss_nats, rel=1e-5)
        for name, value in expected.sensitivity.items():
            close(found.sensitivity[name], value.double())


def test_what_stands_in_the_padding_does_not_count(tiny_llama, rows):
    modules = {name: tiny_llama.get_submodule(name) for name in LLAMA}
    results = []
    for filling in (0, 200):
        batch = pad_rows(rows, "cpu")
        batch["input_ids"][batch["attention_mask"] == 0] = filling
        results.append(
            gather_statistics(tiny_llama, modules, [batch], generator=torch.Generator().manual_seed(1))
        )
    for kind in KINDS:
        for name, value in getattr(results[0], kind).items():
            assert torch.equal(getattr(results[1], kind)[name], value)


def test_the_model_and_the_global_random_state_are_left_as_they_were(tiny_llama, rows):
    model = tiny_llama.train()
    model.model.layers[1].eval()
    model.lm_head.weight.requires_grad_(False)
    model.model.norm.weight.grad = torch.full_like(model.model.norm.weight, 3.0)
    before = copy.deepcopy(model)
    torch.manual_seed(0)
    random_state = torch.get_rng_state()

    gather(model, LLAMA, rows)

    assert torch.equal(torch.get_rng_state(), random_state)
    assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
    assert all(not m._forward_hooks and not m._backward_hooks for m in model.modules())
    for found, expected in zip(model.parameters(), before.parameters(), strict=True):
        assert torch.equal(found, expected) and found.requires_grad == expected.requires_grad
    with_gradient = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert set(with_gradient) == {"model.norm.weight"}
    assert bool((with_gradient["model.norm.weight"] == 3.0).all())
    assert torch.is_grad_enabled()


def test_it_works_within_no_grad_and_leaves_it_off(tiny_llama, rows):
    with torch.no_grad():
        assert gather(tiny_llama, LLAMA, rows).num_examples == 6
        assert not torch.is_grad_enabled()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_an_error_and_the_hooks_come_off(tiny_llama, rows, bad):
    tiny_llama.model.norm.weight.data[0] = bad
    with pytest.raises(TrainingError, match="not finite"):
        gather(tiny_llama, LLAMA, rows)
    assert all(not m._forward_hooks for m in tiny_llama.modules())
    assert all(p.requires_grad for p in tiny_llama.parameters())


def test_examples_without_a_loss_token_are_an_error(tiny_llama, rows):
    silent = [(ids, torch.full_like(labels, -100)) for ids, labels in rows]
    with pytest.raises(TrainingError, match="no token of these examples carries loss"):
        gather(tiny_llama, LLAMA, silent)


def test_labels_are_drawn_from_the_model_itself(tiny_llama):
    """Over many draws the factor of the logits is their Fisher, diag(p) − p pᵀ, up to sampling noise."""
    model = tiny_llama
    ids = torch.tensor([7, 9]).int()
    rows = [(ids, ids)] * 4096
    stats = gather(model, ["lm_head"], rows, batch_size=512, drawn_examples=4096)
    with torch.no_grad():
        probs = model(input_ids=ids[None, :1].long()).logits[0, 0].softmax(-1)
    fisher = torch.diag(probs) - torch.outer(probs, probs)
    noise = float((1 - probs.square().sum()).sqrt() / 4096**0.5 / fisher.norm())
    assert float((stats.output["lm_head"] - fisher).norm() / fisher.norm()) < 1.3 * noise


def test_wide_layers_are_sketched_and_no_square_matrix_is_made(tiny_llama, rows):
    modules = {name: tiny_llama.get_submodule(name) for name in LLAMA}
    batches = [pad_rows(rows[:4], "cpu"), pad_rows(rows[4:], "cpu")]
    settings = {"generator": torch.Generator().manual_seed(5), "wide": 31, "sketch_rows": 33}
    found, expected = (
        gather_statistics(tiny_llama, modules, batches, **settings),
        gather(tiny_llama, LLAMA, rows, batch_size=4),
    )
    for kind in KINDS:
        for name, value in getattr(expected, kind).items():
            sketch = getattr(found, kind)[name]
            if value.shape[0] > 31:
                assert sketch.rows.shape[0] <= 66
                close(sketch.rows.T @ sketch.rows, value.double())
                close(sketch.diagonal, value.double().diagonal())
            else:
                close(sketch, value.double())
    kept = KFACMemory.from_statistics(
        found, domain="d", base_fingerprint="", shares={"sensitivity": 0.97, "energy": 0.97}, input_rank=12
    )
    same = KFACMemory.from_statistics(
        expected, domain="d", base_fingerprint="", shares={"sensitivity": 0.97, "energy": 0.97}, input_rank=12
    )
    deltas = {name: torch.ones(module.weight.shape) for name, module in modules.items()}
    assert kept.predicted_increase_nats(deltas) == pytest.approx(
        same.predicted_increase_nats(deltas), rel=0.02
    )


def test_sketches_do_not_depend_on_the_batch_size(tiny_llama, rows):
    modules = {name: tiny_llama.get_submodule(name) for name in LLAMA}
    found = []
    for size in (1, 4, 7):
        batches = (pad_rows(rows[i : i + size], "cpu") for i in range(0, len(rows), size))
        generator = torch.Generator().manual_seed(5)
        stats = gather_statistics(tiny_llama, modules, batches, generator=generator, wide=8, sketch_rows=6)
        found.append(stats)
    for kind in KINDS:
        for name, value in getattr(found[0], kind).items():
            for other in (getattr(stats, kind)[name] for stats in found[1:]):
                torch.testing.assert_close(other.diagonal, value.diagonal, rtol=1e-4, atol=1e-6)
                expected = value.rows.T @ value.rows
                scale = float(expected.abs().max())
                torch.testing.assert_close(other.rows.T @ other.rows, expected, rtol=1e-3, atol=1e-4 * scale)


def test_gradient_checkpointing_counts_nothing_twice(tiny_llama, rows):
    expected = gather(tiny_llama, LLAMA, rows)
    model = tiny_llama.train()
    model.activation_checkpointing_enable()
    found = gather(model, LLAMA, rows)
    assert model.training
    for kind in KINDS:
        for name, value in getattr(expected, kind).items():
            assert torch.equal(getattr(found, kind)[name], value)


def test_nothing_of_the_pass_stays_in_memory(tiny_llama, rows):
    """The last batch's states would keep every statistic alive, over their graph and its hooks."""
    gc.collect()
    before = sum(type(each) is Statistics for each in gc.get_objects())
    gather(tiny_llama, LLAMA, rows)
    gc.collect()
    assert sum(type(each) is Statistics for each in gc.get_objects()) == before
