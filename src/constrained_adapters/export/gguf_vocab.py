"""A tokenizer of transformers as the vocabulary of a GGUF file.

Two kinds are known: byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM), whose splitting rule is recognised by its
regular expression, and BPE over characters with bytes to fall back to (Llama 2, Mistral, Gemma).
"""

from __future__ import annotations

import json
from typing import Any

import gguf
from transformers import PreTrainedTokenizerBase

from constrained_adapters.errors import ModelError

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
SPLITS = {_LLAMA3: "llama-bpe", _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}"): "qwen2"}
"""llama.cpp's names for the regular expressions that text is split by before BPE."""
_TYPE = gguf.TokenType


def write_vocabulary(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerBase, size: int) -> None:
    """Add the tokenizer's fields to a GGUF file.

    Args:
        writer: Of the file.
        tokenizer: A fast one.
        size: Rows of the embeddings; tokens beyond the tokenizer's are marked unused.

    Raises:
        ModelError: llama.cpp has no such tokenizer, or it is not known here.
    """
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _unknown("it has no tokenizer.json", tokenizer)
    whole = json.loads(backend.to_str())
    model = whole["model"]
    if model["type"] != "BPE":
        raise _unknown(f"its model is {model['type']}", tokenizer)
    merges = [pair.split(" ") if isinstance(pair, str) else list(pair) for pair in model["merges"]]
    tokens, types = _tokens(tokenizer, whole, size)
    if model.get("byte_fallback"):
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_list(tokens)
        writer.add_token_scores(_scores(tokens, merges))
        writer.add_add_space_prefix(_adds_space(whole))
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_splitting(whole, tokenizer))
        writer.add_token_list(tokens)
        writer.add_token_merges([" ".join(pair) for pair in merges])
        writer.add_add_space_prefix(False)
    writer.add_token_types(types)
    _add_special(writer, tokenizer)


def _tokens(
    tokenizer: PreTrainedTokenizerBase, whole: dict[str, Any], size: int
) -> tuple[list[str], list[int]]:
    names: dict[int, str] = {number: token for token, number in tokenizer.get_vocab().items()}
    added = {each["id"]: each for each in whole["added_tokens"]}
    tokens, types = [], []
    for number in range(size):
        token = names.get(number)
        if token is None:
            kind, token = _TYPE.UNUSED, f"[PAD{number}]"
        elif number in added:
            kind = _TYPE.CONTROL if added[number]["special"] else _TYPE.USER_DEFINED
            if whole["model"].get("byte_fallback") and token == whole["model"].get("unk_token"):
                kind = _TYPE.UNKNOWN
        elif whole["model"].get("byte_fallback") and len(token) == 6 and token.startswith("<0x"):
            kind = _TYPE.BYTE
        else:
            kind = _TYPE.NORMAL
        tokens.append(token)
        types.append(int(kind))
    return tokens, types


def _scores(tokens: list[str], merges: list[list[str]]) -> list[float]:
    """llama.cpp joins the pair whose result scores highest, transformers the one whose merge comes first."""
    rank: dict[str, int] = {}
    for number, pair in enumerate(merges):
        rank.setdefault("".join(pair), number)
    return [-float(rank.get(token, len(merges))) for token in tokens]


def _splitting(whole: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> str:
    rule = whole["pre_tokenizer"] or {}
    steps = rule.get("pretokenizers", [rule])
    kinds = [step.get("type") for step in steps]
    plain = kinds[-1:] == ["ByteLevel"] and not steps[-1].get("add_prefix_space")
    if plain and kinds == ["ByteLevel"] and steps[-1].get("use_regex", True):
        return "gpt-2"
    if plain and kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits"):
        return "smollm"
    if plain and kinds == ["Split", "ByteLevel"]:
        found = SPLITS.get(steps[0]["pattern"].get("Regex", ""))
        if found is not None:
            return found
    raise _unknown(f"it splits text in a way that is not known here: {json.dumps(rule)[:200]}", tokenizer)


def _adds_space(whole: dict[str, Any]) -> bool:
    normal, before = whole.get("normalizer") or {}, whole.get("pre_tokenizer") or {}
    steps = normal.get("normalizers", [normal])
    return any(step.get("type") == "Prepend" for step in steps) or (
        before.get("type") == "Metaspace" and before.get("prepend_scheme") in {"first", "always"}
    )


def _add_special(writer: gguf.GGUFWriter, tokenizer: Any) -> None:
    for add, number in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, tokenizer.eos_token_id),
        (writer.add_unk_token_id, tokenizer.unk_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if number is not None:
            add(number)
    written = tokenizer("a")["input_ids"]
    writer.add_add_bos_token(tokenizer.bos_token_id is not None and written[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(tokenizer.eos_token_id is not None and written[-1] == tokenizer.eos_token_id)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _unknown(why: str, tokenizer: PreTrainedTokenizerBase) -> ModelError:
    return ModelError(
        "this tokenizer is not mapped to GGUF here",
        got=f"{type(tokenizer).__name__}: {why}",
        expected="byte-level BPE as in GPT-2, Llama 3, Qwen or SmolLM, or BPE with byte_fallback",
        hint="llama.cpp's own convert_hf_to_gguf.py on a folder of 'crma export merged'",
    )
