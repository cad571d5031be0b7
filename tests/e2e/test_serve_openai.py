"""The server as the official client sees it."""

import threading

import httpx2
import openai
import pytest
import torch
from tests.e2e.serving import serving, tiny_engine, until
from tests.unit.serving.conftest import with_adapters

from constrained_adapters.serving.choice import Choice
from constrained_adapters.serving.settings import ServeSettings

SETTINGS = ServeSettings(slots=4, context_tokens=256, queue=6, max_choices=4)


def by_first_word(talk):
    """A router that reads the domain from the question."""
    first = talk[-1]["content"].split(" ", 1)[0]
    known = first in {"law", "medicine", "history"}
    return Choice({first: 1.0} if known else {}, {"domain": first if known else None})


@pytest.fixture
def model(tiny_llama, tiny_tokenizer):
    return with_adapters(tiny_llama, tiny_tokenizer)


@pytest.fixture
def address(model, tiny_tokenizer):
    model.generation_config.eos_token_id = None
    tiny_tokenizer.eos_token = None
    with serving(tiny_engine(model, tiny_tokenizer, SETTINGS, by_first_word), SETTINGS) as address:
        yield address


@pytest.fixture
def client(address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def ask(client, model, question="what is it?", **more):
    return client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        **{"temperature": 0, "max_tokens": 8, **more},
    )


def told(model, tokenizer, adapters, question="what is it?", num_tokens=8):
    """The answer by transformers' own generate, without any server."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
    )
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    written = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        adapter_names=[adapters],
        max_new_tokens=num_tokens,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )
    return tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)


def test_models_are_the_base_the_router_and_every_domain(client):
    listed = client.models.list().data
    assert [each.id for each in listed] == ["base", "auto", "law", "medicine", "history"]
    assert client.models.retrieve("law").parent == "tiny"


@pytest.mark.parametrize(
    ("name", "adapters", "row"),
    [
        ("base", None, "__base__"),
        ("law", None, "law"),
        ("medicine", None, "medicine"),
        ("base", {"law": 0.7, "history": -0.5}, {"law": 0.7, "history": -0.5}),
        ("base", {"law": 0.0}, "__base__"),
    ],
)
def test_an_answer_is_that_of_its_adapters(client, model, tiny_tokenizer, name, adapters, row):
    reply = ask(client, name, extra_body={"adapters": adapters} if adapters else None)
    assert reply.choices[0].message.content == told(model, tiny_tokenizer, row)
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage.completion_tokens == 8
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + 8
    expected = {key: value for key, value in (adapters or {}).items() if value}
    assert reply.adapters == (expected or ({name: 1.0} if name != "base" else {}))


def test_the_header_says_who_answered(client):
    raw = client.chat.completions.with_raw_response.create(
        model="base",
        messages=[{"role": "user", "content": "x"}],
        max_tokens=1,
        extra_body={"adapters": {"law": 0.5}},
    )
    assert raw.headers["x-crma-adapters"] == "law=0.5"
    assert raw.headers["x-request-id"]


def test_auto_routes_and_says_where(client, model, tiny_tokenizer):
    reply = ask(client, "auto", "medicine helps")
    assert reply.adapters == {"medicine": 1.0} and reply.routing == {"domain": "medicine"}
    assert reply.choices[0].message.content == told(model, tiny_tokenizer, "medicine", "medicine helps")
    assert ask(client, "auto", "nothing known").adapters == {}


@pytest.mark.parametrize("name", ["base", "law"])
def test_a_stream_says_the_same_as_a_whole_answer(client, name):
    whole = ask(client, name, n=2, seed=3, temperature=0.9, max_tokens=20, logprobs=True, top_logprobs=2)
    texts, tokens, finishes, usage = ["", ""], [[], []], {}, None
    for chunk in ask(
        client, name, n=2, seed=3, temperature=0.9, max_tokens=20, logprobs=True, top_logprobs=2,
        stream=True, stream_options={"include_usage": True},
    ):  # fmt: skip
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            tokens[choice.index] += choice.logprobs.content if choice.logprobs else []
            if choice.finish_reason:
                finishes[choice.index] = choice.finish_reason
    assert texts == [choice.message.content for choice in whole.choices]
    assert texts[0] != texts[1]
    assert finishes == {0: "length", 1: "length"}
    assert usage == whole.usage
    for streamed, choice in zip(tokens, whole.choices, strict=True):
        assert [each.token for each in streamed] == [each.token for each in choice.logprobs.content]
        assert all(each.logprob <= 0 and len(each.top_logprobs) == 2 for each in streamed)


def test_a_stop_string_across_tokens_ends_the_answer_before_it(client):
    settings = {"model": "law", "prompt": "abc", "max_tokens": 60, "temperature": 1.0, "seed": 5}
    whole = client.completions.create(**settings).choices[0].text
    pairs = [whole[i : i + 2] for i in range(8, len(whole) - 1)]
    stop = next(pair for pair in pairs if "\ufffd" not in pair)  # two characters, so two tokens or more
    reply = client.completions.create(**settings, stop=["not there", stop])
    assert reply.choices[0].text == whole[: whole.index(stop)]
    assert reply.choices[0].finish_reason == "stop"
    streamed = client.completions.create(**settings, stop=stop, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == whole[: whole.index(stop)]


def test_completions_take_texts_and_tokens_and_several_of_them(client, tiny_tokenizer):
    texts = ["abc", "the law"]
    by_text = client.completions.create(model="law", prompt=texts, n=2, max_tokens=5, temperature=0)
    by_ids = client.completions.create(
        model="law",
        prompt=[tiny_tokenizer(text)["input_ids"] for text in texts],
        n=2,
        max_tokens=5,
        temperature=0,
    )
    answers = [choice.text for choice in by_text.choices]
    assert answers == [choice.text for choice in by_ids.choices]
    assert answers[0] == answers[1] != answers[2]
    assert [choice.index for choice in by_text.choices] == [0, 1, 2, 3]


def test_a_seed_repeats_an_answer(client):
    one, two, other = (ask(client, "law", seed=seed, temperature=1.0) for seed in (1, 1, 2))
    assert one.choices[0].message.content == two.choices[0].message.content
    assert one.choices[0].message.content != other.choices[0].message.content


def test_many_clients_of_different_domains_each_get_their_own_answer(client, model, tiny_tokenizer):
    names = ["base", "law", "medicine", "history"]
    expected = {name: told(model, tiny_tokenizer, "__base__" if name == "base" else name) for name in names}
    answers, threads = {}, []

    def run(number):
        name = names[number % 4]
        answers[number] = name, ask(client, name).choices[0].message.content

    for number in range(10):  # four slots and a line of six
        threads.append(threading.Thread(target=run, args=(number,)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    assert len(answers) == 10
    assert all(expected[name] == text for name, text in answers.values())


def test_a_full_line_gets_429_with_a_time_to_come_back(address, client):
    streams = [ask(client, "law", max_tokens=200, stream=True) for _ in range(4)]
    long = [threading.Thread(target=lambda: ask(client, "law", max_tokens=100)) for _ in range(6)]
    for thread in long:
        thread.start()
    until(lambda: gauge(address, "crma_waiting") == 6)
    with pytest.raises(openai.RateLimitError) as refused:
        ask(client, "law")
    assert int(refused.value.response.headers["retry-after"]) >= 1
    assert refused.value.body["code"] == "queue_full"
    for stream in streams:
        stream.close()
    for thread in long:
        thread.join()
    assert ask(client, "law").choices


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_frees_its_slot(address, stream):
    body = {"model": "law", "prompt": "abc", "max_tokens": 240, "stream": stream}
    with httpx2.Client(timeout=0.2) as http:
        try:
            with http.stream("POST", f"{address}/v1/completions", json=body) as response:
                next(response.iter_raw())
        except httpx2.TimeoutException:
            pass
    until(lambda: gauge(address, "crma_slots_taken") == 0, seconds=5)


def test_a_client_that_goes_while_it_waits_leaves_the_line(address, client):
    streams = [ask(client, "law", max_tokens=200, stream=True) for _ in range(4)]
    body = {"model": "law", "prompt": "abc", "max_tokens": 5, "stream": True}
    with pytest.raises(httpx2.TimeoutException):
        httpx2.post(f"{address}/v1/completions", json=body, timeout=0.2)
    until(lambda: gauge(address, "crma_waiting") == 0, seconds=5)
    assert gauge(address, "crma_slots_taken") == 4
    for stream in streams:
        stream.close()


def test_a_page_that_was_named_may_call(model, tiny_tokenizer):
    page = "https://page.example"
    settings = ServeSettings(context_tokens=64, cors_origins=(page,), api_keys=("key",))
    with serving(tiny_engine(model, tiny_tokenizer, settings), settings) as address:
        asked = {"Origin": page, "Access-Control-Request-Method": "POST"}
        preflight = httpx2.options(f"{address}/v1/completions", headers=asked)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == page
        other = httpx2.get(f"{address}/health", headers={"Origin": "https://other.example"})
        assert "access-control-allow-origin" not in other.headers


def gauge(address, name):
    text = httpx2.get(f"{address}/metrics").text
    return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"{name} "))


def test_figures_count_what_was_asked(address, client):
    ask(client, "law")
    assert gauge(address, "crma_new_tokens_total") == 8
    assert all(chunk.choices for chunk in ask(client, "base", stream=True))
    assert gauge(address, "crma_new_tokens_total") == 16  # of a stream too, whether or not it tells
    text = httpx2.get(f"{address}/metrics").text
    assert 'crma_answers_total{domain="law"} 1.0' in text
    assert 'crma_requests_total{path="/v1/chat/completions",status="200"} 2.0' in text
    assert gauge(address, "crma_kv_bytes") == 4 * 256 * 2 * 2 * 2 * 8 * 4
