"""Exports in the engines they are for: differences, time, memory, size, and tokens per second.

``OMP_NUM_THREADS=1 python benchmarks/engines.py --run runs/demo [--part PART]``

Each part writes into one JSON file in ``benchmarks/results`` as soon as it is measured, and is not measured
again while it is there. The engines are those of ``scripts/engines.py``. Differences of log-probabilities are
between the engine and this library's own model in float32, on the tokens that the engine wrote. Speed is in
CPU seconds of one thread, base and adapters in turn, so that a shared machine does not blur it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ENGINES = ROOT / ".engines"
DOMAIN, MIX = "finance", {"medicine": 0.7, "finance": 0.3}
ROUTES: dict[str, tuple[str, dict[str, Any]]] = {
    "lora, float32": ("lora", {}),
    "lora, bfloat16": ("lora", {"dtype": "bfloat16"}),
    "mix as one lora, float32": ("mix", {}),
    "mix, compressed to rank 16": ("mix", {"rank": 16}),
    "merged, float32": ("merged", {"dtype": "float32"}),
    "merged, bfloat16": ("merged", {"dtype": "bfloat16"}),
    "merged, float16": ("merged", {"dtype": "float16"}),
    "gguf lora, f32": ("gguf", {}),
    "gguf lora, f16": ("gguf", {"lora_type": "f16"}),
    "gguf merged, f32": ("gguf", {"merge": True, "model_type": "f32"}),
    "gguf merged, f16": ("gguf", {"merge": True, "model_type": "f16"}),
    "gguf merged, q8_0": ("gguf", {"merge": True, "model_type": "q8_0"}),
}
TOKENS, ROUNDS, BATCH = 32, 3, 4


def main() -> None:
    """Measure what is asked for and not there yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "demo")
    parser.add_argument("--part", choices=PARTS, help="default: all")
    parser.add_argument("--minutes", type=float, default=9.0, help="begin nothing new after this long")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    default = ROOT / "benchmarks" / "results" / f"engines-{date.today()}.json"
    store = Store(arguments.output or default, time.monotonic() + 60 * arguments.minutes)
    for name, part in PARTS.items():
        if arguments.part in {None, name}:
            part(store, arguments.run)


class Store:
    """The results file."""

    def __init__(self, path: Path, end: float) -> None:
        self.path, self.end = path, end
        self.record = json.loads(path.read_text()) if path.exists() else {}

    def wants(self, part: str, key: str) -> bool:
        """Whether this is not measured yet, and there is time."""
        return key not in self.record.get(part, {}) and time.monotonic() < self.end

    def keep(self, part: str, key: str, value: Any) -> None:
        """Write it down."""
        from constrained_adapters.training.run import environment

        if self.path.exists():  # another part may have been measured meanwhile
            self.record = json.loads(self.path.read_text())
        self.record.setdefault("environment", environment())
        self.record.setdefault(part, {})[key] = value
        self.path.write_text(json.dumps(self.record, indent=1) + "\n", encoding="utf-8")
        print(f"{part}: {key}: {json.dumps(value)[:300]}", flush=True)


def exports(store: Store, run: Path) -> None:
    """Time, peak memory and size of each route without its check; then what the check says."""
    wanted = [name for name in ROUTES if store.wants("exports", name)]
    if not wanted:
        return
    from constrained_adapters.export.bases import find_base, open_base
    from constrained_adapters.export.checked import export_loras, export_merged
    from constrained_adapters.export.checked_gguf import export_ggufs
    from constrained_adapters.export.reference import make_reference
    from constrained_adapters.export.sources import find_sources
    from constrained_adapters.training.peak import peak_memory_bytes, reset_peak_memory
    from constrained_adapters.workspace import find_workspace

    workspace = find_workspace(run)
    one, mix = find_sources([DOMAIN], workspace), find_sources([], workspace, mix=MIX)
    base = find_base(one, workspace)
    routes = {"lora": export_loras, "mix": export_loras, "merged": export_merged, "gguf": export_ggufs}
    with tempfile.TemporaryDirectory() as folder:
        measured = {}
        for number, name in enumerate(wanted):
            kind, options = ROUTES[name]
            reset_peak_memory()
            before, begun = peak_memory_bytes(), time.process_time()
            sources = mix if kind == "mix" else one
            home = Path(folder) / str(number)
            (done,) = routes[kind](sources, home, base, check=False, **options)
            measured[name] = {
                "cpu_seconds": time.process_time() - begun,
                "added_peak_memory_bytes": peak_memory_bytes() - before,
                "size_bytes": done.num_bytes,
                "what": done.what,
            }
        reference = make_reference([*one, *mix], open_base(base))
        for number, name in enumerate(wanted):
            path = only(Path(folder) / str(number))
            kind, options = ROUTES[name]
            check = check_of(reference, mix if kind == "mix" else one, path, kind, options)
            store.keep("exports", name, {**measured[name], "check": check.record()})


def check_of(reference: Any, sources: Any, path: Path, kind: str, options: dict[str, Any]) -> Any:
    """Hold one export against the reference, as the command does."""
    from dataclasses import replace

    from constrained_adapters.export.checked_gguf import compare_gguf
    from constrained_adapters.export.gguf_lora import read_gguf_lora
    from constrained_adapters.export.lora import make_mix, write_mix
    from constrained_adapters.export.reference import compare_lora, compare_merged

    name, dtype = sources[0].name, options.get("dtype", "float32")
    if kind in {"lora", "mix"}:
        return compare_lora(reference, name, path, dtype)
    if kind == "merged":
        return compare_merged(reference, name, path, dtype)
    if options.get("merge"):
        return compare_gguf(reference, reference.answers[name], path, options["model_type"])
    mix = make_mix(sources[0].adapters)
    back = replace(mix, pairs=read_gguf_lora(path, reference.base.model.config, list(mix.pairs)))
    with tempfile.TemporaryDirectory() as folder:
        write_mix(back, Path(folder), dtype="float32")
        return compare_lora(reference, name, Path(folder), dtype)


def stream(store: Store, run: Path) -> None:
    """Merging a base of 1.6 GB of random weights in shards of 200 MB: how much memory does it take?"""
    if not store.wants("stream", "merge"):
        return
    with tempfile.TemporaryDirectory() as folder:
        code = STREAM.format(folder=folder)
        made = measured_python(code.split("# ----")[0])
        merged = measured_python(code.split("# ----")[1])
    idle = measured_python("import constrained_adapters.export.checked")
    facts = {"base": json.loads(made[0]), **json.loads(merged[0].splitlines()[-1])}
    store.keep("stream", "merge", {**facts, "peak_memory_bytes": merged[1], "after_imports_bytes": idle[1]})


STREAM = """
import json, torch
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
from safetensors.torch import save_file
config = LlamaConfig(vocab_size=8192, hidden_size=2048, intermediate_size=8192, num_hidden_layers=12,
    num_attention_heads=16, num_key_value_heads=16, architectures=["LlamaForCausalLM"])
with torch.device("meta"):
    model = LlamaForCausalLM(config)
base = Path("{folder}") / "base"
base.mkdir()
names, files, size = list(model.state_dict().items()), {{}}, 0
for at in range(0, len(names), 20):
    part = {{n: torch.randn(t.shape, dtype=torch.bfloat16) * 0.02 for n, t in names[at : at + 20]}}
    size += sum(t.nbytes for t in part.values())
    save_file(part, base / f"part{{at}}.safetensors")
    files |= {{n: f"part{{at}}.safetensors" for n in part}}
(base / "model.safetensors.index.json").write_text(json.dumps({{"metadata": {{}}, "weight_map": files}}))
config.save_pretrained(base)
print(json.dumps({{"bytes": size, "layers": 12}}))
# ----
import json, time, torch
from pathlib import Path
from constrained_adapters.export.checkpoint import Checkpoint
from constrained_adapters.export.lora import Mix
from constrained_adapters.export.merged import write_merged
from types import SimpleNamespace
base = Checkpoint(Path("{folder}") / "base")
shapes = {{e.name.removesuffix(".weight"): e.shape for e in base.entries.values() if "_proj" in e.name}}
pairs = {{n: (torch.randn(16, s[1]), torch.randn(s[0], 16)) for n, s in shapes.items()}}
mix = Mix(pairs, {{"law": 1.0}}, 16, 16, 0.0, None, (SimpleNamespace(transposed=False),))
target = Path("{folder}") / "merged"
target.mkdir()
begun = time.perf_counter()
merge = write_merged(base, mix, target, shard_bytes=200_000_000)
seconds = time.perf_counter() - begun
adapter_bytes = sum(a.nbytes + b.nbytes for a, b in pairs.values())
print(json.dumps({{"seconds": seconds, "shards": merge.num_shards, "adapter_bytes": adapter_bytes}}))
"""


def transformers_part(store: Store, run: Path) -> None:
    """Tokens per second of stock transformers and PEFT, float32, one thread."""
    if not store.wants("transformers", "tokens_per_second"):
        return
    import torch
    from peft import PeftModel

    with tempfile.TemporaryDirectory() as folder:
        crma(["export", "lora", DOMAIN, "--run", str(run), "-o", folder, "--no-check"])
        base, prompts = stock_base()
        model: Any = PeftModel.from_pretrained(base, str(Path(folder) / DOMAIN)).eval()
        seconds: dict[str, list[float]] = {
            "base": [],
            "with adapter": [],
            "base, batch": [],
            "with adapter, batch": [],
        }
        for _ in range(ROUNDS):
            for batch in (1, BATCH):
                ids = torch.tensor([prompts[0]] * batch)
                suffix = ", batch" if batch > 1 else ""
                with model.disable_adapter():
                    seconds[f"base{suffix}"].append(decode(model, ids))
                seconds[f"with adapter{suffix}"].append(decode(model, ids))
    store.keep("transformers", "tokens_per_second", speeds(seconds))


def decode(model: Any, ids: Any) -> float:
    """CPU seconds for :data:`TOKENS` greedy tokens."""
    import torch

    with torch.inference_mode():
        begun = time.process_time()
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            min_new_tokens=TOKENS,
            max_new_tokens=TOKENS,
            pad_token_id=0,
        )
        return time.process_time() - begun


def vllm(store: Store, run: Path) -> None:
    """VLLM's CPU build: differences with several adapters and a mix, and tokens per second."""
    if not store.wants("vllm", "tokens_per_second"):
        return
    from constrained_adapters.models.embedded import embedded_model_path

    with tempfile.TemporaryDirectory() as folder:
        for words in ([DOMAIN], ["--mix", "medicine=0.7,finance=0.3"]):
            crma(
                [
                    "export",
                    "lora",
                    *words,
                    "--run",
                    str(run),
                    "-o",
                    folder,
                    "--pad-rank",
                    "auto",
                    "--no-check",
                ]
            )
        base, prompts = stock_base()
        adapters = {path.name: str(path) for path in sorted(Path(folder).iterdir())}
        task = {
            "model": str(embedded_model_path()),
            "adapters": adapters,
            "max_lora_rank": 32,
            "prompts": [prompts[0]] * BATCH,
            "max_tokens": TOKENS,
            "rounds": ROUNDS,
            "requests": [[0, name] for name in [None, *adapters]],
        }
        found = ask("vllm", task)
        differences = {}
        for answer in found["answers"]:
            weights = {} if answer["adapter"] is None else {adapters[answer["adapter"]]: 1.0}
            differences[answer["adapter"] or "base"] = difference(base, weights, prompts[0], answer)
    store.keep("vllm", "log_probabilities", differences)
    seconds = {f"{name or 'base'}, batch": taken for name, taken in found["cpu_seconds"].items()}
    store.keep("vllm", "tokens_per_second", speeds(seconds))


def llama_cpp(store: Store, run: Path) -> None:
    """llama.cpp: our float32 base and the packaged 4-bit one, adapters with weights, tokens per second."""
    from constrained_adapters.models.embedded import embedded_gguf_path

    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        words = ["export", "lora", "medicine", "finance", "--alone", "--run", str(run), "-o", folder]
        crma([*words, "--no-check"])
        words = ["export", "gguf", "medicine", "finance", "--alone", "--with-base", "--type", "f32"]
        crma([*words, "--run", str(run), "-o", folder, "--no-check"])
        base, prompts = stock_base()
        adapters = {name: str(home / f"{name}.gguf") for name in MIX}
        for name, model in {"f32": home / "base.gguf", "packaged Q4_1": embedded_gguf_path()}.items():
            if not store.wants("llama_cpp", name):
                continue
            requests = [[0, {}], [0, {"medicine": 1.0}], [0, MIX]]
            task = {"model": str(model), "adapters": adapters, "prompts": prompts, "max_tokens": TOKENS}
            found = ask("llama_cpp", {**task, "rounds": ROUNDS, "requests": requests})
            differences = {}
            for answer in found["answers"]:
                shown = ", ".join(f"{n} × {w:g}" for n, w in answer["weights"].items()) or "base"
                weights = {str(home / n): w for n, w in answer["weights"].items()}
                differences[shown] = difference(base, weights, prompts[0], answer)
            speed = speeds({each or "base": taken for each, taken in found["cpu_seconds"].items()})
            store.keep("llama_cpp", name, {"log_probabilities": differences, "tokens_per_second": speed})


Answer = dict[str, Any]


def difference(base: Any, weights: dict[str, float], prompt: list[int], answer: Answer) -> Answer:
    """Of the engine's log-probabilities from those of the base with these adapters, in float32."""
    import torch
    from peft import PeftModel

    model = base
    if weights:
        for number, folder in enumerate(weights):
            if number == 0:
                model = PeftModel.from_pretrained(base, folder, adapter_name="a0")
            else:
                model.load_adapter(folder, f"a{number}")
        model.base_model.set_adapter([f"a{number}" for number in range(len(weights))])
        for module in model.modules():
            if hasattr(module, "set_scale"):
                for number, weight in enumerate(weights.values()):
                    module.set_scale(f"a{number}", weight)
        model.eval()
    tokens = torch.tensor(answer["tokens"])
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + answer["tokens"]])).logits[0, len(prompt) - 1 : -1]
    ours = logits.log_softmax(-1)
    chosen = ours.gather(-1, tokens[:, None])[:, 0]
    if weights:
        model.unload()
    return {
        "largest_difference": float((chosen - torch.tensor(answer["logprobs"])).abs().max()),
        "same_greedy_tokens": int((ours.argmax(-1) == tokens).sum()),
        "num_tokens": len(answer["tokens"]),
    }


def stock_base() -> tuple[Any, list[list[int]]]:
    """The default model in float32 by stock transformers, and a prompt."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from constrained_adapters.models.embedded import embedded_model_path

    folder = embedded_model_path()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return model, [tokenizer("The quarterly report says that the company will")["input_ids"]]


def speeds(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Medians over the rounds, in CPU seconds, tokens of all rows of a batch counted."""
    return {
        name: {
            "tokens_per_cpu_second": TOKENS
            * (BATCH if name.endswith("batch") else 1)
            / statistics.median(taken),
            "cpu_seconds": taken,
        }
        for name, taken in seconds.items()
    }


def crma(words: list[str]) -> tuple[str, int]:
    """What a command prints, and its peak memory."""
    start = "from constrained_adapters.cli.main import main; main()"
    return measured_python(f"import sys; sys.argv[1:] = {words!r}; {start}")


def measured_python(code: str) -> tuple[str, int]:
    """What the code prints, and the peak memory of its process in bytes."""
    measure = (
        "import atexit, resource, sys; atexit.register(lambda: sys.stderr.write("
        "'\\nPEAK %d' % resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))\n"
    )
    done = subprocess.run([sys.executable, "-c", measure + code], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return done.stdout, int(done.stderr.rpartition("PEAK ")[2]) * 1024


def ask(engine: str, task: dict[str, Any]) -> dict[str, Any]:
    """Let an engine answer, in its own environment."""
    runner = ROOT / "tests" / "engines" / f"{engine}_runner.py"
    settings = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
    }
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [ENGINES / engine / "bin" / "python", runner, result]
        done = subprocess.run(
            command,
            input=json.dumps(task),
            env={**os.environ, **settings},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            sys.exit(done.stderr[-3000:])
        found: dict[str, Any] = json.loads(result.read_text())
    return found


def only(folder: Path) -> Path:
    """What lies in a folder that holds one thing."""
    (path,) = folder.iterdir()
    return path


PARTS = {
    "exports": exports,
    "stream": stream,
    "transformers": transformers_part,
    "vllm": vllm,
    "llama_cpp": llama_cpp,
}

if __name__ == "__main__":
    main()
