import re

from hypothesis import given, settings
from hypothesis import strategies as st

from constrained_adapters.data.paragraphs import TARGET_BYTES, split_paragraphs

TEXTS = st.text(alphabet=st.sampled_from("ab é数.。!?\n\r \t"), max_size=300)


@settings(deadline=None)
@given(TEXTS, st.integers(4, 60))
def test_nothing_is_lost_or_too_long(text, target):
    pieces = split_paragraphs(text, target)
    assert re.sub(r"\s", "", "".join(piece for piece, _ in pieces)) == re.sub(r"\s", "", text)
    assert all(piece and piece == piece.strip() and len(piece.encode()) <= target for piece, _ in pieces)


@settings(deadline=None)
@given(TEXTS, st.integers(4, 60))
def test_lines_rise_and_point_at_the_first_paragraph(text, target):
    lines = text.replace("\r\n", "\n").split("\n")
    pieces = split_paragraphs(text, target)
    numbers = [line for _, line in pieces]
    assert numbers == sorted(numbers)
    for (piece, line), before in zip(pieces, [0, *numbers], strict=False):
        if line != before:  # the first piece of its paragraph
            assert lines[line - 1].lstrip()[:1] == piece[0]


def test_long_paragraphs_are_cut_at_sentences_and_neighbours_joined():
    assert split_paragraphs("One is. Two is! Three?", 16) == [("One is. Two is!", 1), ("Three?", 1)]
    assert split_paragraphs("一二。三四。", 9) == [("一二。", 1), ("三四。", 1)]
    assert split_paragraphs("a\n \nb\n\nc", 100) == [("a\n\nb\n\nc", 1)]
    assert split_paragraphs(" \n\n ") == []
    assert TARGET_BYTES == 800
