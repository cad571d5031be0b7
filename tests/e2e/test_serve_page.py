"""The page at / in a real browser: it asks, mixes, streams, says who answered; nothing else is loaded."""

import json
import time

import pytest
from tests.e2e.chromium import Chromium, find_chromium
from tests.e2e.serving import serving, tiny_engine
from tests.e2e.test_report_browser import CONTRAST
from tests.e2e.test_serve_openai import by_first_word, told
from tests.unit.serving.conftest import with_adapters

from constrained_adapters.serving.settings import ServeSettings

EXECUTABLE = find_chromium()
pytestmark = pytest.mark.skipif(
    EXECUTABLE is None, reason="no chromium, chromium-browser or google-chrome is installed"
)
KEY = "a-key"


class Address(str):
    """What the browser opens, where a file is wanted otherwise."""

    def as_uri(self):
        return str(self)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Chromium(EXECUTABLE, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def model(tiny_llama, tiny_tokenizer):
    tiny_tokenizer.eos_token = None
    tiny_llama.generation_config.eos_token_id = None
    return with_adapters(tiny_llama, tiny_tokenizer)


@pytest.fixture
def served(model, tiny_tokenizer):
    def serve(**changes):
        settings = ServeSettings(slots=2, context_tokens=256, max_new_tokens=30, **changes)
        return serving(tiny_engine(model, tiny_tokenizer, settings, by_first_word), settings)

    return serve


def wait(browser, expression, seconds=20):
    end = time.monotonic() + seconds
    while not (found := browser.evaluate(expression)):
        assert time.monotonic() < end, expression
        time.sleep(0.05)
    return found


def opened(browser, address, **more):
    browser.open(Address(f"{address}/"), **more)
    wait(browser, "document.getElementById('model').options.length")


def choose(browser, name):
    browser.evaluate(
        f"(() => {{ const box = document.getElementById('model'); box.value = {json.dumps(name)};"
        " box.dispatchEvent(new Event('change')); })()"
    )


def ask(browser, question):
    browser.evaluate(f"document.getElementById('question').value = {json.dumps(question)}")
    browser.evaluate("document.getElementById('ask').click()")
    wait(browser, "document.getElementById('stop').disabled")
    return browser.evaluate(
        "[document.getElementById('answer').textContent, document.getElementById('by').textContent]"
    )


def test_a_question_is_answered_by_the_one_that_was_picked_and_the_page_says_who(
    browser, served, model, tiny_tokenizer
):
    with served() as address:
        opened(browser, address)
        names = browser.evaluate("[...document.getElementById('model').options].map(each => each.value)")
        assert names == ["auto", "base", "law", "medicine", "history", "mix of domains"]
        for name, question, adapters, words in (
            ("law", "what is it?", "law", "Answered by law"),
            ("base", "what is it?", "__base__", "Answered by base"),
            ("auto", "medicine helps", "medicine", "Answered by medicine · picked by the router"),
        ):
            choose(browser, name)
            answer, by = ask(browser, question)
            assert answer == told(model, tiny_tokenizer, adapters, question, 30)
            assert by == words
        complaints = [each for each in browser.complaints() if f"request: {address}/" not in each]
        assert complaints == []


def test_weights_are_set_by_slider(browser, served, model, tiny_tokenizer):
    with served() as address:
        opened(browser, address)
        assert not browser.evaluate("document.getElementById('mix').checkVisibility()")
        choose(browser, "mix of domains")
        assert browser.evaluate("document.getElementById('mix').checkVisibility()")
        browser.evaluate(
            "[0.7, 0, 0.3].forEach((weight, i) => { const each = document.getElementById(`w${i}`);"
            " each.value = weight; each.dispatchEvent(new Event('input')); })"
        )
        shown = browser.evaluate("[...document.querySelectorAll('output')].map(each => each.value)")
        assert shown == ["0.70", "0.00", "0.30"]
        answer, by = ask(browser, "what is it?")
        wanted = told(model, tiny_tokenizer, {"law": 0.7, "history": 0.3}, num_tokens=30)
        assert answer == wanted
        assert by == "Answered by law × 0.7 + history × 0.3"


def test_a_key_is_asked_for_and_kept_nowhere(browser, served):
    with served(api_keys=(KEY,)) as address:
        browser.open(Address(f"{address}/"))
        wait(browser, "document.getElementById('error').textContent.includes('API key')")
        assert browser.evaluate("document.getElementById('access').open")
        browser.evaluate(
            f"(() => {{ const box = document.getElementById('key'); box.value = '{KEY}';"
            " box.dispatchEvent(new Event('change')); })()"
        )
        wait(browser, "document.getElementById('model').options.length")
        assert ask(browser, "law helps")[1].startswith("Answered by law")
        assert browser.evaluate("localStorage.length + sessionStorage.length + document.cookie.length") == 0


def test_what_goes_wrong_is_said(browser, served):
    with served() as address:
        opened(browser, address)
        ask(browser, "x" * 400)
        assert "context length" in browser.evaluate("document.getElementById('error').textContent")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_it_fits_and_can_be_read(browser, served, width, dark):
    with served() as address:
        opened(browser, address, width=width, dark=dark, mobile=width < 400)
        choose(browser, "mix of domains")
        ask(browser, "what is it?")
        browser.evaluate("document.getElementById('access').open = true")
        assert browser.evaluate("document.documentElement.scrollWidth") == width
        assert browser.evaluate(CONTRAST)[0][0] >= 4.5
        unnamed = (
            "[...document.querySelectorAll('input, select, textarea')]"
            ".filter(each => !each.labels?.length).length"
        )
        assert browser.evaluate(unnamed) == 0
