"""Text piece by piece against the whole: no character is split, no stop string or part of one gets out."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from constrained_adapters.serving.text import TextStream


def streamed(tokenizer, text, stops, prompt="ask:"):
    stream = TextStream(tokenizer, tokenizer(prompt)["input_ids"], stops)
    pieces = []
    for token in tokenizer(text)["input_ids"]:
        pieces.append(stream.push(token))
        if stream.stopped_at is not None:
            return pieces, stream
    pieces.append(stream.finish())
    return pieces, stream


def cut(text, stops):
    """``text`` up to the first character at which a stop string is complete, less that string."""
    for end in range(len(text) + 1):
        found = [text[:end].find(stop) for stop in stops if stop in text[:end]]
        if found:
            return text[: min(found)]
    return text


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.text(alphabet="abcé文🙂 \n", max_size=30),
    stops=st.lists(st.text(alphabet="abcé文", min_size=1, max_size=4), max_size=3),
)
def test_the_pieces_make_the_text_up_to_the_first_stop(tiny_tokenizer, text, stops):
    pieces, _ = streamed(tiny_tokenizer, text, stops)
    assert "".join(pieces) == cut(text, stops)
    assert "\ufffd" not in "".join(pieces)


def test_what_may_become_a_stop_is_held_and_given_when_it_does_not(tiny_tokenizer):
    pieces, _ = streamed(tiny_tokenizer, "a END b ENd", ["END."])
    assert "".join(pieces) == "a END b ENd"
    assert pieces[:5] == ["a", " ", "", "", ""]
    pieces, stream = streamed(tiny_tokenizer, "a END. b", ["END."])
    assert "".join(pieces) == "a " and stream.stopped_at == 2


def test_a_character_that_is_never_finished_is_shown_as_the_tokenizer_does(tiny_tokenizer):
    stream = TextStream(tiny_tokenizer, [], ())
    half = tiny_tokenizer("文")["input_ids"][:2]
    assert [stream.push(token) for token in half] == ["", ""]
    assert stream.finish() == tiny_tokenizer.decode(half)


@pytest.mark.parametrize("stops", [(), ("",)])
def test_no_stop_stops_nothing(tiny_tokenizer, stops):
    assert "".join(streamed(tiny_tokenizer, "abc", stops)[0]) == "abc"
