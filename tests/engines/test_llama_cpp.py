"""llama.cpp: our GGUF files in the real engine, and against its own converters tensor by tensor."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Regex, pre_tokenizers
from transformers import AutoConfig

from constrained_adapters.export.checkpoint import Checkpoint
from constrained_adapters.export.gguf_base import RECORD_KEY, write_gguf
from constrained_adapters.export.gguf_lora import read_gguf_lora, write_gguf_lora
from constrained_adapters.export.gguf_vocab import SPLITS
from constrained_adapters.export.lora import make_mix
from constrained_adapters.export.merged import merged_reader

from .bases import KINDS, byte_tokenizer, character_tokenizer, save_base
from .conftest import ENGINES, python_of

pytestmark = [pytest.mark.engines, pytest.mark.slow]

PROMPTS = [list(range(5, 25)), [40, 7, 7, 99, 250, 3]]
WEIGHTS = {"law": 0.7, "medicine": -0.4}


@pytest.fixture
def made(tmp_path):
    """``made(kind)``: a base in its folder and two adapters on it, every linear layer adapted."""

    def make(kind):
        base = save_base(kind, tmp_path / "base", byte_tokenizer())
        targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        for seed, name in enumerate(WEIGHTS):
            model = get_peft_model(base, LoraConfig(r=4 + seed, lora_alpha=6, target_modules=targets))
            generator = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                for key, parameter in model.named_parameters():
                    if "lora_" in key:
                        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
            model.save_pretrained(str(tmp_path / name))
            base = model.unload()
        return base, tmp_path / "base", {name: tmp_path / name for name in WEIGHTS}

    return make


def weighted(base, folders, weights):
    """PEFT's own model with these adapters and weights."""
    names = list(folders)
    model = PeftModel.from_pretrained(base, str(folders[names[0]]), adapter_name=names[0])
    for name in names[1:]:
        model.load_adapter(str(folders[name]), name)
    model.base_model.set_adapter(list(weights))
    for module in model.modules():
        if hasattr(module, "set_scale"):
            for name, weight in weights.items():
                module.set_scale(name, weight)
    return model.eval()


@torch.no_grad()
def assert_says_the_same(model, answer, prompt, tolerance=2e-3):
    """Teacher-forced log-probabilities of what the engine wrote, and each token the most probable one."""
    ids = torch.tensor([prompt + answer["tokens"]])
    logprobs = model(input_ids=ids).logits[0].log_softmax(-1)[len(prompt) - 1 : -1]
    ours = logprobs.gather(-1, torch.tensor(answer["tokens"])[:, None])[:, 0]
    assert (ours - torch.tensor(answer["logprobs"])).abs().max() < tolerance
    assert logprobs.argmax(-1).tolist() == answer["tokens"]


@pytest.mark.parametrize("kind", KINDS)
def test_base_adapter_weights_per_request_and_merged(made, ask, tmp_path, kind):
    python_of("llama_cpp")
    base, folder, adapters = made(kind)
    checkpoint, config = Checkpoint(folder), AutoConfig.from_pretrained(folder)
    files = {}
    for name, adapter in adapters.items():
        file = tmp_path / f"{name}.gguf"
        write_gguf_lora(make_mix({adapter: 1.0}), config, file, "f32", name=name, record={})
        files[name] = str(file)
    write_gguf(checkpoint, tmp_path / "base.gguf", "f32", name="base")
    task = {"model": str(tmp_path / "base.gguf"), "adapters": files, "prompts": PROMPTS, "max_tokens": 6}
    asked = [{}, {"law": 1.0}, WEIGHTS]
    found = ask("llama_cpp", {**task, "requests": [[i, w] for w in asked for i in range(len(PROMPTS))]})
    for answer in found["answers"]:
        prompt = PROMPTS[answer["prompt"]]
        if not answer["weights"]:
            assert_says_the_same(base, answer, prompt)
            continue
        model = weighted(base, adapters, answer["weights"])
        assert_says_the_same(model, answer, prompt)
        base = model.unload()
    read = merged_reader(checkpoint, make_mix({adapters[name]: w for name, w in WEIGHTS.items()}))
    write_gguf(checkpoint, tmp_path / "merged.gguf", "f32", name="merged", read=read)
    task = {**task, "model": str(tmp_path / "merged.gguf"), "adapters": {}}
    found = ask("llama_cpp", {**task, "requests": [[0, {}]]})
    assert_says_the_same(weighted(base, adapters, WEIGHTS), found["answers"][0], PROMPTS[0])


TEXTS = ["the thin man in the inn, 1234 and 12 34", "  two  spaces\n\nthe end?", "Ünïcode 汉字 'll we've THE"]
LLAMA3_SPLIT, QWEN2_SPLIT = SPLITS
TOKENIZERS = {
    "gpt-2": byte_tokenizer,
    "smollm": lambda: byte_tokenizer(pre_tokenizers.Digits(individual_digits=True)),
    "llama-bpe": lambda: byte_tokenizer(pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated")),
    "qwen2": lambda: byte_tokenizer(pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated")),
    "llama": character_tokenizer,
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_it_tokenises_as_transformers(ask, tmp_path, kind):
    python_of("llama_cpp")
    tokenizer = TOKENIZERS[kind]()
    save_base("llama", tmp_path / "base", tokenizer, vocab_size=320)
    write_gguf(Checkpoint(tmp_path / "base"), tmp_path / "base.gguf", "f32", name="base")
    task = {"model": str(tmp_path / "base.gguf"), "adapters": {}, "prompts": [], "max_tokens": 1}
    found = ask("llama_cpp", {**task, "requests": [], "texts": TEXTS})["tokenised"]
    assert found == [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]


def convert(script, *arguments):
    """Run a converter of llama.cpp."""
    home = ENGINES / "llama.cpp"
    if not home.is_dir():
        pytest.skip("llama.cpp's converters are not here: make test-engines")
    done = subprocess.run(
        [sys.executable, Path(__file__).parent / "converter.py", home, script, *map(str, arguments)],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def content(path):
    """Fields and tensors of a GGUF file."""
    reader = gguf.GGUFReader(path)
    tensors = {each.name: (each.tensor_type, np.array(each.data)) for each in reader.tensors}
    return {name: field.contents() for name, field in reader.fields.items()}, tensors


@pytest.mark.parametrize("outtype", ["f32", "f16", "bf16", "q8_0"])
def test_our_lora_and_base_are_what_its_own_converters_write(made, tmp_path, outtype):
    _, folder, adapters = made("llama3")
    config = AutoConfig.from_pretrained(folder)
    ours, theirs = tmp_path / "ours.gguf", tmp_path / "theirs.gguf"
    write_gguf(Checkpoint(folder), ours, outtype, name="base")
    convert("convert_hf_to_gguf.py", folder, "--outfile", theirs, "--outtype", outtype)
    assert_same_tensors(ours, theirs)
    if outtype == "f32":
        write_gguf_lora(make_mix({adapters["law"]: 1.0}), config, ours, "f32", name="law", record={})
        convert("convert_lora_to_gguf.py", adapters["law"], "--base", folder, "--outfile", theirs)
        modules = list(make_mix({adapters["law"]: 1.0}).pairs)
        mine, other = (read_gguf_lora(path, config, modules) for path in (ours, theirs))
        for module in modules:
            torch.testing.assert_close(mine[module][1] @ mine[module][0], other[module][1] @ other[module][0])


@pytest.mark.parametrize("kind", KINDS)
def test_our_base_has_the_tensors_of_its_own_converter(made, tmp_path, kind):
    _, folder, _ = made(kind)
    ours, theirs = tmp_path / "ours.gguf", tmp_path / "theirs.gguf"
    write_gguf(Checkpoint(folder), ours, "f32", name="base")
    convert("convert_hf_to_gguf.py", folder, "--outfile", theirs, "--outtype", "f32")
    assert_same_tensors(ours, theirs)


# Names, and what converter.py answers for llama.cpp.
UNLIKE = {"general.name", "GGUF.kv_count", "tokenizer.ggml.pre", RECORD_KEY}


def assert_same_tensors(ours, their_file):
    fields, tensors = content(ours)
    their_fields, their_tensors = content(their_file)
    assert tensors.keys() == their_tensors.keys()
    for name, (kind, data) in tensors.items():
        assert kind == their_tensors[name][0], name
        theirs = their_tensors[name][1]
        # Gemma 3's converter leaves out embeddings of no token; ours marks these tokens as unused.
        assert np.array_equal(data[: len(theirs)] if name == "token_embd.weight" else data, theirs), name
    for key in fields.keys() & their_fields.keys() - UNLIKE:
        assert fields[key] == their_fields[key], key
