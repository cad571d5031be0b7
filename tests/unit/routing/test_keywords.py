"""The user's words for a domain."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from constrained_adapters.errors import WorkspaceError
from constrained_adapters.routing.keywords import found_keywords, read_keywords, write_keywords
from constrained_adapters.workspace import Workspace


@pytest.mark.parametrize(
    "text, word, found",
    [
        ("Is this court open?", "court", True),
        ("Is this COURT open?", "Court", True),
        ("courtesy", "court", False),
        ("Суд решил", "суд", True),
        ("судно плывёт", "суд", False),
        ("这份合同有效吗", "合同", True),
        ("ｃｏｕｒｔ", "court", True),  # full width
        ("breach of contract", "breach of contract", True),
        ("c++ code", "c++", True),
        ("anything", "", False),
    ],
)
def test_a_keyword_is_a_whole_word_or_stands_anywhere_where_words_are_not_divided(text, word, found):
    assert found_keywords(text, {"law": [word]}) == ({"law": (word,)} if found else {})


@given(st.text(max_size=30), st.text(max_size=30))
def test_what_is_found_is_found_in_any_case(text, around):
    found = found_keywords(f"{around} court {text}", {"law": ["court"]})
    assert found == found_keywords(f"{around} COURT {text}", {"law": ["court"]})


def test_keywords_lie_beside_the_adapter_and_go_with_an_empty_list(tmp_path):
    workspace = Workspace(tmp_path)
    folder = workspace.adapter("数学")
    folder.mkdir(parents=True)
    assert read_keywords(folder) == ()
    write_keywords(workspace, "数学", ["几何", " 代数 ", ""])
    assert read_keywords(folder) == ("几何", "代数")
    write_keywords(workspace, "数学", [])
    assert not list(folder.iterdir())


@pytest.mark.parametrize("content", ["{", '{"a": 1}', '["a", 1]'])
def test_a_damaged_list_is_told(tmp_path, content):
    (tmp_path / "keywords.json").write_text(content)
    with pytest.raises(WorkspaceError, match="keywords"):
        read_keywords(tmp_path)
