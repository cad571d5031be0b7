import pytest

from constrained_adapters.config.run import DomainConfig
from constrained_adapters.data.detect import detect_columns, make_examples
from constrained_adapters.data.examples import Example, Message
from constrained_adapters.data.records import Record
from constrained_adapters.errors import ConfigError, DataError

TALK = (Message("user", "hi"), Message("assistant", "yes"))


def detect(*rows, **given):
    records = [Record(row, "a.jsonl", line) for line, row in enumerate(rows, 1)]
    columns = detect_columns(records, DomainConfig(name="law", data="a.jsonl", **given))
    return make_examples(records, columns), columns.sentence


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]},
        {"conversations": [{"from": "human", "value": " hi"}, {"from": "gpt", "value": "yes\n"}], "id": 3},
        {"Messages": '[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]'},
        {
            "chat": [
                {"role": "user", "content": [{"type": "text", "text": "hi"}]},
                {"role": "bot", "content": "yes"},
            ]
        },
        {
            "messages": [
                {"role": "user", "content": "hi"},
                {"role": "assistant", "content": "yes"},
                {"role": "user", "content": "unanswered"},
            ],
            "prompt": "hi",
            "answer": "yes",
        },
    ],
)
def test_conversations_in_their_usual_shapes(row):
    examples, sentence = detect(row)
    assert examples == [Example(messages=TALK)]
    assert sentence.startswith("Form messages, found by name")


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("prompt", "completion"),
        ("question", "answer"),
        ("instruction", "output"),
        ("query", "response"),
        ("Question", "TARGET"),
    ],
)
def test_prompt_and_answer_under_their_usual_names(prompt, answer):
    examples, sentence = detect({prompt: " 2+2 ", answer: 4, "id": 1})
    assert examples == [Example(prompt="2+2", answer="4")]
    assert f"prompt from '{prompt}'" in sentence or prompt == "prompt"
    assert sentence.endswith("Not used: id.")


def test_alpaca_input_is_appended_where_there_is_one():
    examples, _ = detect(
        {"instruction": "Add.", "input": "1 1", "output": "2"},
        {"instruction": "Sing.", "input": "", "output": "la"},
    )
    assert [e.prompt for e in examples] == ["Add.\n\n1 1", "Sing."]


def test_text_and_given_names_win():
    row = {"text": "a", "label": "b", "question": "c", "answer": "d"}
    assert detect({"text": " a "})[0] == [Example(text="a")]
    assert detect(row)[0] == [Example(prompt="c", answer="d")]
    assert detect(row, prompt="text", answer="label")[0] == [Example(prompt="a", answer="b")]
    assert detect(row, prompt="text")[0] == [Example(prompt="a", answer="d")]
    examples, sentence = detect(row, text="text")
    assert examples == [Example(text="a")] and "as given" in sentence


@pytest.mark.parametrize("choices", [["x", "y", "z"], '["x", "y", "z"]', "x|y|z"])
@pytest.mark.parametrize("answer", ["z", 2, "2"])
def test_choices_as_a_list_or_a_string_and_answers_as_an_index(choices, answer):
    examples, _ = detect({"question": "?", "choices": choices, "answer": answer})
    assert examples == [Example(prompt="?", answer="z", choices=("x", "y", "z"))]


def test_an_answer_that_is_a_choice_is_no_index():
    assert detect({"question": "?", "choices": ["2", "1", "0"], "answer": "2"})[0][0].answer == "2"
    assert detect({"question": "?", "choices": None, "answer": "2"})[0][0].choices == ()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "a", "answer": " "}, "'answer' is empty"),
        ({"question": "a", "answer": None}, "'answer' is empty"),
        ({"question": "a", "answer": True}, "'answer' is not text"),
        ({"question": ["a"], "answer": "b"}, "'question' is not text"),
        ({"question": "a", "answer": "q", "choices": ["x", "y"]}, "not among the choices"),
        ({"question": "a", "answer": 2, "choices": ["x", "y"]}, "not among the choices"),
        ({"question": "a", "answer": "q", "choices": {"text": []}}, "'choices' is not a list"),
        ({"messages": "no json"}, "not a list of turns"),
        ({"messages": ["hi"]}, "not a list of turns"),
        ({"messages": []}, "no assistant turn"),
        ({"messages": [{"role": "user", "content": "a"}]}, "no assistant turn"),
        ({"messages": [{"role": "assistant", "content": ""}]}, "assistant turn is empty"),
        ({"messages": [{"role": "assistant", "content": None}]}, "'content' is not text"),
        ({"messages": [{"role": "asistant", "content": "a"}]}, "Try: +assistant"),
    ],
)
def test_broken_records_name_file_and_line(row, message):
    good = {
        "question": "a",
        "answer": "b",
        "choices": None,
        "messages": [{"role": "assistant", "content": "a"}],
    }
    with pytest.raises(DataError, match=message) as caught:
        detect({name: good[name] for name in row}, row)
    assert "a.jsonl, line 2" in str(caught.value)


def test_a_record_without_the_column():
    with pytest.raises(DataError, match="missing in this record") as caught:
        detect({"question": "a", "answer": "b"}, {"question": "a"})
    assert "line 2" in caught.value.got


def test_absent_columns_list_those_that_are_there():
    with pytest.raises(DataError) as caught:
        detect({"qestion": "a", "reply": "b"}, prompt="question")
    assert "columns qestion, reply" in caught.value.got and caught.value.hint == "qestion"
    with pytest.raises(DataError, match="no column for the answer"):
        detect({"question": "a", "reply": "b"})
    with pytest.raises(DataError, match="no column that is known"):
        detect({"a": "b"})


def test_settings_without_effect_are_refused():
    with pytest.raises(ConfigError, match="two forms"):
        detect({"a": "b", "c": "d"}, text="a", prompt="c")
    with pytest.raises(ConfigError, match="'choices' has no effect"):
        detect({"text": "b", "c": "d"}, text="text", choices="c")


@pytest.mark.parametrize(
    ("mark", "expected"),
    [
        (True, True),
        ("yes", True),
        (1, True),
        ("TRUE", True),
        (False, False),
        (None, False),
        ("0", False),
        ("", False),
    ],
)
def test_a_row_may_be_marked_as_superseded(mark, expected):
    record = Record({"prompt": "2 + 2?", "answer": "4", "superseded": mark}, "a.jsonl", 1)
    columns = detect_columns([record], DomainConfig(name="sums", data="a.jsonl"))
    assert "superseded" in columns.sentence
    assert make_examples([record], columns)[0].superseded is expected


def test_a_mark_that_is_neither_yes_nor_no_is_refused():
    record = Record({"text": "It rained.", "superseded": "by law 7"}, "a.jsonl", 3)
    columns = detect_columns([record], DomainConfig(name="sums", data="a.jsonl"))
    with pytest.raises(DataError, match=r"'superseded' is not true or false(?s:.*)line 3"):
        make_examples([record], columns)
