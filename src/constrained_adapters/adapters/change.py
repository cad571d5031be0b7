"""How much a finished adapter changes each module's weights, from its files alone.

Axis letters: r rank.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

from safetensors import safe_open

from constrained_adapters.adapters.files import CONFIG_FILE, WEIGHTS_FILE


def weight_change(folder: Path) -> dict[str, float]:
    """Return ``‖ΔW‖_F = scaling · ‖B A‖_F`` by module, six digits each; empty where there is no LoRA.

    From the r × r Gram matrices, ``‖BA‖² = tr(BᵀB · AAᵀ)``: no matrix of a weight's size is made.

    Args:
        folder: Of one adapter, as PEFT writes it.
    """
    config_file, weights = folder / CONFIG_FILE, folder / WEIGHTS_FILE
    if not (config_file.is_file() and weights.is_file()):
        return {}
    config = json.loads(config_file.read_text(encoding="utf-8"))
    scaling = config["lora_alpha"] / (math.sqrt(config["r"]) if config.get("use_rslora") else config["r"])
    changes = {}
    with safe_open(weights, "pt") as file:
        for name in file.keys():  # noqa: SIM118  # it is no mapping
            if name.endswith(".lora_A.weight"):
                a = file.get_tensor(name).float()
                b = file.get_tensor(name.replace(".lora_A.", ".lora_B.")).float()
                square = float(((b.T @ b) * (a @ a.T)).sum())
                module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
                changes[module] = float(f"{scaling * math.sqrt(max(square, 0.0)):.6g}")
    return changes
