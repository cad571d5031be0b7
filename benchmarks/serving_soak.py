"""Ten thousand requests to a server on a tiny random model; ``benchmarks/serving.py --only soak`` calls it.

Requests of all domains and a mix, streams, cancels, bad bodies and an adapter that changes, from 24 clients;
each answer is compared with that of its adapter computed without a server.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx2
import torch

from constrained_adapters.serving.app import create_app
from constrained_adapters.serving.local import LocalEngine
from constrained_adapters.serving.server import listen, run_app
from constrained_adapters.serving.settings import ServeSettings

ROOT = Path(__file__).parent
Result = dict[str, Any]

SOAK_DOMAINS = ("law", "medicine", "history")
PROMPTS = tuple(f"question {number} about the {word}" for number, word in enumerate("abcdefgh"))
SOAK_TOKENS = 12
MIX = {"law": 0.7, "history": -0.4}
BAD_BODIES: tuple[tuple[int, Any], ...] = (
    (400, b"{"),
    (400, {"model": "law"}),
    (404, {"model": "lww", "prompt": "x"}),
    (400, {"model": "law", "prompt": "x" * 2000}),
    (400, {"model": "law", "prompt": "x", "max_tokens": 10**9}),
    (400, {"model": "base", "prompt": "x", "adapters": {"law": "much"}}),
    (404, {"model": "../law", "prompt": "x"}),
    (413, b" " * 60_000),
)


def tiny_model(folder: Path) -> tuple[Any, Any]:
    """A seeded random Llama, a byte tokenizer, three adapters; two versions of a fourth in ``folder``."""
    sys.path.insert(0, str(ROOT.parent))
    from tests import conftest as tests
    from tests.unit.serving.conftest import with_adapters

    tokenizer = tests.tiny_tokenizer.__wrapped__()
    tokenizer.eos_token = None
    base = tests.tiny_llama.__wrapped__()
    base.generation_config.eos_token_id = None
    model = with_adapters(base, tokenizer, SOAK_DOMAINS)
    for version in (1, 2):
        torch.manual_seed(version)
        model.create_adapter(f"version{version}")
        if not (folder / str(version)).exists():
            model.save_adapter(folder / str(version), f"version{version}")
    return model, tokenizer


def serve_tiny(folder: Path) -> None:
    """The soak's server: prints its address, serves until it is told to stop."""
    torch.set_num_threads(1)
    model, tokenizer = tiny_model(folder)
    for version in (1, 2):
        model.delete_adapter(f"version{version}")
    settings = ServeSettings(
        slots=8, context_tokens=128, queue=20, body_bytes=50_000, adapter_root=folder, timeout_seconds=60
    )
    engine = LocalEngine(model, tokenizer, {name: {name: 1.0} for name in SOAK_DOMAINS}, settings)
    with listen("127.0.0.1", 0) as taken:
        print(f"http://127.0.0.1:{taken.getsockname()[1]}", flush=True)
        run_app(create_app(engine, settings, base_name="tiny"), taken, stop_seconds=20)


def soak(count: int) -> Result:
    """Requests of all kinds, and what became of them."""
    with tempfile.TemporaryDirectory() as folder:
        model, tokenizer = tiny_model(Path(folder))
        expected = expected_answers(model, tokenizer)
        server = subprocess.Popen([sys.executable, __file__, folder], stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        try:
            address = server.stdout.readline().strip()
            found = asyncio.run(Soak(address, server.pid, expected, count).run())
        finally:
            server.terminate()
            code = server.wait(60)
    return {**found, "exit_code_after_sigterm": code}


def expected_answers(model: Any, tokenizer: Any) -> dict[tuple[str, str], set[str]]:
    """The right answers of each model to each prompt, by generate, without a server."""
    rows: dict[str, list[Any]] = {
        "base": ["__base__"],
        "mix": [MIX],
        **{name: [name] for name in SOAK_DOMAINS},
        "new": ["version1", "version2"],
    }
    found = {}
    for name, adapters in rows.items():
        for prompt in PROMPTS:
            ids = torch.tensor([tokenizer(prompt)["input_ids"]])
            found[name, prompt] = {
                tokenizer.decode(
                    model.generate(
                        input_ids=ids,
                        attention_mask=torch.ones_like(ids),
                        adapter_names=[row],
                        max_new_tokens=SOAK_TOKENS,
                        do_sample=False,
                        pad_token_id=0,
                        eos_token_id=None,
                    )[0, ids.shape[1] :],
                    skip_special_tokens=True,
                )
                for row in adapters
            }
    return found


class Soak:
    """24 clients and one that changes adapters."""

    def __init__(self, address: str, pid: int, expected: dict[tuple[str, str], set[str]], count: int) -> None:
        self.address, self.pid, self.expected, self.left = address, pid, expected, count
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.memory_bytes: list[int] = []
        self.count = count

    async def run(self) -> Result:
        """Send all requests; return what became of them."""
        begun = time.perf_counter()
        async with httpx2.AsyncClient(base_url=self.address, timeout=120) as client:
            changing = asyncio.create_task(self._change_adapters(client))
            await asyncio.gather(*(self._one_client(client, number) for number in range(24)))
            changing.cancel()
            await asyncio.sleep(2)
            figures = (await client.get("/metrics")).text
        tenth = max(1, len(self.memory_bytes) // 10)
        early, late = self.memory_bytes[tenth : 2 * tenth], self.memory_bytes[-tenth:]
        return {
            "requests": self.count,
            "seconds": time.perf_counter() - begun,
            "outcomes": dict(self.outcomes.most_common()),
            "wrong_answers": self.wrong,
            "slots_taken_at_the_end": gauge(figures, "crma_slots_taken"),
            "waiting_at_the_end": gauge(figures, "crma_waiting"),
            "adapters_loaded_at_the_end": gauge(figures, "crma_adapters_loaded"),
            "memory_megabytes": [round(each / 1e6, 1) for each in self.memory_bytes],
            "ratios": {"memory, last tenth / second tenth": statistics.mean(late) / statistics.mean(early)},
        }

    async def _one_client(self, client: httpx2.AsyncClient, number: int) -> None:
        draw = random.Random(number)
        while self.left > 0:
            self.left -= 1
            if self.left % (self.count // 100 or 1) == 0:
                self.memory_bytes.append(resident_bytes(self.pid))
            kind = draw.random()
            try:
                if kind < 0.1:
                    await self._bad(client, draw)
                elif kind < 0.25:
                    await self._cancelled(client, draw)
                else:
                    await self._whole(client, draw, stream=kind < 0.6)
            except httpx2.TimeoutException:
                self.outcomes["no answer in 120 seconds"] += 1

    def _body(self, draw: random.Random) -> tuple[str, dict[str, Any]]:
        name = draw.choice(["base", "mix", "new", *SOAK_DOMAINS])
        body = {"model": name, "prompt": draw.choice(PROMPTS), "max_tokens": SOAK_TOKENS, "temperature": 0}
        return name, {**body, "model": "base", "adapters": MIX} if name == "mix" else body

    async def _whole(self, client: httpx2.AsyncClient, draw: random.Random, *, stream: bool) -> None:
        name, body = self._body(draw)
        if stream:
            async with client.stream("POST", "/v1/completions", json={**body, "stream": True}) as reply:
                lines = [line async for line in reply.aiter_lines() if line.startswith("data: {")]
            text = "".join(json.loads(line[6:])["choices"][0]["text"] for line in lines)
        else:
            reply = await client.post("/v1/completions", json=body)
            text = reply.json()["choices"][0]["text"] if reply.status_code == 200 else ""
        if reply.status_code != 200:
            fine = reply.status_code == 429 or (reply.status_code == 404 and name == "new")
            self.outcomes[f"{reply.status_code}{'' if fine else ' unexpected'}"] += 1
            await asyncio.sleep(0.05)
            return
        right = text in self.expected[name, body["prompt"]]
        self.outcomes["right answer" if right else "wrong answer"] += 1
        if not right:
            self.wrong.append(f"{name}: {text!r}")

    async def _cancelled(self, client: httpx2.AsyncClient, draw: random.Random) -> None:
        _, body = self._body(draw)
        try:
            async with asyncio.timeout(draw.random() * 0.3):
                async with client.stream("POST", "/v1/completions", json={**body, "stream": True}) as reply:
                    async for _ in reply.aiter_raw():
                        if draw.random() < 0.5:
                            break
        except TimeoutError:
            pass
        self.outcomes["cancelled"] += 1

    async def _bad(self, client: httpx2.AsyncClient, draw: random.Random) -> None:
        wanted, body = draw.choice(BAD_BODIES)
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        reply = await client.post("/v1/completions", content=content, headers=headers)
        fine = reply.status_code == wanted and bool(reply.json()["error"]["message"])
        self.outcomes["refused as it should" if fine else f"{reply.status_code} for {wanted}"] += 1

    async def _change_adapters(self, client: httpx2.AsyncClient) -> None:
        draw = random.Random(-1)
        while True:
            body = {"lora_name": "new", "lora_path": draw.choice("12"), "load_inplace": True}
            reply = await client.post("/v1/load_lora_adapter", json=body)
            self.outcomes[f"adapter loaded: {reply.status_code}"] += 1
            await asyncio.sleep(draw.random())
            if draw.random() < 0.3:
                reply = await client.post("/v1/unload_lora_adapter", json={"lora_name": "new"})
                self.outcomes[f"adapter removed: {reply.status_code}"] += 1


def resident_bytes(pid: int) -> int:
    """Memory of a process (Linux)."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def gauge(text: str, name: str) -> float:
    """One figure of Prometheus' text."""
    return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"{name} "))


if __name__ == "__main__":
    serve_tiny(Path(sys.argv[1]))
