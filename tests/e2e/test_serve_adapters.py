"""Adapters that come, change and go while requests run: each answer is that of the version it began with."""

import threading

import httpx2
import openai
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.e2e.serving import serving, tiny_engine, until
from tests.e2e.test_serve_openai import gauge, told
from tests.unit.serving.conftest import with_adapters

from constrained_adapters import CRMAConfig, CRMAModel
from constrained_adapters.serving.settings import ServeSettings


@pytest.fixture
def root(tmp_path):
    return tmp_path / "adapters"


@pytest.fixture
def model(tiny_llama, tiny_tokenizer, root):
    """Adapters law, medicine, history; and the folders of two versions of a fourth."""
    model = with_adapters(tiny_llama, tiny_tokenizer)
    with torch.random.fork_rng(devices=[]):
        for seed, name in ((11, "one"), (12, "two")):
            torch.manual_seed(seed)
            model.create_adapter(name)
            model.save_adapter(root / name, name)
            model.delete_adapter(name)
    tiny_tokenizer.eos_token = None
    model.generation_config.eos_token_id = None
    return model


@pytest.fixture
def address(model, tiny_tokenizer, root):
    settings = ServeSettings(slots=4, context_tokens=256, adapter_root=root)
    with serving(tiny_engine(model, tiny_tokenizer, settings), settings) as address:
        yield address


@pytest.fixture
def expected(tiny_tokenizer, model, root):
    """The answers of both versions by a model of their own."""
    found = {}
    for name in ("one", "two"):
        model.load_adapter(root / name, name)
        found[name] = told(model, tiny_tokenizer, name, num_tokens=30)
        model.delete_adapter(name)
    assert found["one"] != found["two"]
    return found


def change(address, what, **body):
    return httpx2.post(f"{address}/v1/{what}_lora_adapter", json=body, timeout=30)


def load(address, folder, name="new", **more):
    return change(address, "load", lora_name=name, lora_path=folder, **more)


def stream(client, model="new"):
    return client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "what is it?"}],
        max_tokens=30,
        temperature=0,
        stream=True,
    )


def rest(chunks):
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def test_a_running_answer_keeps_its_version_when_it_is_replaced_and_removed(expected, address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(openai.NotFoundError):
            stream(client)
        assert load(address, "one").status_code == 200
        assert "new" in [each.id for each in client.models.list().data]
        first = stream(client)
        next(first)
        assert load(address, "two").status_code == 400  # not by accident
        assert load(address, "two", load_inplace=True).status_code == 200
        second = stream(client)
        next(second)
        assert change(address, "unload", lora_name="new").status_code == 200
        with pytest.raises(openai.NotFoundError):
            stream(client)
        assert rest(first) == expected["one"]
        assert rest(second) == expected["two"]
    until(lambda: gauge(address, "crma_adapters_loaded") == 3)


def test_no_answer_is_wrong_while_versions_alternate(expected, address):
    """Clients ask without pause while the domain changes: each answer is that of one version, whole."""
    assert load(address, "one").status_code == 200
    answers, stop = [], threading.Event()

    def run(number):
        with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=5) as client:
            while not stop.is_set():
                answers.append(rest(stream(client)))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for number in range(6):
        assert load(address, "two" if number % 2 == 0 else "one", load_inplace=True).status_code == 200
        wanted = len(answers) + 2
        until(lambda wanted=wanted: len(answers) >= wanted, seconds=60)
    stop.set()
    for thread in threads:
        thread.join()
    assert set(answers) == set(expected.values())
    until(lambda: gauge(address, "crma_adapters_loaded") == 4)


def test_all_adapters_may_go_and_the_base_still_answers(address):
    for name in ("law", "medicine", "history"):
        assert change(address, "unload", lora_name=name).status_code == 200
    until(lambda: gauge(address, "crma_adapters_loaded") == 0)
    body = {"model": "base", "prompt": "abc", "max_tokens": 3}
    assert httpx2.post(f"{address}/v1/completions", json=body).status_code == 200
    assert load(address, "one").status_code == 200
    assert httpx2.post(f"{address}/v1/completions", json={**body, "model": "new"}).status_code == 200


@pytest.mark.parametrize(
    ("name", "folder", "words"),
    [
        ("a/b", "one", "cannot be"),
        ("base", "one", "reserved"),
        ("auto", "one", "reserved"),
        ("law", "one", "loaded already"),
        ("new", "../adapters/../..", "outside"),
        ("new", "/etc", "outside"),
        ("new", "nothing", "no such folder"),
        ("new", "x\x00y", "no such folder"),
        ("new", ".", "no adapter is there"),
        ("new", "other base", "another base"),
        ("new", "other size", "does not fit"),
        ("new", "torn", ""),
    ],
)
def test_an_adapter_that_cannot_be_served_is_refused_and_changes_nothing(
    address, root, tiny_mistral, name, folder, words
):
    if folder == "other base":
        other = CRMAModel(tiny_mistral, CRMAConfig(base_model_name="m", adapter_dim=4), fingerprint="other")
        other.create_adapter("new")
        other.save_adapter(root / folder, "new")
    if folder == "other size":
        (root / folder).mkdir()
        weights = load_file(root / "one" / "adapter_model.safetensors")
        save_file(
            {key: value[:, :-1].contiguous() for key, value in weights.items()},
            root / folder / "adapter_model.safetensors",
        )
        for file in ("adapter_config.json",):
            (root / folder / file).write_bytes((root / "one" / file).read_bytes())
    if folder == "torn":
        (root / folder).mkdir()
        for file in (root / "one").iterdir():
            (root / folder / file.name).write_bytes(file.read_bytes()[:100])
    reply = load(address, folder, name)
    assert reply.status_code == (404 if words == "no such folder" else 400), reply.text
    assert words in reply.json()["error"]["message"]
    assert gauge(address, "crma_adapters_loaded") == 3
    body = {"model": "law", "prompt": "abc", "max_tokens": 3}
    assert httpx2.post(f"{address}/v1/completions", json=body).status_code == 200


def test_what_is_not_served_cannot_be_removed(address):
    assert change(address, "unload", lora_name="lw").status_code == 404
    assert change(address, "unload", lora_name="base").status_code == 404
