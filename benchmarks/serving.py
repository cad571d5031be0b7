"""What serving costs and gains, each figure a ratio within one run; and a soak of ten thousand requests.

Run:   python benchmarks/serving.py --run runs/demo [--only throughput|first_token|soak] [--vllm PATH]
           [--llama PYTHON]
Makes: benchmarks/results/serving-<device>-<date>.json; with --only or --own-ends, that name is added

throughput   16 clients of mixed domains at once against the same 16 requests one by one, against PEFT's mixed
             batch (all 16 known beforehand, one ``generate``), and against vLLM and llama.cpp's server, where
             they are installed (scripts/engines.py), behind the same front with the same adapters. Answers
             have a fixed length, whatever the model says (llama.cpp then forbids the end's token, the others
             write it and go on, so answers differ behind it); with --own-ends they end where the model ends
             them, and are to be the same everywhere. Sides take turns.
first_token  Time to the first token of a request on an idle server, and while 15 others are being written.
soak         A tiny random model: requests of all domains, cancels, bad bodies and adapters that change, from
             24 clients; each answer is compared with that of its adapter computed without a server.

Every side has one thread of torch where OMP_NUM_THREADS=1 says so. The base is float32 everywhere.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import socket
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import torch
import uvicorn
from peft import PeftModel
from serving_soak import gauge, soak

from constrained_adapters.export.bases import find_base
from constrained_adapters.export.checkpoint import find_checkpoint
from constrained_adapters.export.gguf_base import write_gguf
from constrained_adapters.export.gguf_lora import write_gguf_lora
from constrained_adapters.export.lora import export_lora, make_mix
from constrained_adapters.model.domain_adapters import adapter_home
from constrained_adapters.model.opened import load_run_base, open_workspace
from constrained_adapters.serving.app import create_app
from constrained_adapters.serving.local import LocalEngine
from constrained_adapters.serving.server import listen
from constrained_adapters.serving.settings import ServeSettings
from constrained_adapters.serving.upstream_launch import upstream_engine, vllm_engine
from constrained_adapters.serving.vllm import COMMAND_VARIABLE, find_vllm
from constrained_adapters.training.run import environment
from constrained_adapters.workspace import find_workspace

ROOT = Path(__file__).parent
QUESTIONS = (
    "Which of these is a sign of an infection of the lungs: a low pulse, a cough with fever, or a rash?",
    "A company pays interest of five percent a year on its bonds. What is the yield if the price falls?",
    "Write a loop in Python that prints every second element of a list, beginning with the first one.",
    "Tell in a few words why the sky is blue at noon, and red in the evening when the sun goes down.",
)
Result = dict[str, Any]
Side = Callable[[int], list[str]]
"""Answers the first requests, as many as it is told."""


def main() -> None:
    """Measure and write."""
    options = read_options()
    if options.vllm:
        os.environ[COMMAND_VARIABLE] = str(options.vllm)
    results = {}
    for name, measure in MEASURES.items():
        if options.only in (None, name):
            results[name] = measure(options)
            print(f"{name}: {json.dumps(results[name].get('ratios', results[name]))}", flush=True)
    unsaid = {"results", "run", "vllm", "llama"}
    settings = {key: value for key, value in vars(options).items() if key not in unsaid}
    record = {
        "what": __doc__.split("\n")[0],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": environment(),
        "torch_threads": torch.get_num_threads(),
        "settings": {**settings, "run": Path(options.run).name},
        "results": results,
    }
    device = re.sub(r"[^a-z0-9]+", "-", str(record["environment"]["device"]).lower()).strip("-")[:40]
    suffix = (f"-{options.only}" if options.only else "") + ("-own-ends" if options.own_ends else "")
    path = options.results / f"serving-{device}-{datetime.now(UTC):%Y-%m-%d}{suffix}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"written to {path}")


def read_options() -> Any:
    """The command line."""
    parser = argparse.ArgumentParser(description="What serving costs and gains, as ratios.")
    parser.add_argument("--only", choices=sorted(MEASURES), help="measure this alone")
    parser.add_argument("--run", default="runs/demo", help="folder of a finished run")
    parser.add_argument("--rounds", type=int, default=3, help="rounds in which the sides take turns")
    parser.add_argument("--minutes", type=float, default=30, help="after which no new round begins")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=24, help="tokens of each answer")
    parser.add_argument("--own-ends", action="store_true", help="let answers end: to compare, not to time")
    parser.add_argument("--requests", type=int, default=10_000, help="of the soak")
    parser.add_argument("--vllm", type=Path, help="vLLM's command; left out: vLLM is not measured")
    parser.add_argument("--llama", type=Path, help="python of .engines/llama_server; left out: not measured")
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    return parser.parse_args()


# ---- throughput and time to first token, on the packaged model


def throughput(options: Any) -> Result:
    """Tokens per second of the sides."""
    opened = open_workspace(find_workspace(options.run), dtype="float32")
    settings = ServeSettings(slots=options.clients, context_tokens=256, queue=64)
    bodies = requests_of(["base", *opened.domains], options)
    local = LocalEngine(opened.model, opened.tokenizer, opened.adapters, settings)
    with (
        tempfile.TemporaryDirectory() as folder,
        running(create_app(local, settings, base_name="base")) as here,
    ):
        sides: dict[str, Side] = {
            "together": lambda count: asyncio.run(ask_all(here, bodies[:count], together=True)),
            "one by one": lambda count: asyncio.run(ask_all(here, bodies[:count], together=False)),
            "peft mixed batch": peft_side(opened, bodies, options, Path(folder)),
        }
        with ExitStack() as engines:
            workspace = find_workspace(options.run)
            if find_vllm() is not None:
                engine, _ = vllm_engine(workspace, settings, print)
                sides["vllm together"] = front(engines, engine, settings, bodies)
            if options.llama:
                behind = engines.enter_context(llama_server(opened, options, Path(folder)))
                engine, _ = upstream_engine(workspace, behind, settings, print)
                sides["llama.cpp together"] = front(engines, engine, settings, bodies)
            return compare(sides, options)


def front(engines: ExitStack, engine: Any, settings: ServeSettings, bodies: list[dict[str, Any]]) -> Side:
    """All requests at once to our front before another engine, which runs as long as ``engines``."""
    there = engines.enter_context(running(create_app(engine, settings, base_name="base")))
    return lambda count: asyncio.run(ask_all(there, bodies[:count], together=True))


@contextmanager
def llama_server(opened: Any, options: Any, folder: Path) -> Iterator[str]:
    """llama.cpp's server with the base and every adapter of the run in float32; its address."""
    config = opened.base.model.config
    adapters = {name for weights in opened.adapters.values() for name in weights}
    files = {name: folder / f"{name}.gguf" for name in sorted(adapters)}
    for name, file in files.items():
        mix = make_mix({adapter_home(opened.workspace, name): 1.0})
        write_gguf_lora(mix, config, file, "f32", name=name, record={})
    checkpoint = find_checkpoint(find_base([], opened.workspace))
    assert checkpoint is not None, "the base has no safetensors"
    write_gguf(checkpoint, folder / "base.gguf", "f32", name="base")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    script = ROOT.parent / "scripts" / "llama_server.py"
    sizes = ["--slots", str(options.clients), "--context", "256", "--threads", str(torch.get_num_threads())]
    loras = [part for file in files.values() for part in ("--lora", str(file))]
    command = [
        str(options.llama),
        str(script),
        str(folder / "base.gguf"),
        "--port",
        str(port),
        *sizes,
        *loras,
    ]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    address = f"http://127.0.0.1:{port}"
    try:
        while not is_healthy(address):
            if process.poll() is not None:
                raise RuntimeError(f"llama.cpp's server ended with exit code {process.returncode}")
            time.sleep(0.5)
        yield address
    finally:
        process.communicate(timeout=60)


def is_healthy(address: str) -> bool:
    """Whether a server answers."""
    try:
        return httpx2.get(f"{address}/health", trust_env=False).status_code == 200
    except httpx2.HTTPError:
        return False


def compare(sides: dict[str, Side], options: Any) -> Result:
    """Let the sides take turns until the rounds or the minutes are over; in the first round compare answers.

    Both clocks are read: the wall's, and the seconds in which a processor worked for this process or one of
    its children, which does not change where other work shares the machine.
    """
    for side in sides.values():
        side(4)  # warms up, and an engine loads its adapters
    seconds: dict[str, dict[str, list[float]]] = {clock: {name: [] for name in sides} for clock in CLOCKS}
    answers: dict[str, list[str]] = {}
    end = time.monotonic() + 60 * options.minutes
    for number in range(options.rounds):
        if number and time.monotonic() > end:
            break
        for name, side in sides.items():
            begun = {clock: read() for clock, read in CLOCKS.items()}
            written = side(options.clients)
            for clock, read in CLOCKS.items():
                seconds[clock][name].append(read() - begun[clock])
            answers.setdefault(name, written)
    equal = {
        name: sum(a == b for a, b in zip(written, answers["together"], strict=True))
        for name, written in answers.items()
    }
    num_tokens = options.clients * options.tokens
    return {
        "seconds": seconds,
        "ratios": {
            clock: {
                f"{name} / together": statistics.median(
                    theirs / ours for theirs, ours in zip(of[name], of["together"], strict=True)
                )
                for name in sides
                if name != "together"
            }
            for clock, of in seconds.items()
        },
        "tokens_per_second": {
            name: num_tokens / statistics.median(times) for name, times in seconds["wall"].items()
        },
        "answers_as_together": {name: f"{count} of {options.clients}" for name, count in equal.items()},
    }


def cpu_seconds() -> float:
    """Processor time of this process and of all its children (Linux)."""
    parents, ticks = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        parents[int(folder.name)] = int(fields[1])
        ticks[int(folder.name)] = int(fields[11]) + int(fields[12])
    mine = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in mine} - mine:
        mine |= more
    return sum(ticks[pid] for pid in mine) / os.sysconf("SC_CLK_TCK")


CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": cpu_seconds}


def requests_of(models: list[str], options: Any) -> list[dict[str, Any]]:
    """Bodies of the clients' requests: one domain after the other."""
    return [
        {
            "model": models[number % len(models)],
            "messages": [{"role": "user", "content": f"{QUESTIONS[number % len(QUESTIONS)]} ({number})"}],
            "max_tokens": options.tokens,
            "temperature": 0,
            "ignore_eos": not options.own_ends,
        }
        for number in range(options.clients)
    ]


def peft_side(opened: Any, bodies: list[dict[str, Any]], options: Any, folder: Path) -> Side:
    """PEFT's own mixed batch: each domain as one LoRA, all prompts known beforehand."""
    base = load_run_base(opened.workspace, dtype="float32").model
    model: Any = None
    for domain in opened.domains:
        adapters = {adapter_home(opened.workspace, name): w for name, w in opened.adapters[domain].items()}
        export_lora(adapters, folder / domain)
        if model is None:
            model = PeftModel.from_pretrained(base, str(folder / domain), adapter_name=domain)
        else:
            model.load_adapter(str(folder / domain), domain)
    model.eval()
    tokenizer = opened.tokenizer
    tokenizer.padding_side = "left"
    texts = [
        tokenizer.apply_chat_template(body["messages"], tokenize=False, add_generation_prompt=True)
        for body in bodies
    ]
    names = ["__base__" if body["model"] == "base" else body["model"] for body in bodies]

    def generate(count: int) -> list[str]:
        batch = tokenizer(texts[:count], return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.inference_mode():
            written = model.generate(
                **batch,
                adapter_names=names[:count],
                max_new_tokens=options.tokens,
                do_sample=False,
                eos_token_id=tokenizer.eos_token_id if options.own_ends else None,
                pad_token_id=tokenizer.pad_token_id,
            )
        new = written[:, batch["input_ids"].shape[1] :]
        return list(tokenizer.batch_decode(new, skip_special_tokens=True))

    return generate


def first_token(options: Any) -> Result:
    """Seconds to the first token, idle and while others are written."""
    opened = open_workspace(find_workspace(options.run), dtype="float32")
    settings = ServeSettings(slots=options.clients, context_tokens=512, queue=64)
    local = LocalEngine(opened.model, opened.tokenizer, opened.adapters, settings)
    bodies = requests_of(["base", *opened.domains], options)

    async def measure(address: str) -> Result:
        async with httpx2.AsyncClient(base_url=address, timeout=600) as client:
            await first_of(client, bodies[0])  # warms up
            idle = [await first_of(client, body) for body in bodies[:6]]
            others = [
                asyncio.create_task(read_all(client, {**body, "max_tokens": 400})) for body in bodies[:-1]
            ]
            await asyncio.sleep(0)
            await until_running(client, len(others))
            loaded = [await first_of(client, bodies[-1]) for _ in range(6)]
            still = sum(not task.done() for task in others)
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
        return {
            "seconds": {"idle": idle, "under load": loaded},
            "others_running_at_the_end": still,
            "ratios": {"under load / idle": statistics.median(loaded) / statistics.median(idle)},
        }

    with running(create_app(local, settings, base_name="base")) as address:
        return asyncio.run(measure(address))


async def ask_all(address: str, bodies: list[dict[str, Any]], *, together: bool) -> list[str]:
    """The answers, asked for at once or one after the other."""
    async with httpx2.AsyncClient(base_url=address, timeout=600) as client:

        async def ask(body: dict[str, Any]) -> str:
            reply = await client.post("/v1/chat/completions", json=body)
            reply.raise_for_status()
            return str(reply.json()["choices"][0]["message"]["content"])

        if together:
            return list(await asyncio.gather(*map(ask, bodies)))
        return [await ask(body) for body in bodies]


async def first_of(client: httpx2.AsyncClient, body: dict[str, Any]) -> float:
    """Seconds until the first chunk with a token."""
    begun = time.perf_counter()
    async with client.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as reply:
        reply.raise_for_status()
        async for line in reply.aiter_lines():
            if line.startswith("data: {"):
                return time.perf_counter() - begun
    raise RuntimeError("no token came")


async def read_all(client: httpx2.AsyncClient, body: dict[str, Any]) -> None:
    """Read a stream to its end."""
    async with client.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as reply:
        async for _ in reply.aiter_lines():
            pass


async def until_running(client: httpx2.AsyncClient, count: int) -> None:
    """Wait until so many answers hold a slot."""
    while gauge((await client.get("/metrics")).text, "crma_slots_taken") < count:
        await asyncio.sleep(0.1)
    await asyncio.sleep(2)


@contextmanager
def running(app: Any) -> Iterator[str]:
    """The address of a server of ``app`` in a thread of this process."""
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]})
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.05)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.should_exit = True
            thread.join()


MEASURES: dict[str, Callable[[Any], Result]] = {
    "throughput": throughput,
    "first_token": first_token,
    "soak": lambda options: soak(options.requests),
}


if __name__ == "__main__":
    main()
