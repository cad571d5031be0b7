"""Load a base model and its tokenizer, ready for adapters; say what was chosen and why."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from constrained_adapters.assets import Progress
from constrained_adapters.config.run import BaseConfig
from constrained_adapters.errors import ConfigError, MissingExtraError, ModelError, UsageError, nearest
from constrained_adapters.models.embedded import EMBEDDED_NAME, embedded_model_path
from constrained_adapters.models.fingerprint import fingerprint_model
from constrained_adapters.models.gguf import load_gguf, quiet
from constrained_adapters.models.placement import choose_device, choose_dtype

_HUB_NAME = re.compile(r"^[\w.-]+(/[\w.-]+)?$")
# Ends of architectures that come with an output head; a checkpoint of the bare decoder or of an
# encoder would get a random one.
_HEADS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


@dataclass(frozen=True)
class LoadedBase:
    """A base model, ready for adapters.

    Args:
        model: In evaluation mode, on its device, in its type.
        tokenizer: With a padding token.
        fingerprint: See :func:`constrained_adapters.models.fingerprint.fingerprint_model`.
        description: What was loaded and why so; plain values, for the record of a run.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    fingerprint: str
    description: dict[str, Any]


def load_base(config: BaseConfig, progress: Progress | None = None) -> LoadedBase:
    """Load the base model that ``config`` names.

    Args:
        config: ``model`` is ``"embedded"``, a folder, a ``.gguf`` file or a name on the hub.
        progress: Told about fetching and converting the embedded model.

    Raises:
        UsageError: There is no such folder or file, or it holds no model.
        ConfigError: The device is not there, or bitsandbytes cannot quantise on it.
        ModelError: The hub cannot be reached or has no such model, the model is not a causal language
            model, lacks weights, or does not fit its tokenizer.
        AssetError: The embedded model cannot be fetched.
        MissingExtraError: bitsandbytes is needed and not installed.
    """
    device, device_reason = choose_device(config.device)
    if config.quantization is not None:
        _check_quantization(config.quantization, device)
    source = _find_source(config.model, progress)
    with quiet():
        if isinstance(source, Path) and source.is_file():
            model, tokenizer, dtype_reason = _read_gguf(source, config, device)
        else:
            model, tokenizer, dtype_reason = _read_checkpoint(str(source), config, device)
    pad_reason = _ensure_pad_token(tokenizer, config.model)
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise ModelError(
            "the tokenizer has more tokens than the model has embeddings",
            got=f"{len(tokenizer)} tokens, {rows} embeddings ({config.model})",
            hint="use the tokenizer that belongs to this model",
        )
    model.eval()
    fingerprint = fingerprint_model(model)
    description = {
        "model": EMBEDDED_NAME if config.model == "embedded" else config.model,
        "revision": config.revision,
        "architecture": type(model).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtype": str(model.dtype).removeprefix("torch."),
        "dtype_reason": dtype_reason,
        "device": str(device),
        "device_reason": device_reason,
        "quantization": config.quantization,
        "pad_token": tokenizer.pad_token,
        "pad_token_reason": pad_reason,
        "fingerprint": fingerprint,
    }
    return LoadedBase(model, tokenizer, fingerprint, description)


def _check_quantization(quantization: str, device: torch.device) -> None:
    if device.type not in {"cuda", "cpu"}:
        raise ConfigError(
            f"quantization={quantization!r} needs a CUDA GPU or a CPU",
            got=f"device {device}",
            expected="quantization: null on this device",
            hint="leave it out: bfloat16 halves the memory (dtype: bfloat16)",
        )
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise MissingExtraError.of("bitsandbytes", "quant", "to load a base in 4 or 8 bits") from None


def _find_source(name: str, progress: Progress | None) -> Path | str:
    """Return the folder or file on disk, or the hub's name where nothing on disk is meant."""
    if name == "embedded":
        return embedded_model_path(progress)
    path = Path(name).expanduser()
    if path.is_file():
        if path.suffix.lower() == ".gguf":
            return path
        raise UsageError(
            "the base model is a file that is no model",
            got=name,
            expected="a folder with config.json, or a .gguf file",
        )
    if path.is_dir():
        if (path / "config.json").is_file():
            return path
        inside = sorted(child.parent.name for child in path.glob("*/config.json"))
        adapter = (path / "adapter_config.json").is_file()
        raise UsageError(
            "the folder holds an adapter, not a base model" if adapter else "the folder holds no model",
            got=f"{path} has no config.json",
            expected="a folder written by save_pretrained (config.json, *.safetensors, tokenizer files)",
            hint=str(path / inside[0]) if inside else None,
        )
    # A slip in 'embedded' is told at once; asking the hub for it takes half a minute offline.
    slip = nearest(name, ["embedded"])
    if _HUB_NAME.fullmatch(name) and not slip and not name.startswith(".") and not name.endswith(".gguf"):
        return name
    raise UsageError(
        f"no base model at {name!r}",
        got=str(path),
        expected="'embedded', a folder with config.json, a .gguf file, or a name on the hub",
        hint=slip or _near_folder(path),
    )


def _near_folder(path: Path) -> str | None:
    if not path.parent.is_dir():
        return None
    found = nearest(path.name, [child.name for child in path.parent.iterdir()])
    return str(path.parent / found) if found else None


def _read_gguf(path: Path, config: BaseConfig, device: torch.device) -> tuple[Any, Any, str]:
    if config.quantization is not None:
        raise ConfigError(
            "a GGUF file cannot be quantised again", got=str(path), expected="quantization: null"
        )
    # A weight takes at least half a byte in the file, so this many parameters at most.
    dtype, reason = choose_dtype(config.dtype, device, path.stat().st_size * 2)
    try:
        model, tokenizer = load_gguf(path, dtype)
    except Exception as error:  # the reader checks little: damage shows as any of many errors
        raise ModelError("the GGUF file cannot be read", got=f"{_first_line(error)} ({path})") from error
    return model.to(device), tokenizer, reason


def _read_checkpoint(source: str, config: BaseConfig, device: torch.device) -> tuple[Any, Any, str]:
    shared: dict[str, Any] = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    try:
        settings = AutoConfig.from_pretrained(source, **shared)
    except (OSError, ValueError, KeyError) as error:
        raise _not_found(source, config, error) from error
    _check_causal(settings, config.model)
    dtype, reason = choose_dtype(config.dtype, device, _count_parameters(settings, shared))
    options: dict[str, Any] = {"dtype": dtype, **shared}
    if config.quantization is not None:
        options |= {
            "quantization_config": _quantization_config(config.quantization, dtype),
            "device_map": {"": device},
        }
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(source, output_loading_info=True, **options)
        tokenizer = AutoTokenizer.from_pretrained(source, **shared)
    except torch.cuda.OutOfMemoryError as error:
        raise ModelError(
            "the base model does not fit into the GPU's memory",
            got=_first_line(error),
            hint="quantization: 4bit, or a smaller model",
        ) from error
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise ModelError(
            f"the base model {config.model!r} cannot be loaded", got=_first_line(error)
        ) from error
    model, report = loaded
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(
            f"the base model {config.model!r} lacks {len(missing)} weights, which would start at random",
            got=", ".join(missing[:3]) + (", …" if len(missing) > 3 else ""),
            expected="a complete checkpoint of a causal language model",
        )
    if config.quantization is None:
        model = model.to(device)
    return model, tokenizer, reason


def _quantization_config(quantization: str, dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    options: dict[str, Any] = {"load_in_8bit": True}
    if quantization == "4bit":
        options = {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": dtype,
        }
    return BitsAndBytesConfig(**options)


def _not_found(source: str, config: BaseConfig, error: Exception) -> Exception:
    if Path(source).is_dir():
        return ModelError(
            "the base model's config.json cannot be used", got=f"{_first_line(error)} ({source})"
        )
    near = _near_folder(Path(source))
    return ModelError(
        f"no base model {source!r} in the current folder, and none from the hub",
        got=_first_line(error),
        expected="'embedded', a folder with config.json, a .gguf file, or a name on the hub",
        hint=near or "check the name and the network; offline, give a folder, or 'embedded'",
    )


def _check_causal(settings: Any, name: str) -> None:
    remote = "AutoModelForCausalLM" in (getattr(settings, "auto_map", None) or {})
    known = settings.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    architectures = getattr(settings, "architectures", None) or []
    headed = not architectures or any(kind.endswith(_HEADS) for kind in architectures)
    if not (known or remote) or not headed:
        raise ModelError(
            f"{name!r} is not a causal language model",
            got=", ".join(architectures) or f"model_type {settings.model_type!r}",
            expected="a decoder that writes text, such as LlamaForCausalLM",
        )


def _count_parameters(settings: Any, shared: dict[str, Any]) -> int:
    try:
        with torch.device("meta"):
            remote = shared["trust_remote_code"]
            empty: Any = AutoModelForCausalLM.from_config(settings, trust_remote_code=remote)
    except (ImportError, NotImplementedError, RuntimeError, ValueError):
        return 0  # a few architectures cannot be built without weights; the size only guards the memory
    return sum(parameter.numel() for parameter in empty.parameters())


def _ensure_pad_token(tokenizer: Any, name: str) -> str:
    if tokenizer.pad_token is not None:
        return "the tokenizer's own"
    for kind in ("eos_token", "unk_token"):
        if getattr(tokenizer, kind) is not None:
            tokenizer.pad_token = getattr(tokenizer, kind)
            return f"the tokenizer has none: its {kind} is used, masked out of loss and attention"
    raise ModelError(
        "the tokenizer has neither a padding nor an end token",
        got=name,
        hint="add a pad_token to its tokenizer_config",
    )


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
