"""``--upstream`` for real before llama.cpp's own server: names, mixes, streams and refusals."""

import socket
import subprocess
from contextlib import contextmanager
from pathlib import Path

import httpx2
import openai
import pytest
from tests.e2e.serving import serving, until
from transformers import AutoConfig

from constrained_adapters.export.checkpoint import Checkpoint
from constrained_adapters.export.gguf_base import write_gguf
from constrained_adapters.export.gguf_lora import write_gguf_lora
from constrained_adapters.export.lora import make_mix
from constrained_adapters.models.embedded import embedded_model_path
from constrained_adapters.serving.local import LocalEngine
from constrained_adapters.serving.settings import ServeSettings
from constrained_adapters.serving.upstream import UpstreamEngine

from .conftest import python_of
from .upstream import answers, packaged_model_with_adapters

pytestmark = [pytest.mark.engines, pytest.mark.slow, pytest.mark.timeout(600)]
SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "llama_server.py"
SETTINGS = ServeSettings(slots=4, context_tokens=128)


@contextmanager
def llama_server(base, adapters, log):
    """The address of llama.cpp's server with these files."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    command = [python_of("llama_server"), SCRIPT, base, "--port", str(port), "--context", "128"]
    command += [part for adapter in adapters for part in ("--lora", adapter)]
    with log.open("w") as words:
        server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=words, stderr=words, text=True)
        address = f"http://127.0.0.1:{port}"

        def is_ready():
            assert server.poll() is None, log.read_text()[-3000:]
            try:
                return httpx2.get(f"{address}/health", trust_env=False).status_code == 200
            except httpx2.HTTPError:
                return False

        try:
            until(is_ready, 120)
            yield address
        finally:
            server.stdin.close()
            server.wait(60)


def upstream(address, domains):
    """The front's engine before the server at ``address``."""

    async def begin():
        return address

    async def end():
        pass

    return UpstreamEngine(begin, end, domains, SETTINGS)


def test_llama_cpp_answers_as_the_embedded_engine(tmp_path):
    python_of("llama_server")
    model = packaged_model_with_adapters()
    config = AutoConfig.from_pretrained(embedded_model_path())
    folders, files = {}, []
    for name in model.adapter_names:
        model.save_adapter(tmp_path / name, name)
        folders[name] = {str(tmp_path / name): 1.0}
        files.append(tmp_path / f"{name}.gguf")
        write_gguf_lora(make_mix({tmp_path / name: 1.0}), config, files[-1], "f32", name=name, record={})
    write_gguf(Checkpoint(embedded_model_path()), tmp_path / "base.gguf", "f32", name="base")
    domains = {name: {name: 1.0} for name in model.adapter_names}
    with serving(LocalEngine(model, model.tokenizer, domains, SETTINGS), SETTINGS) as address:
        wanted = answers(address)
    folders["absent"] = {str(tmp_path / "absent"): 1.0}
    with (
        llama_server(tmp_path / "base.gguf", files, tmp_path / "log") as behind,
        serving(upstream(behind, folders), SETTINGS) as address,
    ):
        found = answers(address)
        with openai.OpenAI(base_url=f"{address}/v1", api_key="none", timeout=300) as client:
            asked = {
                "messages": [{"role": "user", "content": "Why is the sky blue?"}],
                "max_tokens": 8,
                "temperature": 0,
                "extra_body": {"ignore_eos": True},
            }
            chunks = list(client.chat.completions.create(model="law", stream=True, **asked))
            with pytest.raises(openai.BadRequestError, match=r"--lora absent\.gguf"):
                client.chat.completions.create(model="absent", **asked)
    assert len(set(wanted)) == len(wanted)  # each adapter says something else
    assert found == wanted
    said = "".join(each.choices[0].delta.content or "" for each in chunks if each.choices)
    assert said == wanted[1]
    assert {each.model for each in chunks} == {"law"}
