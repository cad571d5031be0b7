"""This server before another one: names and mixes here, arithmetic there. The other is one of our own."""

import asyncio
import tempfile
from dataclasses import replace
from pathlib import Path

import httpx2
import openai
import pytest
from fastapi import FastAPI, Request
from tests.e2e.serving import running, serving, tiny_engine
from tests.e2e.test_serve_openai import ask, by_first_word, told
from tests.unit.serving.conftest import with_adapters

from constrained_adapters.serving.settings import ServeSettings
from constrained_adapters.serving.upstream import UpstreamEngine

KEY = {"Authorization": "Bearer upstream"}
SETTINGS = ServeSettings(slots=4, queue=4, context_tokens=256)


@pytest.fixture
def model(tiny_llama, tiny_tokenizer):
    tiny_tokenizer.eos_token = None
    tiny_llama.generation_config.eos_token_id = None
    return with_adapters(tiny_llama, tiny_tokenizer)


@pytest.fixture
def folders(model, tmp_path):
    """Each adapter in a folder, and ``both`` a domain of two."""
    found = {}
    for name in model.adapter_names:
        model.save_adapter(tmp_path / "adapters" / name, name)
        found[name] = {str(tmp_path / "adapters" / name): 1.0}
    return {**found, "both": {**found["law"], **found["medicine"]}}


def before(address, domains, settings=SETTINGS, **more):
    async def begin():
        return address

    async def end():
        pass

    return UpstreamEngine(begin, end, domains, settings, **more)


@pytest.fixture
def engine_address(model, tiny_tokenizer):
    """The engine: it knows no domain until it is told to load one."""
    settings = ServeSettings(
        slots=4, context_tokens=256, adapter_root=Path(tempfile.gettempdir()), api_keys=("upstream",)
    )
    with serving(tiny_engine(model, tiny_tokenizer, settings), settings) as address:
        yield address


@pytest.fixture
def client(engine_address, folders):
    engine = before(engine_address, folders, base_model="base", key="upstream", route=by_first_word)
    with (
        serving(engine, SETTINGS) as address,
        openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client,
    ):
        client.engine = engine
        yield client


@pytest.mark.parametrize(
    ("name", "adapters", "row"),
    [
        ("base", None, "__base__"),
        ("law", None, "law"),
        ("both", None, {"law": 1.0, "medicine": 1.0}),
        ("base", {"both": 0.5, "history": -0.25}, {"law": 0.5, "medicine": 0.5, "history": -0.25}),
    ],
)
def test_a_mix_is_answered_as_by_the_embedded_engine(client, model, tiny_tokenizer, name, adapters, row):
    wanted = told(model, tiny_tokenizer, row)
    reply = ask(client, name, extra_body={"adapters": adapters} if adapters else None)
    assert reply.choices[0].message.content == wanted
    assert reply.model == name
    assert reply.adapters == (adapters or ({name: 1.0} if name != "base" else {}))
    chunks = list(ask(client, name, stream=True, extra_body={"adapters": adapters} if adapters else None))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == wanted
    assert chunks[-1].model == name and chunks[-1].adapters == reply.adapters


def test_auto_routes_here(client, model, tiny_tokenizer):
    wanted = told(model, tiny_tokenizer, "medicine", "medicine helps")
    reply = ask(client, "auto", "medicine helps")
    assert reply.choices[0].message.content == wanted and reply.routing == {"domain": "medicine"}


def test_a_mix_is_loaded_once_and_the_oldest_go(client, engine_address):
    loaded = client.engine._adapters
    loaded._capacity = 2
    for weight in (0.1, 0.2, 0.3, 0.3):
        ask(client, "base", extra_body={"adapters": {"law": weight}})
    there = [each["id"] for each in httpx2.get(f"{engine_address}/v1/models", headers=KEY).json()["data"]]
    assert len([name for name in there if name.startswith("crma-")]) == 2
    assert len(loaded._loaded) == 2
    assert len(list(loaded._exports.iterdir())) == 2


def test_what_the_engine_refuses_is_said(client):
    with pytest.raises(openai.BadRequestError, match="context length") as refused:
        ask(client, "law", "x" * 400)
    assert refused.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError):
        list(ask(client, "law", "x" * 400, stream=True))
    with pytest.raises(openai.NotFoundError, match="medicine"):
        ask(client, "medicin")


def test_this_server_s_own_limits_hold_before_the_engine(engine_address, folders):
    settings = replace(SETTINGS, max_new_tokens=3, max_choices=2)
    engine = before(engine_address, folders, settings, base_model="base", key="upstream")
    with (
        serving(engine, settings) as address,
        openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client,
    ):
        talk = [{"role": "user", "content": "law 1?"}]
        reply = client.chat.completions.create(model="law", messages=talk)
        assert reply.usage.completion_tokens == 3
        with pytest.raises(openai.BadRequestError, match="at most 3"):
            client.chat.completions.create(model="law", messages=talk, max_tokens=4)
        with pytest.raises(openai.BadRequestError, match="at most 2 answers"):
            client.completions.create(model="law", prompt=["a", "b"], n=2)


def test_an_engine_that_is_gone_is_a_502(folders):
    engine = before("http://127.0.0.1:9", folders)

    async def started():
        with pytest.raises(Exception, match="cannot be reached"):
            await engine.start()

    asyncio.run(started())


def test_llama_cpp_gets_the_scale_of_each_adapter(folders):
    """llama.cpp's server is started with its adapters; a request says how much of each."""
    seen = []
    app = FastAPI()

    @app.get("/v1/models")
    async def models():
        return {"data": [{"id": "smol.gguf"}]}

    @app.get("/lora-adapters")
    async def adapters():
        return [
            {"id": 0, "path": "x/law.gguf", "scale": 1.0},
            {"id": 1, "path": "x/medicine.gguf", "scale": 1.0},
        ]

    @app.post("/v1/chat/completions")
    async def chat(request: Request):
        seen.append(await request.json())
        return {
            "id": "1",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": "x"}}],
            "usage": None,
        }

    with (
        running(app) as upstream,
        serving(before(upstream, folders), SETTINGS) as address,
        openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client,
    ):
        ask(client, "base", extra_body={"adapters": {"law": 0.7}})
        ask(client, "both")
        with pytest.raises(openai.BadRequestError, match=r"history\.gguf"):
            ask(client, "history")
    assert [each["model"] for each in seen] == ["smol.gguf"] * 2
    assert seen[0]["lora"] == [{"id": 0, "scale": 0.7}, {"id": 1, "scale": 0.0}]
    assert seen[1]["lora"] == [{"id": 0, "scale": 1.0}, {"id": 1, "scale": 1.0}]
