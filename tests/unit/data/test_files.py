import csv
import json
import sys

import pytest

from constrained_adapters.data.files import read_file
from constrained_adapters.errors import DataError, MissingExtraError


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def complaint(path, content=None):
    with pytest.raises(DataError) as caught:
        read_file(path if content is None else write(path, content))
    return caught.value


def test_jsonl_keeps_line_numbers_over_blank_lines_and_unicode_line_separators(tmp_path):
    path = write(tmp_path / "a.jsonl", '\ufeff{"a": "x\u2028y"}\r\n\r\n{"a": 2}\n')
    assert [(r.fields, r.line) for r in read_file(path)] == [({"a": "x\u2028y"}, 1), ({"a": 2}, 3)]


def test_json_list_knows_the_line_of_each_item(tmp_path):
    path = write(tmp_path / "a.json", '\n[{"a": "]\\n"},\n\n {"a": [1]}, {"a": 3}\n]')
    assert [(r.fields["a"], r.line) for r in read_file(path)] == [("]\n", 2), ([1], 4), (3, 4)]


def test_json_with_one_object_a_line_is_read_as_json_lines(tmp_path):
    assert [r.line for r in read_file(write(tmp_path / "a.json", '{"a": 1}\n{"a": 2}\n'))] == [1, 2]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_csv_delimiter_quotes_and_lines(tmp_path, delimiter):
    path = tmp_path / "a.csv"
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerows([["question", "answer"], ["one,\ntwo;\t|", "x"], ["three", "y"]])
    records = read_file(path)
    assert [r.fields for r in records] == [
        {"question": "one,\ntwo;\t|", "answer": "x"},
        {"question": "three", "answer": "y"},
    ]
    assert [r.line for r in records] == [2, 4]


def test_tsv_is_always_divided_by_tabs(tmp_path):
    assert read_file(write(tmp_path / "a.tsv", "a,b,c\td\n1\t2\n"))[0].fields == {"a,b,c": "1", "d": "2"}


def test_a_long_field_is_read_and_the_process_keeps_its_csv_limit(tmp_path):
    before = csv.field_size_limit()
    assert len(read_file(write(tmp_path / "a.csv", "text\n" + "x" * 200_000))[0].fields["text"]) == 200_000
    assert csv.field_size_limit() == before


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    rows = [{"messages": [{"role": "user", "content": "a"}]}, {"messages": []}]
    write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert [(r.fields, r.line) for r in read_file(tmp_path / "a.parquet")] == [(rows[0], 1), (rows[1], 2)]
    assert "Parquet" in str(complaint(tmp_path / "b.parquet", "no"))


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"constrained-adapters\[data\]"):
        read_file(write(tmp_path / "a.parquet", "PAR1"))


def test_plain_text_becomes_paragraphs_with_their_lines(tmp_path):
    records = read_file(write(tmp_path / "a.txt", f"{'a' * 700}\n\n{'b' * 700}\n"))
    assert [(r.fields["text"][0], r.line) for r in records] == [("a", 1), ("b", 3)]


def test_missing_file_names_the_nearest(tmp_path):
    write(tmp_path / "laws.jsonl", "{}")
    assert complaint(tmp_path / "law.jsonl").hint == str(tmp_path / "laws.jsonl")
    assert str(tmp_path) in complaint(tmp_path / "x" / "y" / "a.csv").expected


def test_empty_files(tmp_path):
    assert "0 bytes" in complaint(tmp_path / "a.json", "").got
    assert "no examples" in str(complaint(tmp_path / "b.jsonl", "\n \n"))
    assert "no examples" in str(complaint(tmp_path / "c.csv", "a,b\n"))
    assert "no examples" in str(complaint(tmp_path / "d.json", "[]"))


def test_a_broken_json_line_is_shown_with_line_and_column(tmp_path):
    error = complaint(tmp_path / "a.jsonl", '{"a": 1}\n{"a": "' + "x" * 300 + "\n")
    assert "line 2, column 7" in error.got
    assert len(error.got.split(" (")[0]) <= 80
    assert "line 2, column 1" in complaint(tmp_path / "a.json", "[\n}").got


def test_a_line_that_is_no_object(tmp_path):
    assert "list: [1, 2]" in complaint(tmp_path / "a.jsonl", '{"a": 1}\n[1, 2]\n').got
    assert "line 3" in complaint(tmp_path / "a.json", '[{"a": 1},\n\n"b"]').got
    error = complaint(tmp_path / "b.json", json.dumps({"data": [{"a": 1}]}))
    assert error.hint.startswith("jq '.data'")


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
def test_other_encodings_say_where_and_how_to_convert(tmp_path, start):
    error = complaint(tmp_path / "a.csv", start + b"text\nabc\nd\xe9f\n")
    assert f"0xe9 at offset {10 + len(start)}" in error.got and "line 3" in error.got
    assert error.hint.startswith("iconv -f WINDOWS-1252 -t UTF-8")
    assert "-f UTF-16" in complaint(tmp_path / "b.csv", "text\nabc".encode("utf-16")).hint


def test_csv_rows_of_the_wrong_width_or_quoting(tmp_path):
    error = complaint(tmp_path / "a.csv", "a,b\n1,2\n3\n")
    assert error.got.startswith("1: 3") and "line 3" in error.got and error.expected == "2: a, b"
    assert "3: 1, 2, 3" in complaint(tmp_path / "a.csv", "a,b\n1,2,3\n").got
    assert "line 2" in complaint(tmp_path / "b.csv", 'a,b\n"1,2\n3,4\n').got
    assert "does not name the columns" in str(complaint(tmp_path / "c.csv", "a,a\n1,2\n"))


def test_unknown_formats_and_folders(tmp_path):
    assert ".jsonl" in complaint(tmp_path / "a.pdf", "x").expected
    assert "folder" in str(complaint(tmp_path))
