"""Whatever a client sends: an error in OpenAI's form that says what to try, and the server lives on."""

import json
import socket

import httpx2
import openai
import pytest
from tests.e2e.serving import serving, tiny_engine
from tests.unit.serving.conftest import with_adapters

from constrained_adapters.serving.server import PortError, listen
from constrained_adapters.serving.settings import ServeSettings

KEY = "a-secret"
SETTINGS = ServeSettings(
    slots=2, context_tokens=128, body_bytes=20_000, max_choices=4, max_new_tokens=50, api_keys=("other", KEY)
)
CHAT = {"model": "law", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}


@pytest.fixture
def http(tiny_llama, tiny_tokenizer):
    model = with_adapters(tiny_llama, tiny_tokenizer)
    with (
        serving(tiny_engine(model, tiny_tokenizer, SETTINGS), SETTINGS) as address,
        httpx2.Client(base_url=address, headers={"Authorization": f"Bearer {KEY}"}, timeout=30) as client,
    ):
        yield client
        assert client.post("/v1/chat/completions", json=CHAT).status_code == 200  # it lives on


TOO_LONG = "context_length_exceeded"
CASES = [
    # change of the body, status, words of the message, field, code
    ({"model": "lww"}, 404, "Try:      law", "model", "model_not_found"),
    ({"model": "../etc/passwd"}, 404, "does not exist", "model", "model_not_found"),
    ({"model": "auto"}, 404, "does not exist", "model", "model_not_found"),
    ({"model": "x" * 500}, 400, "at most 200", "model", None),
    ({"model": None}, 400, "valid string", "model", None),
    ({"messages": []}, 400, "at least 1", "messages", None),
    ({"messages": "hello"}, 400, "valid list", "messages", None),
    ({"messages": [{"role": "robot", "content": "x"}]}, 400, "'user'", "messages.0.role", None),
    ({"messages": [{"role": "user", "content": "x" * 200}]}, 400, "length is 128", "messages", TOO_LONG),
    ({"max_tokens": 127}, 400, "context length is 128", "max_tokens", TOO_LONG),
    ({"max_tokens": 60}, 400, "at most 50", "max_tokens", None),
    ({"max_tokens": 0}, 400, "greater than or equal to 1", "max_tokens", None),
    ({"max_tokens": 10**30}, 400, "context length is 128", "max_tokens", TOO_LONG),
    ({"max_tokens": "8"}, 400, "valid integer", "max_tokens", None),
    ({"temperature": 9}, 400, "less than or equal to 2", "temperature", None),
    ({"temperature": True}, 400, "valid number", "temperature", None),
    ({"top_p": 0}, 400, "greater than 0", "top_p", None),
    ({"n": 5}, 400, "at most 4 answers", "n", None),
    ({"stop": ["a", "b", "c", "d", "e"]}, 400, "at most 4", "stop", None),
    ({"tools": [{"type": "function"}]}, 400, "at most 0", "tools", None),
    ({"frequency_penalty": 0.5}, 400, "less than or equal to 0", "frequency_penalty", None),
    ({"max_token": 3}, 400, "Try:      max_tokens", "max_token", None),
    ({"stream_options": {"include_usage": True}}, 400, "stream: true", "stream_options", None),
    ({"adapters": {"law": 1.0}}, 400, "model 'base'", "adapters", None),
    ({"model": "base", "adapters": {"law": "0.7"}}, 400, "valid number", "adapters.law", None),
    ({"model": "base", "adapters": {"law": None}}, 400, "valid number", "adapters.law", None),
    ({"model": "base", "adapters": {"law": 1e30}}, 400, "at most 1000", "adapters", None),
    ({"model": "base", "adapters": {"a/b": 0.7}}, 404, "does not exist", "model", "model_not_found"),
    ({"model": "base", "adapters": [1]}, 400, "valid dictionary", "adapters", None),
]  # fmt: skip


@pytest.mark.parametrize(("change", "status", "words", "param", "code"), CASES)
def test_a_wrong_field_is_named(http, change, status, words, param, code):
    reply = http.post("/v1/chat/completions", json={**CHAT, **change})
    error = reply.json()["error"]
    assert reply.status_code == status
    assert words in error["message"]
    assert error["param"].startswith(param)
    assert (error["type"], error["code"]) == ("invalid_request_error", code)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"model": "law", ', "not JSON"),
        (b"", "Field required"),
        (b"\xff\xfe\x00", ""),
        (b"[1, 2]", "valid dictionary"),
        (b"null", ""),
        (b'{"model": "base", "adapters": {"law": NaN}, "messages": []}', "finite"),
        (b'{"a":' * 3000, ""),
    ],
)  # fmt: skip
def test_a_body_that_is_no_json_of_ours(http, body, words):
    reply = http.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert reply.status_code == 400
    assert words in reply.json()["error"]["message"]


def test_a_body_of_another_type_is_not_read_as_json(http):
    """A page elsewhere may send text/plain without asking; it must not be able to use the server."""
    reply = http.post(
        "/v1/chat/completions", content=json.dumps(CHAT), headers={"Content-Type": "text/plain"}
    )
    assert reply.status_code == 400


def test_a_body_is_cut_off_when_it_is_too_large_even_without_a_length(http):
    def endless():
        for _ in range(1000):
            yield b" " * 1000

    declared = http.post("/v1/chat/completions", content=b" " * 30_000)
    streamed = http.post(
        "/v1/chat/completions", content=endless(), headers={"Content-Type": "application/json"}
    )
    assert [declared.status_code, streamed.status_code] == [413, 413]
    assert streamed.json()["error"]["code"] == declared.json()["error"]["code"] == "body_too_large"


@pytest.mark.parametrize("prompt", ["", [], [[]], [99999], [-1], ["a", 1], {"a": 1}, 7])
def test_prompts_that_are_none(http, prompt):
    reply = http.post("/v1/completions", json={"model": "law", "prompt": prompt, "max_tokens": 1})
    assert reply.status_code == 400
    assert reply.json()["error"]["param"].startswith("prompt")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/nothing", 404), ("GET", "/v1/chat/completions", 405), ("GET", "/v1/models/lw", 404)],
)
def test_no_such_page_or_method(http, method, path, status):
    reply = http.request(method, path)
    assert reply.status_code == status
    assert reply.json()["error"]["message"]


@pytest.mark.parametrize("key", [None, "", "Bearer", "Bearer wrong", f"Basic {KEY}", f"Bearer {KEY}x"])
def test_without_a_key_nothing_but_health_and_the_page_is_told(http, key):
    headers = {} if key is None else {"Authorization": key}
    with httpx2.Client(base_url=http.base_url, headers=headers) as stranger:
        for path in ("/v1/models", "/metrics", "/openapi.json", "/v1/nothing"):
            reply = stranger.get(path)
            assert reply.status_code == 401
            assert reply.json()["error"]["code"] == "invalid_api_key"
        assert stranger.post("/v1/chat/completions", json=CHAT).status_code == 401
        assert [stranger.get(path).status_code for path in ("/", "/health", "/ready")] == [200] * 3


def test_each_key_is_one(http):
    for key in SETTINGS.api_keys:
        with openai.OpenAI(base_url=f"{http.base_url}/v1", api_key=key) as client:
            assert client.models.list().data


def test_no_other_page_may_call(http):
    reply = http.options(
        "/v1/models", headers={"Origin": "https://elsewhere.example", "Access-Control-Request-Method": "GET"}
    )
    assert "access-control-allow-origin" not in reply.headers


def test_adapters_cannot_be_changed_unless_the_server_was_told_so(http):
    assert http.post("/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": "x"}).status_code == 404


def test_a_second_server_on_the_port_says_so(http):
    with pytest.raises(PortError, match=r"in use[\s\S]*--port"):
        listen("127.0.0.1", http.base_url.port)


@pytest.mark.parametrize("host", ["256.1.1.1", "no such host", "198.51.100.7"])
def test_an_address_that_is_not_ours(host):
    with pytest.raises(PortError):
        listen(host, 0)


def test_half_a_request_holds_up_nobody(http):
    with socket.create_connection(("127.0.0.1", http.base_url.port)) as half:
        half.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 500\r\n\r\n{")
        assert http.post("/v1/chat/completions", json=CHAT).status_code == 200
