"""Exports end to end, as the command does them: sources, files, cards, and the proof that they are right."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from constrained_adapters.errors import ConfigError, ModelError, UnknownNameError, UsageError, WorkspaceError
from constrained_adapters.export import checked
from constrained_adapters.export.bases import find_base, open_base
from constrained_adapters.export.check import Answers, Comparison, answer, coarsest, compare, prompt_ids
from constrained_adapters.export.checked import export_loras, export_merged
from constrained_adapters.export.checked_gguf import export_ggufs
from constrained_adapters.export.sources import find_sources, read_mix
from constrained_adapters.export.verify import verify_form
from constrained_adapters.export.verify_with_base import verify_against


@pytest.fixture
def sources(workspace):
    return find_sources([], workspace)


@pytest.fixture
def base(sources, workspace):
    return find_base(sources, workspace)


def test_a_domain_is_all_adapters_that_answer_for_it(workspace, sources):
    law, maths = (workspace.adapter(name) for name in ("law", "数学"))
    assert [source.name for source in sources] == ["law", "数学"]
    assert sources[1].adapters == {law: 1.0, maths: 1.0}
    (alone,) = find_sources(["数学"], workspace, alone=True)
    assert alone.adapters == {maths: 1.0}
    (mix,) = find_sources([], workspace, mix={"law": 0.5, "数学": 0.25})
    assert mix.name == "mix" and mix.adapters == {law: 0.75, maths: 0.25}
    (folder,) = find_sources([str(maths)], None)
    assert folder.name == "数学" and folder.adapters == {maths: 1.0}


def test_sources_that_make_no_sense(workspace):
    with pytest.raises(UnknownNameError, match="law"):
        find_sources(["lew"], workspace)
    with pytest.raises(UsageError, match="no run to take it from"):
        find_sources(["law"], None)
    with pytest.raises(UsageError, match="either names or a mix"):
        find_sources(["law"], workspace, mix={"law": 1.0})
    with pytest.raises(ConfigError, match="cannot be the name"):
        find_sources([], workspace, mix={"law": 1.0}, mix_name="a/b")
    for text in ("law", "law=", "=1", "law=x", "law=1,law=2", ""):
        with pytest.raises(ConfigError, match="this is no mix"):
            read_mix(text)
    assert read_mix("law=0.7, medicine=-1e-1") == {"law": 0.7, "medicine": -0.1}


def test_lora_folders_with_their_proof_and_card(workspace, sources, base, tmp_path):
    done = list(export_loras(sources, tmp_path / "out", base, workspace, pad_rank="auto"))
    assert [each.path.name for each in done] == ["law", "数学"]
    for each in done:
        assert each.comparison.relative < 1e-5 and each.comparison.same_texts == each.comparison.num_texts
        assert each.comparison.effect > 100 * each.comparison.largest_difference
    assert "rank 8 (of them 2 zeros)" in done[1].what
    card = ModelCard((done[1].path / "README.md").read_text(encoding="utf-8"))
    assert card.data.library_name == "peft" and card.data.base_model == base.name
    assert [result.dataset_name for result in card.data.eval_results] == ["数学", "数学"]
    for fact in ("law.jsonl", "`abababababababab`", "0.5 → 0.5", "constraint_strength 0.8", "stock PEFT"):
        assert fact in card.text
    record = json.loads((done[1].path / "crma_export.json").read_text())
    assert record["adapters"] == {"law": 1.0, "数学": 1.0} and record["check"]["same_greedy_texts"] == 4


def test_an_export_that_says_something_else_is_not_put_in_its_place(
    workspace, sources, base, tmp_path, monkeypatch
):
    real = checked.write_mix

    def wrong(mix, folder, **options):
        return real(
            replace(mix, pairs={m: (a, b * 1.01) for m, (a, b) in mix.pairs.items()}), folder, **options
        )

    monkeypatch.setattr(checked, "write_mix", wrong)
    with pytest.raises(ModelError, match="does not say what the model says"):
        list(export_loras(sources[:1], tmp_path / "out", base))
    assert not list((tmp_path / "out").iterdir())
    (done,) = export_loras(sources[:1], tmp_path / "out", base, tolerance=0.5)
    assert done.comparison.relative > 1e-4


def test_nothing_is_loaded_where_something_can_be_refused(workspace, sources, base, tmp_path, monkeypatch):
    list(export_loras(sources, tmp_path / "out", base, check=False))

    def loaded(*arguments):
        raise AssertionError("the base was loaded")

    monkeypatch.setattr(checked, "open_base", loaded)
    with pytest.raises(WorkspaceError, match="--force"):
        list(export_loras(sources, tmp_path / "out", base))
    with pytest.raises(WorkspaceError, match="--force"):
        list(export_merged(sources, tmp_path / "out", base))


@pytest.mark.parametrize("dtype, relative", [("same", 1e-5), ("bfloat16", 2e-2), ("float16", 5e-3)])
def test_merged_models(workspace, sources, base, tmp_path, dtype, relative):
    done = list(export_merged(sources[1:], tmp_path / "out", base, dtype=dtype, shard_bytes=20_000))
    folder = done[0].path
    assert done[0].comparison.relative < relative and done[0].comparison.effect > 0.1
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert str(model.dtype) == f"torch.{'float32' if dtype == 'same' else dtype}"
    assert AutoTokenizer.from_pretrained(folder).chat_template
    assert (folder / "generation_config.json").is_file()
    verdict = verify_form(folder)
    assert verdict.kind == "merged" and "tokenizer: there" in verdict.facts
    assert verify_against(folder, workspace).comparison.relative < relative


@pytest.mark.parametrize("merge", [False, True])
def test_gguf_files(workspace, sources, base, tmp_path, merging_tokenizer, base_folder, merge):
    merging_tokenizer.save_pretrained(base_folder)
    done = list(export_ggufs(sources, tmp_path, base, merge=merge, model_type="f32", with_base=merge))
    assert [each.path.name for each in done] == ["base.gguf"] * merge + ["law.gguf", "数学.gguf"]
    assert all(each.comparison.relative < 1e-5 for each in done)
    verdict = verify_form(done[-1].path)
    assert verdict.kind == ("gguf_model" if merge else "gguf_lora")
    assert verify_against(done[-1].path, workspace).comparison.relative < 1e-5
    done[-1].path.write_bytes(done[-1].path.read_bytes()[:-2000])
    with pytest.raises(UsageError, match="damaged or half-written"):
        verify_form(done[-1].path)


def test_verify_tells_which_engines_take_a_folder(save_lora, workspace, sources, base, tmp_path):
    stock = verify_form(save_lora("stock", use_rslora=True))
    assert stock.engines["SGLang"].startswith("no: it takes alpha / r") and stock.engines["PEFT"] == "yes"
    alone = verify_form(save_lora("alone", target_modules=["q_proj", "o_proj"]))
    assert "layers.0.self_attn.q_proj is alone" in alone.engines["SGLang"]
    assert verify_form(save_lora("dora", use_dora=True)).engines["vLLM"].startswith("no: DoRA")
    list(export_loras(sources, tmp_path / "out", base, workspace, check=False, pad_rank=300))
    verdict = verify_form(tmp_path / "out" / "数学")
    assert verdict.engines["vLLM"] == "yes, --max-lora-rank 320" and verdict.engines["SGLang"] == "yes"
    assert verify_against(tmp_path / "out" / "数学", workspace).comparison.relative < 1e-5
    with pytest.raises(UsageError, match="nothing to verify"):
        verify_form(tmp_path)


def test_verify_on_the_base_alone_finds_another_base(workspace, tmp_path, tiny_tokenizer, tiny_llama):
    folder = workspace.adapter("law")
    assert verify_against(folder, None).comparison.relative < 1e-5
    with torch.no_grad():
        tiny_llama.model.norm.weight.mul_(1.1)
    tiny_llama.save_pretrained(tmp_path / "other")
    tiny_tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(ModelError, match="not the base that the adapters were trained on"):
        verify_against(folder, None, base_name=str(tmp_path / "other"))
    (folder / "crma.json").unlink()  # a foreign adapter: only its shapes tell
    small = LlamaForCausalLM(LlamaConfig(**{**tiny_llama.config.to_dict(), "num_hidden_layers": 1}))
    small.save_pretrained(tmp_path / "small")
    tiny_tokenizer.save_pretrained(tmp_path / "small")
    with pytest.raises(ModelError, match=r"layers\.1\.self_attn\.\w+: ΔW of shape .* no such layer"):
        verify_against(folder, None, base_name=str(tmp_path / "small"))


def test_a_model_that_is_not_whole_is_told(workspace, sources, base, tmp_path):
    (done,) = export_merged(sources[:1], tmp_path / "out", base, check=False, shard_bytes=20_000)
    first, second, *_ = sorted(done.path.glob("model-*.safetensors"))
    tensors = load_file(first)
    tensors[min(tensors)].view(-1)[0] = float("inf")
    save_file(tensors, first)
    with pytest.raises(UsageError, match="no numbers"):
        verify_form(done.path)
    second.unlink()
    with pytest.raises(ModelError, match="missing or damaged"):
        verify_form(done.path)


def test_the_figures_of_a_comparison():
    def said(value, texts=((1,),)):
        return Answers((torch.tensor([[4.0, value]]),), texts)

    found = compare(said(1.0), said(1.2), said(3.0), dtype="float32", loaded_by="x")
    assert found.relative == pytest.approx(0.05) and found.effect == 2.0
    with pytest.raises(ModelError, match="largest difference of 1e-04"):
        found.require()
    found.require(0.1)
    same = compare(said(1.0), said(1.0, ((2,),)), said(3.0), dtype="float32", loaded_by="x")
    with pytest.raises(ModelError, match="and the same texts"):
        same.require()
    replace(same, dtype="bfloat16").require()
    nan = compare(said(1.0), said(float("nan")), said(3.0), dtype="bfloat16", loaded_by="x")
    with pytest.raises(ModelError):
        nan.require(1.0)
    with pytest.raises(ModelError, match="another base"):
        compare(said(1.0), Answers((torch.zeros(1, 3),), ((1,),)), said(1.0), dtype="float32", loaded_by="x")
    assert coarsest("float32", "bfloat16", "float16") == "bfloat16"
    assert isinstance(found, Comparison)


def test_the_prompts_use_the_chat_template(tiny_tokenizer, base, tiny_llama):
    rows = prompt_ids(tiny_tokenizer)
    assert "<|im_start|>assistant" in tiny_tokenizer.decode(rows[1][0])
    answers = answer(tiny_llama, rows, texts=False)
    assert [each.shape[0] for each in answers.logits] == [row.shape[1] for row in rows] and not answers.texts


def test_cards_are_plain_yaml(workspace, sources, base, tmp_path):
    (done,) = export_loras(sources[:1], tmp_path / "out", base, workspace, check=False)
    text = (done.path / "README.md").read_text(encoding="utf-8")
    header = yaml.safe_load(text.split("---")[1])
    assert header["model-index"][0]["results"][0]["metrics"][0]["value"] == 1.4
    assert open_base(base).fingerprint in text
