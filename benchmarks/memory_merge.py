"""How much is lost when many domains' memories are merged into one of constant size.

Run:   python benchmarks/memory_merge.py
Makes: benchmarks/results/memory-merge.json

Synthetic domains: covariances of width 256 with power-law spectra, half of the energy in directions that all
domains share and half in the domain's own, traces of their own. For T domains, merged at once and one after
another, against the exact sum Σ_k ½ tr(ΔWᵀ G_k ΔW A_k) over dense factors: the mean relative error for
random updates of rank 16, and for updates that read a domain's own top 8 input directions (`apart`: of the
unmerged memories); and the smallest and mean share of a domain's input energy that the merged directions
hold, beside what each domain's own memory holds of it.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from constrained_adapters.memory.gather import Statistics
from constrained_adapters.memory.kfac import KFACMemory
from constrained_adapters.memory.merge import merge_memories

RESULT = Path(__file__).parent / "results" / "memory-merge.json"
WIDTH, INPUT_RANK, OUTPUT_RANK = 256, 64, 16
NUM_UPDATES = 16


def covariance(seed: int, shared_seed: int) -> Tensor:
    """Half shared, half its own."""
    total = torch.zeros(WIDTH, WIDTH)
    for each in (shared_seed, seed):
        generator = torch.Generator().manual_seed(each)
        turned = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator)).Q
        values = torch.arange(1, WIDTH + 1).pow(-1.5)
        total += 0.5 * (turned * (values / values.sum())) @ turned.T
    scale = 0.5 + torch.rand((), generator=torch.Generator().manual_seed(seed))
    return total * scale


def domain_statistics(index: int) -> Statistics:
    """One matrix, dense."""
    energy, output = covariance(10 + 3 * index, 1), covariance(11 + 3 * index, 2)
    sensitivity = covariance(12 + 3 * index, 3)
    return Statistics({"w": "w"}, {"w": energy}, {"w": sensitivity}, {"w": output}, num_examples=1)


def updates(all_statistics: list[Statistics], kind: str) -> list[Tensor]:
    """ΔW of rank 16; ``own`` read only the top 8 input directions of a domain."""
    generator, made = torch.Generator().manual_seed(0), []
    for index in range(NUM_UPDATES):
        right = torch.randn(16, WIDTH, generator=generator)
        if kind == "own":
            top = torch.linalg.eigh(all_statistics[index % len(all_statistics)].energy["w"])[1][:, -8:]
            right = right @ top @ top.T
        made.append(torch.randn(WIDTH, 16, generator=generator) @ right)
    return made


def main() -> None:
    """Measure, print and write."""
    rows = []
    for count in (2, 5, 10, 20):
        stats = [domain_statistics(index) for index in range(count)]
        settings = {
            "base_fingerprint": "",
            "shares": {"energy": 1.0, "sensitivity": 1.0},
            "input_rank": INPUT_RANK,
            "output_rank": OUTPUT_RANK,
        }
        memories = [KFACMemory.from_statistics(s, domain=str(i), **settings) for i, s in enumerate(stats)]
        ranks = {"input_rank": INPUT_RANK, "output_rank": OUTPUT_RANK}
        running = memories[0]
        for memory in memories[1:]:
            running = merge_memories([running, memory], **ranks)
        for way, merged in (("at once", merge_memories(memories, **ranks)), ("one by one", running)):
            row: dict[str, float | int | str] = {
                "domains": count,
                "way": way,
                "bytes": len(merged.to_bytes()),
            }
            row["bytes_apart"] = sum(len(memory.to_bytes()) for memory in memories)
            for kind in ("random", "own"):
                errors, apart = [], []
                for delta in updates(stats, kind):
                    exact = sum(
                        0.5 * float((delta.T @ s.output["w"] @ delta * s.energy["w"]).sum()) for s in stats
                    )
                    errors.append(abs(merged.predicted_increase_nats({"w": delta}) / exact - 1))
                    found = sum(memory.predicted_increase_nats({"w": delta}) for memory in memories)
                    apart.append(abs(found / exact - 1))
                row[f"error_{kind}"] = sum(errors) / len(errors)
                row[f"error_{kind}_apart"] = sum(apart) / len(apart)
            basis = torch.linalg.qr(merged.inputs["w"]["energy"].vectors).Q
            held = [float((basis.T @ s.energy["w"] @ basis).trace() / s.energy["w"].trace()) for s in stats]
            alone = [
                float(m.inputs["w"]["energy"].values.sum()) / m.inputs["w"]["energy"].trace for m in memories
            ]
            row |= {"held_least": min(held), "held_mean": sum(held) / count, "held_alone": sum(alone) / count}
            rows.append(row)
            print("  ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
    RESULT.parent.mkdir(exist_ok=True)
    facts = {"width": WIDTH, "input_rank": INPUT_RANK, "output_rank": OUTPUT_RANK, "updates": NUM_UPDATES}
    RESULT.write_text(json.dumps({"settings": facts, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
