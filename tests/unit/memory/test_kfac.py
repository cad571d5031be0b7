"""The compressed memory: its formula, where it is exact, and its file."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from constrained_adapters.errors import WorkspaceError
from constrained_adapters.memory.gather import Statistics, gather_statistics
from constrained_adapters.memory.gradient_sketch import GradientSketch
from constrained_adapters.memory.kfac import INPUT_KINDS, KFACMemory
from constrained_adapters.memory.low_rank import LowRank

ALL = dict.fromkeys(INPUT_KINDS, 1.0)
HALF = dict.fromkeys(INPUT_KINDS, 0.5)


def statistics(seed: int = 0) -> Statistics:
    generator = torch.Generator().manual_seed(seed)

    def covariance(width: int) -> torch.Tensor:
        columns = torch.randn(width, 2 * width, generator=generator) * torch.logspace(0, -2, width)[:, None]
        return columns @ columns.T

    return Statistics(
        groups={"q": "q", "v": "q", "o": "o"},
        energy={"q": covariance(12), "o": covariance(8)},
        sensitivity={"q": covariance(12), "o": covariance(8)},
        output={"q": covariance(8), "v": covariance(20), "o": covariance(12)},
        num_examples=7,
        loss_nats=1.25,
    )


def memory(**changes) -> KFACMemory:
    settings = {
        "domain": "law",
        "base_fingerprint": "abc",
        "shares": dict.fromkeys(INPUT_KINDS, 0.9),
        **changes,
    }
    return KFACMemory.from_statistics(statistics(), **settings)


def test_predicted_increase_is_half_the_trace_of_the_dense_formula():
    kept, generator = memory(), torch.Generator().manual_seed(1)
    widths = {"q": (8, 12), "v": (20, 12), "o": (12, 8)}
    deltas = {name: torch.randn(*shape, generator=generator) for name, shape in widths.items()}
    expected = 0.0
    for name, delta in deltas.items():
        outer, inner = kept.outputs[name].dense().double(), kept.inputs[kept.groups[name]]["energy"].dense()
        expected += 0.5 * float((delta.double().T @ outer @ delta.double() @ inner.double()).trace())
    assert kept.predicted_increase_nats(deltas) == pytest.approx(expected, rel=1e-5)
    assert kept.predicted_increase_nats({"unknown": torch.ones(3, 3)}) == 0.0


def test_predicted_increase_is_near_that_of_the_uncompressed_factors():
    stats, kept = statistics(), memory(shares={"energy": 1.0, "sensitivity": 1.0})
    delta = torch.randn(8, 12, generator=torch.Generator().manual_seed(2))
    exact = 0.5 * float((delta.T @ stats.output["q"] @ delta @ stats.energy["q"]).trace())
    assert kept.predicted_increase_nats({"q": delta}) == pytest.approx(exact, rel=0.02)


class TokenModel(nn.Module):
    """Embedding and one linear layer, nothing between tokens: K-FAC of one repeated token is exact."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.embedding, self.linear = nn.Embedding(12, 6), nn.Linear(6, 12, bias=False)
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=generator)

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def forward(self, input_ids, attention_mask=None, use_cache=False):
        return SimpleNamespace(logits=self.linear(self.embedding(input_ids)))


def test_the_prediction_is_the_true_quadratic_where_kfac_is_exact():
    """One token, its labels drawn from the model: the increase is KL(p ‖ p') up to third order in ΔW."""
    model = TokenModel()
    num_rows = 20_000
    ids = torch.full((num_rows, 2), 4)
    batch = {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}
    stats = gather_statistics(
        model,
        {"linear": model.linear},
        [batch],
        generator=torch.Generator().manual_seed(0),
        drawn_examples=num_rows,
    )
    kept = KFACMemory.from_statistics(stats, domain="d", base_fingerprint="", shares=ALL)
    for seed in range(3):
        delta = 0.003 * torch.randn(12, 6, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            a = model.embedding.weight[4].double()
            before = (model.linear.weight.double() @ a).log_softmax(-1)
            after = ((model.linear.weight + delta).double() @ a).log_softmax(-1)
        divergence = float((before.exp() * (before - after)).sum())
        assert kept.predicted_increase_nats({"linear": delta}) == pytest.approx(divergence, rel=0.04)


def test_a_memory_read_back_is_bit_equal(tmp_path):
    kept = memory()
    path = tmp_path / "memory.safetensors"
    path.write_bytes(kept.to_bytes())
    found = KFACMemory.load(path)
    for name in ("domain", "base_fingerprint", "groups", "num_examples", "loss_nats"):
        assert getattr(found, name) == getattr(kept, name)
    assert list(found.inputs) == list(kept.inputs) and list(found.outputs) == list(kept.outputs)
    for (label, _, factor), (other, _, same) in zip(kept._factors(), found._factors(), strict=True):
        assert label == other and torch.equal(factor.rest, same.rest)
        assert torch.equal(factor.vectors, same.vectors) and torch.equal(factor.values, same.values)
    assert found.to_bytes() == kept.to_bytes()
    delta = {"q": torch.ones(8, 12)}
    assert found.predicted_increase_nats(delta) == kept.predicted_increase_nats(delta)


def sketched(value: float = 1.0) -> KFACMemory:
    generator = torch.Generator().manual_seed(8)
    widths = {"q": (8, 12), "v": (20, 12), "o": (12, 8)}
    left = {n: torch.randn(4, d_out, 1, generator=generator) for n, (d_out, _) in widths.items()}
    right = {n: torch.randn(4, 1, d_in, generator=generator) for n, (_, d_in) in widths.items()}
    means = {
        n: LowRank(value * torch.ones(d_out, 2), torch.ones(2, d_in)) for n, (d_out, d_in) in widths.items()
    }
    return replace(memory(), sketch=GradientSketch(left, right, means, 40, 0.7).rounded())


def test_a_sketch_lies_in_the_same_file_and_is_read_back_bit_equal(tmp_path):
    kept = sketched()
    path = tmp_path / "memory.safetensors"
    path.write_bytes(kept.to_bytes())
    found = KFACMemory.load(path)
    assert found.to_bytes() == kept.to_bytes()
    assert found.sketch.facts() == kept.sketch.facts()
    for name, value in kept.sketch.tensors().items():
        assert torch.equal(found.sketch.tensors()[name], value)
    delta = {"q": torch.ones(8, 12)}
    one, other = (each.sketch.predicted_increase_nats(delta, first_order=True) for each in (found, kept))
    assert one == other
    path.write_bytes(memory().to_bytes())
    assert KFACMemory.load(path).sketch is None


def test_a_sketch_that_is_damaged_or_not_finite_is_a_workspace_error(tmp_path):
    path = tmp_path / "memory.safetensors"
    path.write_bytes(sketched(float("nan")).to_bytes())
    with pytest.raises(WorkspaceError, match=r"not finite(?s:.*)sketch of layer q"):
        KFACMemory.load(path)
    lacking = {**sketched().sketch.facts(), "shapes": {"unknown": [1, 1, 1, 1]}}
    content = other_metadata(sketched().to_bytes(), lambda facts: {**facts, "sketch": lacking})
    path.write_bytes(content)
    with pytest.raises(WorkspaceError, match="a gradient memory cannot be read"):
        KFACMemory.load(path)


def test_it_keeps_no_more_than_it_is_asked_to():
    kept = memory(shares=HALF, output_rank=2)
    assert all(factor.values.numel() <= 2 for factor in kept.outputs.values())
    assert kept.inputs["q"]["energy"].values.numel() < 12
    capped = memory(shares=ALL, input_rank=3).inputs["q"]
    assert all(factor.values.numel() == 3 for factor in capped.values())
    assert capped["energy"].trace == pytest.approx(float(statistics().energy["q"].trace()), rel=1e-3)


def test_the_kind_that_stands_first_has_the_directions_where_they_are_few():
    held = {}
    for first, second in (INPUT_KINDS, INPUT_KINDS[::-1]):
        found = memory(shares={first: 1.0, second: 1.0}, input_rank=3).inputs["q"]
        assert list(found) == list(INPUT_KINDS)
        held[first] = {kind: float(found[kind].values.sum()) / found[kind].trace for kind in INPUT_KINDS}
    for kind in INPUT_KINDS:
        values = torch.linalg.eigvalsh(getattr(statistics(), kind)["q"])
        assert held[kind][kind] == pytest.approx(float(values[-3:].sum() / values.sum()), rel=0.01)
        assert held[kind][kind] > max(each[kind] for other, each in held.items() if other != kind)


def test_both_input_factors_are_stored_on_one_basis():
    tensors = load(memory().to_bytes())
    assert {name for name in tensors if name.startswith("basis:")} == {"basis:o", "basis:q"}
    assert {name for name in tensors if name.endswith(".turn")} == {"energy:o.turn", "energy:q.turn"}


def other_metadata(content: bytes, change) -> bytes:
    length = int.from_bytes(content[:8], "little")
    facts = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["constrained_adapters"])
    return save(load(content), metadata={"constrained_adapters": json.dumps(change(facts))})


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: b"\x00" * 64,
        lambda content: save({"a": torch.zeros(2)}),
        lambda content: other_metadata(content, lambda facts: []),
        lambda content: other_metadata(content, lambda facts: {"format_version": 3}),
        lambda content: other_metadata(content, lambda facts: {**facts, "factors": ["output:x"]}),
        lambda content: other_metadata(content, lambda facts: {**facts, "format_version": 99}),
    ],
    ids=["cut", "empty", "zeros", "foreign", "no facts", "few facts", "lacks a tensor", "version"],
)
def test_a_damaged_file_is_a_workspace_error_that_names_it(tmp_path, damage):
    path = tmp_path / "memory.safetensors"
    path.write_bytes(damage(memory().to_bytes()))
    with pytest.raises(WorkspaceError, match="a gradient memory") as caught:
        KFACMemory.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("version", [1, 3])
def test_a_file_of_an_earlier_format_says_what_to_do(tmp_path, version):
    path = tmp_path / "memory.safetensors"
    path.write_bytes(other_metadata(memory().to_bytes(), lambda facts: {**facts, "format_version": version}))
    with pytest.raises(WorkspaceError, match=r"another format version(?s:.*)make it again from its domain"):
        KFACMemory.load(path)


def test_a_missing_file_is_a_workspace_error(tmp_path):
    with pytest.raises(WorkspaceError, match="cannot be read"):
        KFACMemory.load(tmp_path / "none.safetensors")


def test_memories_are_values():
    assert replace(memory(), domain="other").domain == "other"
    with pytest.raises(AttributeError):
        memory().domain = "x"  # type: ignore[misc]
