"""How much a constrained step costs: CRMA against plain PEFT LoRA, in turn, in one process.

Run:   python benchmarks/step.py [--base embedded] [--steps 12] [--batch-size 8] [--tokens 96]
Makes: benchmarks/results/step-<device>-<date>.json

Both sides are the same PEFT model, the same batch and AdamW; A/B in turn, so that a machine whose
speed drifts treats both alike. The ratio is the median over pairs of steps.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import time
from datetime import UTC, datetime
from pathlib import Path

import torch

from constrained_adapters import CRMAConfig, CRMAModel
from constrained_adapters.training.run import environment

ROOT = Path(__file__).parent


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description="A constrained step against a plain one.")
    parser.add_argument("--base", default="embedded")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=96)
    options = parser.parse_args()
    config = CRMAConfig(base_model_name=options.base, adapter_dim=16, constraint_strength=0.95)
    model = CRMAModel.from_pretrained(config)
    model.create_adapter("first")
    model.set_active_adapter("first")
    device = model.get_input_embeddings().weight.device
    ids = torch.randint(5, 20_000, (options.batch_size, options.tokens), device=device)
    labels = ids.clone()
    labels[:, :-8] = -100
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    begun = time.perf_counter()
    model.enable_constrained_training(True)
    memory_seconds = time.perf_counter() - begun
    facts = model.constraint_facts()

    def step() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    pairs = []
    for number in range(options.steps + 2):
        model.enable_constrained_training(False)
        plain = step()
        model.enable_constrained_training(True)
        constrained = step()
        if number >= 2:
            pairs.append((plain, constrained))
    result = {
        "what": "seconds of one optimizer step, plain PEFT LoRA and CRMA in turn",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": environment(),
        "settings": vars(options),
        "constraint": facts,
        "base_memory_seconds": memory_seconds,
        "plain_seconds": statistics.median(plain for plain, _ in pairs),
        "constrained_seconds": statistics.median(constrained for _, constrained in pairs),
        "ratio": statistics.median(constrained / plain for plain, constrained in pairs),
        "pairs": pairs,
    }
    device_name = re.sub(r"[^a-z0-9]+", "-", str(result["environment"]["device"]).lower()).strip("-")[:40]
    path = ROOT / "results" / f"step-{device_name}-{datetime.now(UTC):%Y-%m-%d}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"ratio {result['ratio']:.3f} (plain {result['plain_seconds']:.3f} s), written to {path}")


if __name__ == "__main__":
    main()
