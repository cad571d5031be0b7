"""Two domains, one after the other, with every call of a CRMA adapter's life.

How to run (five and a half minutes on two slow virtual cores with other work beside it; in any empty folder:
it writes ``legal_adapter/``, ``medical_adapter/`` and ``merged_model/`` where you are)::

    python examples/walkthrough.py

It teaches the packaged model law and then medicine from a few packaged examples: enough to see each
call at work, not to learn much. On a GPU take hundreds of examples, and ``fp16=True`` saves memory.
"""

from __future__ import annotations

import os

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from transformers import AutoTokenizer, Trainer, TrainingArguments

from constrained_adapters import CRMAConfig, CRMAModel
from constrained_adapters.config.run import DomainConfig
from constrained_adapters.data.load import load_domain
from constrained_adapters.data.tokens import TokenDataset, collate
from constrained_adapters.models.embedded import embedded_model_path

torch.manual_seed(0)

# 1. The base and the adapters' settings.
config = CRMAConfig(
    base_model_name="embedded",
    adapter_dim=64,
    constraint_strength=0.8,
    gradient_memory_size=1000,
    residual_scaling=0.2,
    domain_specific_layers=["q_proj", "v_proj", "o_proj"],
    use_gradient_constraint=True,
    constraint_type="fisher",
)
model = CRMAModel.from_pretrained(config)
tokenizer = AutoTokenizer.from_pretrained(embedded_model_path())
tokenizer.pad_token = tokenizer.eos_token


def examples_of(domain: str) -> TokenDataset:
    """A small slice of a packaged domain, as tokens with the loss on the answer."""
    loaded = load_domain(DomainConfig(name=domain, data=f"packaged:{domain}", max_train=8), seed=0)
    return TokenDataset.from_examples(loaded.train, tokenizer, max_length=80)


def pad(features: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """A batch out of rows of different lengths."""
    return collate(features, pad_token_id=tokenizer.pad_token_id)


# 2. The first domain: a plain Trainer.
adapter_name = "legal_domain_v1"
model.create_adapter(adapter_name, domain_id=0)
model.set_active_adapter(adapter_name)

training_args = TrainingArguments(
    output_dir="./legal_adapter",
    per_device_train_batch_size=4,
    gradient_accumulation_steps=8,
    learning_rate=2e-4,
    num_train_epochs=3,
    logging_steps=50,
    save_steps=500,
    fp16=torch.cuda.is_available(),  # on a CPU half precision only costs time
    gradient_checkpointing=True,
    optim="adamw_8bit",
    report_to="none",
)
Trainer(model=model, args=training_args, train_dataset=examples_of("law"), data_collator=pad).train()

model.freeze_adapter(adapter_name)
model.save_adapter("./legal_adapter", adapter_name)
model.update_gradient_memory(adapter_name)

# 3. The second domain, under the memory of the first and of what the base knew.
medical_adapter = "medical_domain_v1"
model.create_adapter(medical_adapter, domain_id=1)
model.set_active_adapters(["legal_domain_v1", "medical_domain_v1"])
model.enable_constrained_training(True)
Trainer(model=model, args=training_args, train_dataset=examples_of("medicine"), data_collator=pad).train()
print(f"closed directions: {100 * model.constraint_facts()['closed_ratio']:.0f} %")
print(f"removed of the last gradient: {100 * model.last_measurements['removed_ratio']:.0f} %")

model.freeze_adapter(medical_adapter)
model.save_adapter("./medical_adapter", medical_adapter)
model.update_gradient_memory(medical_adapter)

# 4. Either adapter, or both with weights.
model.eval()
question = [{"role": "user", "content": "What follows in law from a mistake of a doctor? One sentence."}]
input_ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt").input_ids


def show(title: str, response: torch.Tensor) -> None:
    """Print what was written after the question."""
    print(f"{title}: {tokenizer.decode(response[0, input_ids.shape[1] :], skip_special_tokens=True)}")


model.set_active_adapters(["legal_domain_v1"])
legal_response = model.generate(input_ids, max_length=500)
show("with the legal adapter", legal_response)

model.set_active_adapters(["medical_domain_v1"])
medical_response = model.generate(input_ids, max_length=500)
show("with the medical adapter", medical_response)

model.set_active_adapters(["legal_domain_v1", "medical_domain_v1"])
model.set_adapter_weights({"legal_domain_v1": 0.7, "medical_domain_v1": 0.3})
mixed_response = model.generate(input_ids, max_length=500)
show("with both adapters", mixed_response)

# 5. Back from disk, then one plain model for any engine.
model = CRMAModel.from_pretrained("embedded", adapters=["legal_adapter", "medical_adapter"])
model.merge_and_unload()
model.save_pretrained("./merged_model")
print("merged model: ./merged_model")
