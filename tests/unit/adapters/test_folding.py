"""Folded adapters of one layer against the sum of their ΔW in float64, and against PEFT's loop."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from peft.tuners.lora import Linear as LoraLinear
from torch import nn
from transformers.pytorch_utils import Conv1D

from constrained_adapters.adapters.acting import ActingAdapters
from constrained_adapters.adapters.concatenate import concatenate
from constrained_adapters.adapters.folding import Fold

D_IN, D_OUT = 12, 10


def adapted(base: nn.Module, ranks: list[int], seed: int = 0, **changes) -> LoraLinear:
    """A layer of PEFT with one random adapter per rank, named a0, a1, …"""
    base.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    transposed = isinstance(base, Conv1D)
    layer = None
    for number, rank in enumerate(ranks):
        config = LoraConfig(r=rank, lora_alpha=rank, fan_in_fan_out=transposed, **changes)
        if layer is None:
            layer = LoraLinear(
                base, "a0", config, r=rank, lora_alpha=rank, is_target_conv_1d_layer=transposed
            )
        else:
            layer.update_layer(f"a{number}", rank, lora_alpha=rank, config=config)
        for part in (layer.lora_A, layer.lora_B):
            part[f"a{number}"].weight.data.normal_(generator=generator)
    return layer


def exact(layer, weights: dict[str, float]) -> torch.Tensor:
    """``W + Σ w ΔW`` in float64, laid out (d_out, d_in)."""
    base = layer.base_layer
    total = (base.weight.t() if isinstance(base, Conv1D) else base.weight).detach().double()
    for name, weight in weights.items():
        total = total + weight * layer.lora_B[name].weight.double() @ layer.lora_A[name].weight.double()
    return total.detach()


def weigh(layer, weights: dict[str, float]) -> None:
    for name, weight in weights.items():
        layer.set_scale(name, weight)


numbers = st.floats(-2, 2, allow_nan=False, width=32)


@settings(deadline=None, max_examples=40)
@given(
    parts=st.lists(st.tuples(st.integers(1, 5), numbers), min_size=1, max_size=5),
    transposed=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_number_of_weighted_adapters_is_one_weight(parts, transposed, seed):
    torch.manual_seed(seed)
    base = Conv1D(D_OUT, D_IN) if transposed else nn.Linear(D_IN, D_OUT)
    layer = adapted(base, [rank for rank, _ in parts], seed)
    weights = {f"a{number}": weight for number, (_, weight) in enumerate(parts)}
    weigh(layer, weights)
    before = base.weight.detach().clone()
    fold = Fold(layer)
    fold.refresh(list(weights), [])
    x = torch.randn(3, 4, D_IN)
    wanted = x.double() @ exact(layer, weights).T + base.bias.detach().double()
    torch.testing.assert_close(fold.output(x).double(), wanted, rtol=1e-4, atol=1e-4)
    assert fold.weight.shape == base.weight.shape and torch.equal(base.weight, before)
    a, b = concatenate(layer, {name: layer.scaling[name] for name in weights}, torch.float64)
    torch.testing.assert_close(b @ a, exact(layer, weights) - exact(layer, {}), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("dtype", "unit"), [(torch.bfloat16, 2.0**-8), (torch.float16, 2.0**-11)])
def test_sixteen_bits_are_rounded_once_however_many_adapters(dtype, unit):
    torch.manual_seed(0)
    layer = adapted(nn.Linear(D_IN, D_OUT, dtype=dtype), [2] * 12)
    weights = {f"a{number}": 0.01 * (number + 1) for number in range(12)}
    weigh(layer, weights)
    fold = Fold(layer)
    fold.refresh(list(weights), [])
    assert fold.weight.dtype == dtype
    wanted = exact(layer, weights)
    error = (fold.weight.double() - wanted).abs()
    assert bool((error <= 1.001 * unit * wanted.abs() + 1e-6).all())
    one_by_one = layer.base_layer.weight.detach().clone()
    for name, weight in weights.items():
        one_by_one += (weight * layer.lora_B[name].weight @ layer.lora_A[name].weight).detach().to(dtype)
    assert float(error.norm()) < 0.8 * float((one_by_one.double() - wanted).norm())


def test_another_set_is_written_into_the_same_buffer():
    layer = adapted(nn.Linear(D_IN, D_OUT), [2, 3, 4])
    fold = Fold(layer)
    fold.refresh(["a0", "a1"], [])
    place = fold.weight.data_ptr()
    for weights in ({"a0": 0.5, "a1": -1.0}, {"a2": 0.1}, {"a0": 1.0, "a2": 3.0}):
        weigh(layer, weights)
        fold.refresh(list(weights), [])
        assert fold.weight.data_ptr() == place
        torch.testing.assert_close(fold.weight.double(), exact(layer, weights), rtol=1e-4, atol=1e-4)
    fold.refresh(["a1"], ["a1"])
    assert not fold.in_force and fold.weight is None


def test_nothing_is_computed_where_nothing_has_changed(monkeypatch):
    layer = adapted(nn.Linear(D_IN, D_OUT), [2, 3])
    fold = Fold(layer)
    fold.refresh(["a0"], [])
    monkeypatch.setattr(fold, "_merge", lambda scalings: pytest.fail("merged again"))
    fold.refresh(["a0"], [])
    fold.refresh(["a0", "a1"], ["a1"])
    assert not fold.base_has_changed() and not fold.adapters_have_changed()


@pytest.mark.parametrize("what", ["base", "base_moved", "adapter", "scaling"])
def test_what_is_written_from_outside_is_seen(what):
    layer = adapted(nn.Linear(D_IN, D_OUT), [2])
    acting = ActingAdapters()
    acting.adopt({"layer": layer})
    acting.act(["a0"], [])
    x = torch.randn(2, D_IN)
    layer(x)
    with torch.no_grad():
        if what == "base":
            layer.base_layer.weight += 1.0
        elif what == "base_moved":
            layer.base_layer.weight.data = layer.base_layer.weight.data.clone() * 2
        elif what == "adapter":
            layer.lora_B["a0"].weight += 1.0
        else:
            layer.scale_layer(0.25)
    scale = layer.scaling["a0"]
    wanted = x.double() @ exact(layer, {"a0": scale}).T + layer.base_layer.bias.double()
    torch.testing.assert_close(layer(x).double(), wanted, rtol=1e-4, atol=1e-4)


def test_a_set_with_more_than_plain_lora_is_left_to_peft():
    layer = adapted(nn.Linear(D_IN, D_OUT), [2])
    config = LoraConfig(r=2, lora_alpha=2, use_dora=True)
    layer.update_layer("dora", 2, lora_alpha=2, config=config)
    acting = ActingAdapters()
    acting.adopt({"layer": layer})
    x = torch.randn(2, D_IN)
    acting.act(["a0", "dora"], [])
    wanted = type(layer).forward(layer, x)
    assert torch.equal(layer(x), wanted)
    assert not acting.layers["layer"].fold.in_force and not acting.mixable("dora")
    acting.act(["a0"], [])
    layer(x)
    assert acting.layers["layer"].fold.in_force and acting.mixable("a0")


def test_what_was_folded_while_inferring_under_autocast_can_be_trained_on():
    """It is neither an inference tensor nor rounded to autocast's type."""
    layer = adapted(nn.Linear(D_IN, D_OUT), [2, 3])
    acting = ActingAdapters()
    acting.adopt({"layer": layer})
    acting.act(["a0", "a1"], ["a1"])
    layer.lora_A["a1"].requires_grad_(True)
    x = torch.randn(2, D_IN, requires_grad=True)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    layer(x).square().sum().backward()
    fold = acting.layers["layer"].fold
    torch.testing.assert_close(fold.weight.double(), exact(layer, {"a0": 1.0}), rtol=1e-5, atol=1e-5)
    found = x.grad, layer.lora_A["a1"].weight.grad.clone()
    x.grad = layer.lora_A["a1"].weight.grad = None
    type(layer).forward(layer, x).square().sum().backward()  # PEFT's loop
    torch.testing.assert_close(found, (x.grad, layer.lora_A["a1"].weight.grad), rtol=1e-4, atol=1e-4)


def test_a_base_that_is_trained_itself_keeps_its_gradient():
    layer = adapted(nn.Linear(D_IN, D_OUT), [2, 3])
    layer.base_layer.weight.requires_grad_(True)
    acting = ActingAdapters()
    acting.adopt({"layer": layer})
    acting.act(["a0", "a1"], [])
    x = torch.randn(2, D_IN)
    layer(x).square().sum().backward()
    found = layer.base_layer.weight.grad.clone()
    layer.base_layer.weight.grad = None
    type(layer).forward(layer, x).square().sum().backward()
    torch.testing.assert_close(found, layer.base_layer.weight.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", [4, 8])
def test_packed_weights_are_never_merged(bits):
    bnb = pytest.importorskip("bitsandbytes")
    from peft.tuners.lora.bnb import Linear4bit, Linear8bitLt

    torch.manual_seed(0)
    plain = nn.Linear(64, 64, bias=False)
    if bits == 4:
        base = bnb.nn.Linear4bit(64, 64, bias=False, compute_dtype=torch.float32)
        base.weight = bnb.nn.Params4bit(plain.weight.data, requires_grad=False)
    else:
        base = bnb.nn.Linear8bitLt(64, 64, bias=False, has_fp16_weights=False)
        base.weight = bnb.nn.Int8Params(plain.weight.data, requires_grad=False, has_fp16_weights=False)
    base = base.to("cpu")
    config = LoraConfig(r=3, lora_alpha=3)
    kind = Linear4bit if bits == 4 else Linear8bitLt
    layer = kind(base, "a0", config=config, r=3, lora_alpha=3)
    layer.update_layer("a1", 3, lora_alpha=3, config=config)
    for name in ("a0", "a1"):
        layer.lora_A[name].weight.data.normal_()
        layer.lora_B[name].weight.data.normal_()
    weigh(layer, {"a0": 0.5, "a1": -2.0})
    x = torch.randn(2, 5, 64)
    layer(x)  # the first call may pack the weight
    packed = layer.base_layer.weight.data.clone()
    layer.set_adapter(["a0", "a1"])
    wanted = layer(x)
    acting = ActingAdapters()
    acting.adopt({"layer": layer})
    acting.act(["a0", "a1"], [])
    torch.testing.assert_close(layer(x), wanted, rtol=1e-4, atol=1e-4)
    fold = acting.layers["layer"].fold
    assert fold.in_force and fold.weight is None
    assert torch.equal(layer.base_layer.weight.data, packed)
