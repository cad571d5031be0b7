"""Turn a GGUF file of Gemma 3 270M into the folder that plan.yaml names, dequantised once.

Run:   python benchmarks/second_base/get_base.py FILE.gguf
Makes: gemma-3-270m beside this file (0.6 GB, not committed); Gemma's terms of use apply
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    """Load, drop the quantisation, save."""
    file = Path(sys.argv[1])
    folder = Path(__file__).with_name("gemma-3-270m")
    model = AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name, dtype=torch.bfloat16)
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name).save_pretrained(folder)
    print(f"{folder.name}: {model.num_parameters():,} parameters")


if __name__ == "__main__":
    main()
