import pytest

from constrained_adapters.data.examples import Example, Message, fingerprint_examples

TALK = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"), Message("assistant", "d"))


def test_forms_prompts_and_references():
    talk, asked, text = Example(messages=TALK), Example(prompt="2+2=", answer="4"), Example(text="abc")
    assert [e.form for e in (talk, asked, text)] == ["messages", "completion", "text"]
    assert [e.task_prompt for e in (talk, asked, text)] == ["c", "2+2=", ""]
    assert [e.reference for e in (talk, asked, text)] == ["d", "4", "abc"]


def test_an_unanswered_last_turn_is_not_the_task():
    assert Example(messages=(*TALK, Message("user", "e"))).task_prompt == "c"
    assert Example(messages=TALK[:1]).reference == ""


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"prompt": "a"},
        {"answer": "a"},
        {"text": "a", "prompt": "b", "answer": "c"},
        {"messages": TALK, "text": ""},
    ],
)
def test_an_example_has_exactly_one_form(fields):
    with pytest.raises(ValueError, match="example"):
        Example(**fields)


def test_fingerprint_depends_on_content_order_and_split():
    a, b = Example(text="a"), Example(text="b")
    prints = {
        fingerprint_examples(*splits)
        for splits in ([[a, b]], [[b, a]], [[a], [b]], [[a, b], []], [[Example(prompt="a", answer="b")]])
    }
    assert len(prints) == 5
    assert fingerprint_examples([a, b]) == fingerprint_examples((Example(text="a"), Example(text="b")))


def test_a_superseded_example_has_another_fingerprint_and_the_others_keep_theirs():
    plain = Example(prompt="2 + 2?", answer="4")
    marked = Example(prompt="2 + 2?", answer="4", superseded=True)
    assert fingerprint_examples([plain]) != fingerprint_examples([marked])
    assert fingerprint_examples([plain]).startswith("07fd16d7759b")
