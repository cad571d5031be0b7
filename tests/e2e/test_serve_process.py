"""``crma serve`` as a process: a run in, a server out; how it is stopped, and what it says."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress

import httpx2
import openai
import pytest
from tests.e2e.serving import until
from tests.unit.training.conftest import tiny_run

__all__ = ["tiny_run"]
NAMES = ["law", "数学"]
COMMAND = [sys.executable, "-m", "constrained_adapters.cli"]


@pytest.fixture
def run_folder(tiny_run):
    tiny_run("separate", names=NAMES)
    return tiny_run.folder / "out"


@contextmanager
def process(folder, *arguments, **environment):
    """A server of a run; its address."""
    log = folder.parent / "log.txt"
    with log.open("w") as file:
        server = subprocess.Popen(
            [*COMMAND, "serve", "--run", str(folder), "--port", "0", "--context", "256", *arguments],
            stderr=file,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )
    try:
        until(lambda: "serving at" in log.read_text() or server.poll() is not None, seconds=90)
        found = re.search(r"serving at (http://\S+?)/ ", log.read_text())
        assert found, log.read_text()
        until(lambda: is_ready(found[1]), seconds=60)
        server.log = log
        yield server, found[1]
    finally:
        if server.poll() is None:
            server.kill()
        server.wait()


def is_ready(address):
    try:
        return httpx2.get(f"{address}/ready", timeout=1).status_code == 200
    except httpx2.HTTPError:
        return False


def test_a_run_is_served_under_its_key_and_a_stop_finishes_what_runs(run_folder):
    with process(run_folder, CRMA_API_KEYS="one two") as (server, address):
        assert httpx2.get(f"{address}/v1/models").status_code == 401
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="two", max_retries=0)
        assert [each.id for each in client.models.list().data] == ["base", "auto", *NAMES]
        reply = client.chat.completions.create(
            model="数学", messages=[{"role": "user", "content": "a secret question"}], max_tokens=3
        )
        assert reply.adapters == {"数学": 1.0}
        routed = client.completions.create(model="auto", prompt="law 77?", max_tokens=1)
        assert routed.adapters == {"law": 1.0} and routed.routing["domain"] == "law"
        check_second_server(run_folder, address.rpartition(":")[2])

        stream = client.completions.create(
            model="law", prompt="law 1?", max_tokens=200, stream=True, extra_body={"ignore_eos": True}
        )
        next(stream)
        server.send_signal(signal.SIGTERM)
        assert list(stream)[-1].choices[0].finish_reason == "length"
        assert server.wait(30) == 0
        check_log(server.log.read_text())


def check_second_server(folder, port):
    second = subprocess.run(
        [*COMMAND, "serve", "--run", str(folder), "--port", port],
        capture_output=True,
        text=True,
        check=False,
    )
    assert second.returncode == 2
    assert f"PortError: the server cannot listen there\n  Got:      127.0.0.1:{port}" in second.stderr


def check_log(said):
    assert re.search(r"keys and values: \d+ MB \(16 slots of 256 tokens\)", said)
    lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    asked = [line for line in lines if line.get("model") == "数学"]
    assert asked[0]["status"] == 200 and asked[0]["adapters"] == {"数学": 1.0}
    assert asked[0]["completion_tokens"] >= 1 and asked[0]["seconds"] > 0
    assert "secret" not in said


def test_a_stop_does_not_wait_for_ever_and_prompts_are_logged_if_that_is_wished(run_folder):
    with process(run_folder, "--stop-timeout", "1", "--log-prompts") as (server, address):
        short = {"model": "law", "prompt": "a question to be logged", "max_tokens": 1}
        assert httpx2.post(f"{address}/v1/completions", json=short, timeout=60).status_code == 200
        assert "a question to be logged" in server.log.read_text()
        long = {"model": "law", "prompt": "law 1?", "max_tokens": 240, "ignore_eos": True, "n": 16}
        threading.Thread(target=post_quietly, args=(address, long), daemon=True).start()
        time.sleep(0.3)
        begun = time.monotonic()
        server.send_signal(signal.SIGINT)
        server.wait(60)
        assert time.monotonic() - begun < 40


def post_quietly(address, body):
    with suppress(httpx2.HTTPError):
        httpx2.post(f"{address}/v1/completions", json=body, timeout=60)


def test_what_cannot_be_served_says_why(run_folder, crma):
    for arguments, words in (
        (["--engine", "vlm"], "Try:      vllm"),
        (["--context", "100000"], "at most 512"),
        (["--slots", "10000000"], "not enough memory"),
        (["--upstream", "localhost:1"], "an address such as"),
        (["--upstream", "http://localhost:1", "--engine", "vllm"], "two engines"),
        (["--method", "ewc"], "no method named"),
        (["--run", "nowhere"], "no run here"),
    ):
        code = crma(run_folder.parent, "serve", "--run", str(run_folder), "--port", "0", *arguments)
        assert code != 0
        assert words in crma.text
