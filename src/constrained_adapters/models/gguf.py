"""GGUF files: read by transformers into a plain floating-point model."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging


def load_gguf(path: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """Return the model, dequantised to ``dtype``, and the tokenizer of a GGUF file.

    Args:
        path: The ``.gguf`` file.
        dtype: Floating-point type of the weights.

    Raises:
        ImportError: The gguf package is not installed.
        ValueError: The file's architecture is not one that transformers reads.
    """
    with quiet():
        model: Any = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=dtype)
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    # transformers marks the model as quantised, although its weights are plain by now; with the marks
    # it refuses to be saved or trained.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model, tokenizer


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' progress bars and notes within the block; errors still propagate."""
    verbosity = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        # The bar of the GGUF reader is tqdm's own, which transformers' switch does not reach.
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
