"""One line on somebody's own script: what it closes, what it leaves alone, and what it refuses."""

from __future__ import annotations

import gc
import warnings
import weakref

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.optim import optimizer as torch_optimizer
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaModel, Trainer

import constrained_adapters
from constrained_adapters import protect
from constrained_adapters.adapters.lora import adapter_pairs
from constrained_adapters.errors import (
    AdapterStateError,
    ConfigError,
    ModelError,
    UnknownNameError,
    WorkspaceError,
)
from constrained_adapters.memory.kfac import KFACMemory
from constrained_adapters.memory.protected import ProtectedSpace
from constrained_adapters.models.fingerprint import fingerprint_model

LAYERS = ["q_proj", "v_proj"]


def lora(model, **settings):
    chosen = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": LAYERS, **settings}
    torch.manual_seed(5)
    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **chosen))


@pytest.fixture(autouse=True)
def no_hook_is_left():
    before = len(torch_optimizer._global_optimizer_pre_hooks)
    yield
    gc.collect()
    assert len(torch_optimizer._global_optimizer_pre_hooks) == before


@pytest.fixture
def shield(request):
    """Protect, and take the protection off after the test."""

    def put(*args, **settings):
        handle = protect(*args, **{"num_texts": 8, "strength": 0.8, **settings})
        request.addfinalizer(handle.remove)
        return handle

    return put


def bases_of(handle, strength=0.8):
    return ProtectedSpace("sensitivity", strength).bases([handle.base_memory])


def largest_inside(model, handle) -> float:
    bases = bases_of(handle)
    shares = [
        ((pair.a.detach() @ bases[pair.module]).norm(dim=1) / pair.a.detach().norm(dim=1)).max()
        for pair in adapter_pairs(model, "default")
    ]
    return float(torch.stack(shares).max())


def loop(model, rows, optimizer=None, steps=4) -> None:
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = optimizer or torch.optim.AdamW(trained, lr=1e-2)
    batch = {key: torch.tensor([row[key] for row in rows]) for key in rows[0]}
    model.train()
    for _ in range(steps):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def arguments(folder) -> dict:
    return {
        "output_dir": str(folder / "out"),
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "use_cpu": True,
    }


def stock_trainer(model, rows, folder) -> Trainer:
    from transformers import TrainingArguments, default_data_collator

    settings = TrainingArguments(**arguments(folder))
    return Trainer(model=model, args=settings, train_dataset=rows, data_collator=default_data_collator)


def sft_trainer(base, rows, folder, tokenizer):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    return SFTTrainer(
        model=base,
        args=SFTConfig(**arguments(folder), bf16=False, activation_checkpointing=True),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=LAYERS),
    )


@pytest.mark.parametrize("way", ["loop", "loop with optimizer", "trainer"])
def test_a_stock_lora_learns_outside_what_the_base_wrote(tiny_llama, rows, tmp_path, shield, logits, way):
    model = lora(tiny_llama)
    before, state = logits(model), torch.get_rng_state()
    if way == "trainer":
        trainer = stock_trainer(model, rows(0), tmp_path)
        state = torch.get_rng_state()
        handle = shield(trainer)
    elif way == "loop with optimizer":
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        handle = shield(model, optimizer)
    else:
        handle = shield(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(logits(model), before)  # B is zero
    assert largest_inside(model, handle) < 1e-5
    assert [name for name, p in model.named_parameters() if p.requires_grad and "lora_" not in name] == []
    start = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    if way == "trainer":
        trainer.train()
    else:
        loop(model, rows(0), optimizer if way == "loop with optimizer" else None)
    assert largest_inside(model, handle) < 1e-5
    assert all(not torch.equal(p, start[name]) for name, p in model.named_parameters() if name in start)
    facts = handle.facts()
    assert facts["num_steps"] == 4 and facts["trains"] == "lora" and facts["domains"] == ["base"]
    assert facts["num_matrices"] == 4 and facts["unbound_parameters"] == 0
    assert 0.0 < facts["removed_ratio"] < 1.0 and 0.0 < facts["closed_ratio"] < 1.0
    assert facts["penalty_ratio"] > 0.0, "what it changes on the rest is dear"


def test_an_sft_trainer_that_makes_its_own_lora(tiny_llama, tiny_tokenizer, rows, tmp_path, shield):
    trainer = sft_trainer(tiny_llama, rows(0), tmp_path, tiny_tokenizer)
    handle = shield(trainer)
    trainer.train()
    assert handle.facts()["num_steps"] == 4
    assert largest_inside(trainer.model, handle) < 1e-5


def test_an_adapter_added_without_the_wrapper(tiny_llama, rows, shield):
    tiny_llama.add_adapter(LoraConfig(r=4, target_modules=LAYERS))
    handle = shield(tiny_llama)
    loop(tiny_llama, rows(0))
    assert largest_inside(tiny_llama, handle) < 1e-5 and handle.facts()["num_steps"] == 4


def test_the_line_makes_the_base_forget_less(tiny_llama, rows, shield):
    """Measured on text that the base wrote and that was not in its memory."""
    from constrained_adapters.memory.base_text import write_base_text
    from constrained_adapters.memory.reservoir import pad_rows

    held_out = pad_rows(write_base_text(tiny_llama, num_texts=16, length_tokens=32, seed=99), "cpu")
    start = {name: p.detach().clone() for name, p in tiny_llama.named_parameters()}
    rises = []
    for strength in (None, 0.95, 0.99):
        base = AutoModelForCausalLM.from_config(tiny_llama.config).eval()
        base.load_state_dict(start, strict=False)
        model = lora(base)
        with torch.no_grad():
            before = float(model(**held_out).loss)
        handle = shield(model, strength=strength, num_texts=32) if strength else None
        loop(model, rows(0), steps=20)
        with torch.no_grad():
            rises.append(float(model(**held_out).loss) - before)
        del handle
    assert rises[1] < 0.7 * rises[0]
    assert rises[2] < 0.2 * rises[0]


def test_full_fine_tuning_leaves_the_outputs_of_the_base_text_alone(tiny_llama, rows, shield):
    for name, p in tiny_llama.named_parameters():
        p.requires_grad_("proj" in name)
    start = {name: p.detach().clone() for name, p in tiny_llama.named_parameters()}
    handle = shield(tiny_llama)
    assert all(torch.equal(p, start[name]) for name, p in tiny_llama.named_parameters())
    loop(tiny_llama, rows(0))
    bases = bases_of(handle)
    moved = 0.0
    for name, p in tiny_llama.named_parameters():
        if "proj" in name:
            step = p.detach() - start[name]
            assert float((step @ bases[name.removesuffix(".weight")]).norm()) < 1e-4 * float(step.norm() + 1)
            moved += float(step.norm())
    assert moved > 0.1
    assert handle.facts()["trains"] == "full" and handle.facts()["num_matrices"] == 14


def test_full_fine_tuning_of_conv1d_and_the_warning_of_what_stays_free(shield, rows):
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=1, n_embd=32, n_head=2, vocab_size=264, bos_token_id=2, eos_token_id=2, initializer_range=0.2
    )
    model = GPT2LMHeadModel(config).eval()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.warns(UserWarning, match=r"trained parameters are not bound(?s:.*)transformer\.wte"):
        handle = shield(model)
    loop(model, rows(0))
    for layer, basis in bases_of(handle).items():
        step = model.get_submodule(layer).weight.detach() - start[f"{layer}.weight"]
        assert basis.shape[0] == step.shape[0] and float((basis.T @ step).norm()) < 1e-4
    assert handle.facts()["unbound_parameters"] > 264 * 32


def test_only_the_named_layers_are_bound_and_the_rest_is_told(tiny_llama, shield):
    model = lora(tiny_llama)
    with pytest.warns(UserWarning, match="not bound"):
        handle = shield(model, layers=["v_proj"])
    assert handle.facts()["num_matrices"] == 2
    assert handle.facts()["unbound_parameters"] == 2 * (4 * 32 + 32 * 4)
    with pytest.raises(UnknownNameError, match=r"'v_prj'(?s:.*)q_proj, v_proj\n.*v_proj"):
        shield(lora_again := model, layers=["v_prj"])
    assert lora_again is model


def test_a_memory_of_a_finished_domain_binds_too_and_the_base_s_own_is_not_made_twice(
    tiny_llama, rows, shield, tmp_path
):
    model = lora(tiny_llama)
    first = shield(model)
    first.remove()
    saved = tmp_path / "base.safetensors"
    saved.write_bytes(first.base_memory.to_bytes())
    law = memory_of(model, rows(1), "law")
    handle = shield(model, memories=[saved, law])
    assert handle.facts()["domains"] == ["base", "law"]
    assert handle.facts()["closed_ratio"] > first.facts()["closed_ratio"]
    assert handle.base_memory.to_bytes() == first.base_memory.to_bytes()
    loop(model, rows(0))
    bases = ProtectedSpace("sensitivity", 0.8).bases([handle.base_memory, law])
    for pair in adapter_pairs(model, "default"):
        assert float((pair.a.detach() @ bases[pair.module]).norm()) < 1e-4


def memory_of(model, rows, domain, fingerprint=None) -> KFACMemory:
    from constrained_adapters.memory.measure import measure_memory
    from constrained_adapters.model.trained import base_of, find_trained

    tokens = [(torch.tensor(row["input_ids"]), torch.tensor(row["labels"])) for row in rows]
    return measure_memory(
        base_of(model), find_trained(model, None).layers, tokens, domain=domain, kind="sensitivity",
            strength=0.8, batch_size=8,
        base_fingerprint=fingerprint or fingerprint_model(base_of(model)), seed=1,
    )  # fmt: skip


def test_a_memory_of_another_base_or_of_other_layers_is_refused(tiny_llama, rows, shield, tmp_path):
    model = lora(tiny_llama)
    foreign, own = memory_of(model, rows(1), "law", "f" * 64), fingerprint_model(tiny_llama)
    with pytest.raises(ModelError, match=rf"another base model(?s:.*){'f' * 64}(?s:.*){own}"):
        shield(model, memories=[foreign])
    wide = lora(model.unload(), target_modules=["q_proj", "o_proj"])
    narrow = memory_of(wide, rows(1), "law")
    model = lora(wide.unload())
    with pytest.raises(
        ModelError, match=r"4 layers \(o_proj, q_proj\), without .*v_proj(?s:.*)q_proj, v_proj"
    ):
        shield(model, memories=[narrow])
    broken = tmp_path / "memory.safetensors"
    broken.write_bytes(b"torn")
    with pytest.raises(WorkspaceError, match="cannot be read"):
        shield(model, memories=[broken])


def test_an_adapter_that_was_trained_is_told_what_happens(tiny_llama, rows, shield, logits):
    model = lora(tiny_llama)
    loop(model, rows(0))
    before = logits(model)
    with pytest.warns(UserWarning, match="'default' has been trained already"):
        shield(model)
    assert not torch.equal(logits(model), before)


def test_twice_is_an_error_until_the_first_is_removed(tiny_llama, shield, rows):
    model = lora(tiny_llama)
    handle = shield(model)
    with pytest.raises(AdapterStateError, match=r"protected already(?s:.*)remove"):
        shield(model)
    handle.remove()
    handle.remove()
    loop(model, rows(0), steps=1)
    assert handle.facts()["num_steps"] == 0
    with pytest.warns(UserWarning, match="trained already"):
        shield(model)


def test_it_does_not_outlive_the_model(tiny_llama):
    hooks = len(torch_optimizer._global_optimizer_pre_hooks)
    model = lora(tiny_llama)
    handle = protect(model, num_texts=4)
    assert len(torch_optimizer._global_optimizer_pre_hooks) == hooks + 1
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None and len(torch_optimizer._global_optimizer_pre_hooks) == hooks
    handle.remove()


def frozen(model):
    for p in model.parameters():
        p.requires_grad_(False)
    return model


def norms_only(model):
    for name, p in model.named_parameters():
        p.requires_grad_("norm" in name)
    return model


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (frozen, ModelError, "nothing of this model is trained"),
        (norms_only, ModelError, r"nothing that is trained can be bound(?s:.*)layernorm"),
        (lambda model: LlamaModel(model.config), ModelError, "no language-model head"),
        (lambda model: "model", ConfigError, r"takes a Trainer or the model(?s:.*)str"),
    ],
)
def test_what_cannot_be_protected_is_refused(tiny_llama, make, error, message):
    with pytest.raises(error, match=message):
        protect(make(tiny_llama))


def test_wrong_arguments_are_refused(tiny_llama, rows, tmp_path, make_model):
    model = lora(tiny_llama)
    for strength in (0.0, -0.1, 1.1, float("nan")):
        with pytest.raises(ConfigError, match="strength"):
            protect(model, strength=strength)
    with pytest.raises(ConfigError, match="num_texts=0"):
        protect(model, num_texts=0)
    other = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    with pytest.raises(ConfigError, match="does not train this model"):
        protect(model, other)
    with pytest.raises(ConfigError, match="brings its own optimizer"):
        protect(stock_trainer(model, rows(0), tmp_path), other)
    with pytest.raises(AdapterStateError, match=r"CRMAModel(?s:.*)enable_constrained_training"):
        protect(make_model())


@pytest.mark.parametrize(("strength", "words"), [(0.5, "under 0.7"), (1.0, "closes every direction")])
def test_strengths_that_do_little_or_too_much_warn(tiny_llama, shield, strength, words):
    with pytest.warns(UserWarning, match=words):
        shield(lora(tiny_llama), strength=strength)


def test_the_same_seed_protects_the_same(tiny_llama, shield):
    model = lora(tiny_llama)
    one = shield(model)
    one.remove()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        two, other = shield(model), None
        two.remove()
        other = shield(model, seed=1)
    assert one.base_memory.to_bytes() == two.base_memory.to_bytes() != other.base_memory.to_bytes()


def test_it_is_a_public_name():
    assert constrained_adapters.protect is protect


def test_text_that_is_given_stands_in_for_what_the_base_would_write(tiny_llama, rows, shield):
    model = lora(tiny_llama)
    text = [(torch.tensor(row["input_ids"]), torch.tensor(row["input_ids"])) for row in rows(1)]
    handle = shield(model, rows=text)
    known = handle.base_memory.to_bytes()
    handle.remove()
    written = shield(model)
    assert written.base_memory.to_bytes() != known
    written.remove()
    with pytest.raises(AdapterStateError, match="there is no text for the base's memory"):
        protect(model, rows=[])
