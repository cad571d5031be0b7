"""What adapters cost: every figure a ratio of two things measured in turn in one run.

Run:   python benchmarks/speed.py [--only step|memory|domains|decode|mixed|switch] [--base embedded]
       python benchmarks/speed.py --base random --pairs 3     (a small random model, a minute)
Makes: benchmarks/results/speed-<device>-<date>.json; with --only, speed-<device>-<date>-<name>.json

The sides take turns (A B A B …), so that a machine whose speed drifts treats all alike, and a ratio is the
median over the rounds. Where other work shares the machine, ``--clock cpu`` counts the seconds in which a
processor worked for this process (with OMP_NUM_THREADS=1, for threads that wait would count too). PEFT's side
is a stock ``PeftModel`` that has loaded the same adapter folders; before it is timed its logits are compared
with ours. Peak memory is measured in a process of its own per side, from the first training step on.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from constrained_adapters import CRMAConfig, CRMAModel
from constrained_adapters.adapters.lora import adapter_pairs
from constrained_adapters.config.run import BaseConfig
from constrained_adapters.memory.reservoir import num_memory_examples
from constrained_adapters.models.load import load_base
from constrained_adapters.training.peak import peak_memory_bytes, reset_peak_memory
from constrained_adapters.training.run import environment

ROOT = Path(__file__).parent
DOMAIN_STEPS = 120
"""A domain's training, to which the memory update is compared."""

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}

Times = dict[str, list[float]]
Result = dict[str, Any]


def main() -> None:
    """Measure and write."""
    options = read_options()
    if options.peak:
        print(json.dumps(peak_of(options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        options.work = options.work or Path(folder)
        if options.base == "random":
            options.base = write_random_base(Path(folder) / "random")
        results = {}
        for name, measure in MEASURES.items():
            if options.only in (None, name):
                results[name] = measure(options)
                print(f"{name}: {json.dumps(results[name]['ratios'])}", flush=True)
    settings = {key: value for key, value in vars(options).items() if key not in {"work", "peak", "results"}}
    record = {
        "what": "seconds of two or more sides in turn; each ratio is the median over the rounds",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": environment(),
        "settings": {**settings, "base": Path(str(options.base)).name},
        "results": results,
    }
    device = re.sub(r"[^a-z0-9]+", "-", str(record["environment"]["device"]).lower()).strip("-")[:40]
    suffix = f"-{options.only}" if options.only else ""
    path = options.results / f"speed-{device}-{datetime.now(UTC):%Y-%m-%d}{suffix}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"written to {path}")


def read_options() -> Any:
    """The command line."""
    parser = argparse.ArgumentParser(description="What adapters cost, as ratios.")
    parser.add_argument("--only", choices=sorted(MEASURES), help="measure this alone")
    parser.add_argument("--base", default="embedded", help="a base, or 'random': a small one made in code")
    parser.add_argument("--pairs", type=int, default=10, help="rounds that count; one or two more warm up")
    parser.add_argument("--batch-size", type=int, default=8, help="rows of a training step")
    parser.add_argument("--tokens", type=int, default=96, help="tokens of a row")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--domains", type=int, default=16, help="finished domains; rows of the mixed batch")
    parser.add_argument("--active", type=int, default=8, help="active weighted adapters while decoding")
    parser.add_argument("--decode-tokens", type=int, default=32, help="tokens written per row and round")
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall", help="cpu: where others work too")
    parser.add_argument("--work", type=Path, help="keeps the prepared sets here, for a call alike")
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    parser.add_argument("--peak", help=argparse.SUPPRESS)  # one side of one peak, in a process of its own
    return parser.parse_args()


# ---- the six measurements


def step(options: Any) -> Result:
    """A constrained training step against a plain PEFT LoRA step: the same model, batch and AdamW."""
    model = CRMAModel.from_pretrained(settings_of(options))
    train = trainable(model, "first", ["first"], options)
    begun = time.perf_counter()
    model.enable_constrained_training(True)
    base_memory_seconds = time.perf_counter() - begun

    def switched(enabled: bool) -> Callable[[], object]:
        return lambda: model.enable_constrained_training(enabled)

    times = in_turn(
        {"plain": train, "constrained": train},
        options.pairs,
        options.clock,
        before={"plain": switched(False), "constrained": switched(True)},
    )
    facts = model.constraint_facts()
    return {
        **report(times, {"constrained / plain": ("constrained", "plain")}),
        "constraint": facts,
        "base_memory_seconds": base_memory_seconds,
    }


def memory(options: Any) -> Result:
    """The memory update of a domain as a share of its training, taken as 120 constrained steps."""
    model = CRMAModel.from_pretrained(settings_of(options))
    train = trainable(model, "first", ["first"], options)
    model.enable_constrained_training(True)
    count = num_memory_examples(DOMAIN_STEPS * options.batch_size, model.crma_config.gradient_memory_size)
    rows = [
        (row, answer_labels(row[None])[0]) for row in token_rows(model, count, options.tokens, seed=1).cpu()
    ]

    def update() -> None:
        model.update_gradient_memory("first", rows, max_examples=count)

    times = in_turn({"step": train, "update": update}, max(2, options.pairs // 3), options.clock, num_warm=1)
    shares = [u / (DOMAIN_STEPS * s) for u, s in zip(times["update"], times["step"], strict=True)]
    return {
        **report(times, {}),
        "ratios": {f"update / {DOMAIN_STEPS} steps": statistics.median(shares)},
        "examples": count,
        "denominator": f"{DOMAIN_STEPS} × the constrained step measured beside it, not a whole training",
    }


def domains(options: Any) -> Result:
    """Time and peak memory of a step with many finished domains against one, and against PEFT's loop."""
    many, one = finished(options, options.domains), finished(options, 1)
    names = domain_names(options.domains)
    sides: dict[str, Callable[[], object]] = {}
    for key, folder, active in (("ours, 1", one, names[:1]), (f"ours, {options.domains}", many, names)):
        model = CRMAModel.from_pretrained(folder)
        sides[key] = trainable(model, "new", [*active, "new"], options)
        model.enable_constrained_training(True)
    sides[f"peft, {options.domains}"] = peft_step(many, names, options)
    most, theirs = f"ours, {options.domains}", f"peft, {options.domains}"
    times = in_turn(sides, options.pairs, options.clock)
    sides.clear()  # the peaks are other processes', which want the room
    del model
    gc.collect()
    peaks = {key: peak_in_process(key, folder, options) for key, folder in peak_sides(options, one, many)}
    return {
        **report(
            times,
            {f"{most} / ours, 1": (most, "ours, 1"), f"{theirs} / ours, 1": (theirs, "ours, 1")},
        ),
        "peak_bytes": peaks,
        "peak_ratios": {key: peaks[key] / peaks["ours, 1"] for key in peaks if key != "ours, 1"},
        "finished": "each with its adapter and memory, all active; one more in training",
    }


def decode(options: Any) -> Result:
    """Tokens per second of one row: the base, one folded adapter, many weighted ones, and PEFT's loop."""
    folder, names = finished(options, max(options.active, 1), memories=False), domain_names(options.active)
    weights = {name: 1.0 / (number + 1) for number, name in enumerate(names)}
    base = bare_base(options)
    one, many = (CRMAModel.from_pretrained(folder).eval() for _ in range(2))
    one.set_active_adapter(names[0])
    many.set_active_adapters(names)
    many.set_adapter_weights(weights)
    stock = stock_peft(folder, names, options)
    for module in stock.modules():
        if hasattr(module, "lora_A"):
            for name, weight in weights.items():
                module.set_scale(name, weight)
    prompt = token_rows(many, 1, 16)
    check_same(many, stock, prompt)
    sides = {
        "base": writing(base, prompt, options),
        "folded, 1": writing(one, prompt, options),
        f"folded, {options.active}": writing(many, prompt, options),
        f"peft, {options.active}": writing(stock, prompt, options),
    }
    times = in_turn(sides, options.pairs, options.clock)
    # Speeds, so base over side: 1 is as fast as the base.
    return {
        **report(times, {f"{key} / base": ("base", key) for key in sides if key != "base"}),
        "tokens_per_second": {
            key: options.decode_tokens / statistics.median(value) for key, value in times.items()
        },
        "ratio_of": "tokens per second",
    }


def mixed(options: Any) -> Result:
    """A batch in which each row has another adapter, decoded by ours and by PEFT's mixed batch."""
    folder, names = finished(options, options.domains, memories=False), domain_names(options.domains)
    ours, base = CRMAModel.from_pretrained(folder).eval(), bare_base(options)
    stock = stock_peft(folder, names, options)
    prompts = token_rows(ours, len(names), 16)
    check_same(ours, stock, prompts, adapter_names=names)
    times = in_turn(
        {
            "ours": writing(ours, prompts, options, adapter_names=names),
            "peft": writing(stock, prompts, options, adapter_names=names),
            "base": writing(base, prompts, options),
        },
        options.pairs,
        options.clock,
    )
    count = options.decode_tokens * len(names)
    return {
        **report(times, {"ours / peft": ("peft", "ours"), "ours / base": ("base", "ours")}),
        "tokens_per_second": {key: count / statistics.median(value) for key, value in times.items()},
        "ratio_of": "tokens per second",
    }


def switch(options: Any) -> Result:
    """Changing the active adapter, the pass that follows it (it folds), and a pass after that."""
    model = CRMAModel.from_pretrained(finished(options, 2, memories=False)).eval()
    names, prompt = domain_names(2), token_rows(model, 1, 16)
    turn = [0]

    def change() -> None:
        turn[0] += 1
        model.set_active_adapter(names[turn[0] % 2])

    @torch.no_grad()
    def run() -> None:
        model(input_ids=prompt)

    times = in_turn(
        {"switch": change, "first pass": run, "later pass": run}, max(options.pairs, 10), options.clock
    )
    return {
        **report(times, {"first / later pass": ("first pass", "later pass")}),
        "switch_milliseconds": 1000 * statistics.median(times["switch"]),
        "layers": len({pair.module for pair in adapter_pairs(model, names[0])}),
        "pass": "1 × 16 tokens",
    }


MEASURES: dict[str, Callable[[Any], Result]] = {
    "step": step,
    "memory": memory,
    "domains": domains,
    "decode": decode,
    "mixed": mixed,
    "switch": switch,
}


# ---- timing


def in_turn(
    sides: dict[str, Callable[[], object]],
    num_rounds: int,
    clock: str,
    *,
    before: dict[str, Callable[[], object]] | None = None,
    num_warm: int = 2,
) -> Times:
    """Seconds of each side, round after round; ``before`` runs ahead of a side and is not timed."""
    times: Times = {key: [] for key in sides}
    now = CLOCKS[clock]
    for number in range(num_rounds + num_warm):
        for key, run in sides.items():
            if before is not None:
                before[key]()
            synchronize()
            start = now()
            run()
            synchronize()
            if number >= num_warm:
                times[key].append(now() - start)
    return times


def report(times: Times, ratios: dict[str, tuple[str, str]]) -> Result:
    """Medians, and the median over the rounds of each ratio (numerator, denominator)."""
    return {
        "ratios": {
            name: statistics.median(a / b for a, b in zip(times[top], times[bottom], strict=True))
            for name, (top, bottom) in ratios.items()
        },
        "median_seconds": {key: statistics.median(value) for key, value in times.items()},
        "seconds": times,
    }


def synchronize() -> None:
    """Wait for the GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


# ---- the sides


def settings_of(options: Any) -> CRMAConfig:
    """The adapters' settings, alike for all."""
    return CRMAConfig(base_model_name=str(options.base), adapter_dim=options.rank)


def domain_names(count: int) -> list[str]:
    """Names of the finished domains."""
    return [f"domain_{number:02d}" for number in range(count)]


def finished(options: Any, count: int, *, memories: bool = True) -> Path:
    """The folder of a set with ``count`` finished domains, made once: adapters far from zero, memories."""
    folder: Path = options.work / f"finished_{count}{'' if memories else '_bare'}"
    if folder.is_dir():
        return folder
    torch.manual_seed(0)
    model = CRMAModel.from_pretrained(settings_of(options))
    for number, name in enumerate(domain_names(count)):
        model.create_adapter(name)
        for pair in adapter_pairs(model, name):
            torch.nn.init.normal_(pair.b, std=0.02)
        model.set_active_adapter(name)
        model.freeze_adapter(name)
        if memories:
            rows = token_rows(model, 8, 32, seed=number).cpu()
            model.update_gradient_memory(name, [(row, row) for row in rows])
        print(f"prepared {name}", file=sys.stderr, flush=True)
    model.set_active_adapters(model.adapter_names)
    if memories:
        model.base_memory = model.make_base_memory()
    model.save_pretrained(folder)
    return folder


def trainable(model: Any, name: str, active: list[str], options: Any) -> Callable[[], None]:
    """One optimizer step of a new adapter beside the other ``active`` ones."""
    model.create_adapter(name)
    model.set_active_adapters(active)
    return optimizer_step(model, options)


def peft_step(folder: Path, names: list[str], options: Any) -> Callable[[], None]:
    """The same step by stock PEFT, all finished adapters in its loop."""
    model = stock_peft(folder, names, options)
    model.add_adapter("new", model.peft_config[names[0]])
    model.base_model.set_adapter([*names, "new"])
    for key, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in key and ".new." in key)
    return optimizer_step(model, options)


def optimizer_step(model: Any, options: Any) -> Callable[[], None]:
    """Forward, backward and AdamW on one fixed batch with eight answer tokens a row."""
    ids = token_rows(model, options.batch_size, options.tokens)
    labels = answer_labels(ids)
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)

    def run() -> None:
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def bare_base(options: Any) -> Any:
    """The base without any adapter code."""
    return load_base(BaseConfig(model=str(options.base))).model.eval()


def stock_peft(folder: Path, names: list[str], options: Any) -> Any:
    """A stock ``PeftModel`` with the adapters of ``folder``, all active, in evaluation mode."""
    model = PeftModel.from_pretrained(bare_base(options), folder / names[0], adapter_name=names[0])
    for name in names[1:]:
        model.load_adapter(folder / name, name)
    model.base_model.set_adapter(names)
    return model.eval()


def writing(model: Any, prompts: torch.Tensor, options: Any, **extra: Any) -> Callable[[], None]:
    """Greedy decoding of a fixed number of tokens with the key-value cache."""

    def run() -> None:
        model.generate(
            input_ids=prompts,
            attention_mask=torch.ones_like(prompts),
            do_sample=False,
            max_new_tokens=options.decode_tokens,
            min_new_tokens=options.decode_tokens,
            pad_token_id=0,
            **extra,
        )

    return run


@torch.no_grad()
def check_same(ours: Any, theirs: Any, ids: torch.Tensor, **extra: Any) -> None:
    """Both sides must compute the same, up to rounding in the base's type."""
    a, b = (model(input_ids=ids, **extra).logits.float() for model in (ours, theirs))
    off = float((a - b).norm() / b.norm())
    if off > (1e-3 if ours.get_input_embeddings().weight.dtype == torch.float32 else 5e-2):
        raise SystemExit(f"the two sides differ by {off:.1%} of the logits: there is nothing to compare")


def token_rows(model: Any, count: int, length: int, seed: int = 0) -> torch.Tensor:
    """Seeded random tokens, shape (count, length), on the model's device."""
    table = model.get_input_embeddings().weight
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, min(20_000, table.shape[0]), (count, length), generator=generator)
    return ids.to(table.device)


def answer_labels(ids: torch.Tensor) -> torch.Tensor:
    """Loss on the last eight tokens of each row."""
    labels = ids.clone()
    labels[:, :-8] = -100
    return labels


# ---- peak memory


def peak_sides(options: Any, one: Path, many: Path) -> list[tuple[str, Path]]:
    """The sides whose peak is measured, with the set that each loads."""
    return [("ours, 1", one), (f"ours, {options.domains}", many), (f"peft, {options.domains}", many)]


def peak_in_process(side: str, folder: Path, options: Any) -> int:
    """Run this file again for one side."""
    sizes = [f"--{key}={getattr(options, key.replace('-', '_'))}" for key in ("batch-size", "tokens", "rank")]
    command = [sys.executable, __file__, f"--peak={side};{folder}", f"--base={options.base}", *sizes]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    return int(json.loads(done.stdout.splitlines()[-1]))


def peak_of(options: Any) -> int:
    """Most memory of three training steps of one side, loading left out where the system can tell."""
    side, _, where = options.peak.partition(";")
    folder = Path(where)
    names = json.loads((folder / "crma_model.json").read_text(encoding="utf-8"))["adapters"]
    if side.startswith("peft"):
        run: Callable[[], object] = peft_step(folder, names, options)
    else:
        model = CRMAModel.from_pretrained(folder)
        run = trainable(model, "new", [*names, "new"], options)
        model.enable_constrained_training(True)
    reset_peak_memory()
    for _ in range(3):
        run()
    return peak_memory_bytes()


# ---- a base for trying this file out


def write_random_base(folder: Path) -> str:
    """A random Llama of 4 layers of width 256 and a tokenizer of single bytes."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    alphabet = ["<pad>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>").save_pretrained(folder)
    return str(folder)


if __name__ == "__main__":
    main()
