"""A merged memory against the exact sum of its domains."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from constrained_adapters.errors import ModelError
from constrained_adapters.memory.gather import Statistics
from constrained_adapters.memory.kfac import KFACMemory
from constrained_adapters.memory.merge import merge_memories
from constrained_adapters.memory.protected import ProtectedSpace

WIDTHS = {"q": 48, "o": 40}
SHAPES = {"q": (40, "q"), "v": (16, "q"), "o": (48, "o")}


def spectra(width: int, seed: int) -> torch.Tensor:
    """Half of the energy in directions that all domains share, half in the domain's own; a decaying tail."""
    shared = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(width))).Q
    own = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(seed))).Q
    values = torch.arange(1, width + 1).pow(-1.5)
    return (shared * values @ shared.T + own * values @ own.T) * (1 + seed % 3)


def memory(seed: int, *, rank: int = 48) -> KFACMemory:
    stats = Statistics(
        groups={name: key for name, (_, key) in SHAPES.items()},
        energy={key: spectra(width, 10 * seed + 1) for key, width in WIDTHS.items()},
        sensitivity={key: 0.1 * spectra(width, 10 * seed + 2) for key, width in WIDTHS.items()},
        output={name: spectra(d_out, 10 * seed + 3) for name, (d_out, _) in SHAPES.items()},
        num_examples=8,
        loss_nats=1.0 + seed,
    )
    return KFACMemory.from_statistics(
        stats,
        domain=f"domain_{seed}",
        base_fingerprint="abc",
        shares={"sensitivity": 1.0, "energy": 1.0},
        input_rank=rank,
        output_rank=rank,
    )


def deltas(seed: int, rank: int = 4) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(d_out, rank, generator=generator)
        @ torch.randn(rank, WIDTHS[key], generator=generator)
        for name, (d_out, key) in SHAPES.items()
    }


def trace(kept: KFACMemory) -> float:
    return sum(o.trace * kept.inputs[kept.groups[name]]["energy"].trace for name, o in kept.outputs.items())


@pytest.mark.parametrize("num_domains", [1, 2, 5, 20])
def test_it_predicts_the_sum_over_its_domains(num_domains):
    memories = [memory(seed) for seed in range(num_domains)]
    merged = merge_memories(memories, input_rank=16, output_rank=8)
    assert trace(merged) == pytest.approx(sum(trace(kept) for kept in memories), rel=1e-3)
    for seed in range(5):
        exact = sum(kept.predicted_increase_nats(deltas(seed)) for kept in memories)
        assert merged.predicted_increase_nats(deltas(seed)) == pytest.approx(exact, rel=0.12)


def test_equal_domains_merge_without_loss_and_a_single_one_stays():
    one = memory(3, rank=16)
    for count in (1, 4):
        merged = merge_memories([one] * count, input_rank=16, output_rank=16)
        assert merged.num_domains == count
        expected = count * one.predicted_increase_nats(deltas(0))
        assert merged.predicted_increase_nats(deltas(0)) == pytest.approx(expected, rel=0.01)


def test_merging_one_after_another_is_near_merging_at_once():
    memories = [memory(seed, rank=16) for seed in range(6)]
    at_once = merge_memories(memories, input_rank=16, output_rank=16)
    running = memories[0]
    for kept in memories[1:]:
        running = merge_memories([running, kept], input_rank=16, output_rank=16)
    assert running.num_domains == at_once.num_domains == 6
    assert running.num_examples == at_once.num_examples == 48
    assert running.loss_nats == pytest.approx(at_once.loss_nats)
    assert trace(running) == pytest.approx(trace(at_once), rel=1e-3)
    found, expected = (each.predicted_increase_nats(deltas(1)) for each in (running, at_once))
    assert found == pytest.approx(expected, rel=0.05)


def test_its_size_does_not_grow_and_it_serves_as_a_single_one(tmp_path):
    sizes = set()
    for count in (2, 9):
        merged = merge_memories([memory(seed) for seed in range(count)], input_rank=8, output_rank=4)
        content = merged.to_bytes()
        sizes.add(len(content))
    path = tmp_path / "merged.safetensors"
    path.write_bytes(content)
    found = KFACMemory.load(path)
    assert max(sizes) < 1.05 * min(sizes) and found.num_domains == 9
    assert found.predicted_increase_nats(deltas(0)) == merged.predicted_increase_nats(deltas(0))
    assert ProtectedSpace("sensitivity", 0.5).bases([found])["q"].shape[0] == 48


def test_neither_kind_takes_the_other_s_directions():
    """With few directions both are held about as well as by a memory that had to hold only one of them."""
    memories = [memory(seed) for seed in range(4)]
    merged = merge_memories(memories, input_rank=16, output_rank=8).inputs["q"]
    held = {kind: float(f.values.sum()) / f.trace for kind, f in merged.items()}
    assert abs(held["energy"] - held["sensitivity"]) < 0.05
    assert min(held.values()) > 0.6


def test_a_domain_without_curvature_changes_nothing_but_the_mean():
    one, zero = memory(1, rank=16), memory(2, rank=16)
    blank = {
        key: {kind: replace(f, values=0 * f.values, rest=0 * f.rest) for kind, f in kinds.items()}
        for key, kinds in zero.inputs.items()
    }
    merged = merge_memories([one, replace(zero, inputs=blank)], input_rank=16, output_rank=16)
    expected = one.predicted_increase_nats(deltas(0))
    assert merged.predicted_increase_nats(deltas(0)) == pytest.approx(expected, rel=0.02)


def test_memories_that_do_not_belong_together_are_refused():
    with pytest.raises(ModelError, match="memories of different bases cannot be merged"):
        merge_memories([memory(0), replace(memory(1), base_fingerprint="xyz")])
    with pytest.raises(ModelError, match="memories of different layers cannot be merged"):
        merge_memories([memory(0), replace(memory(1), groups={"q": "q"})])
