import sys
import types

import pytest

from constrained_adapters.data.sources import read_source
from constrained_adapters.errors import ConfigError, DataError, MissingExtraError


def fill(folder, **files):
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        stem, suffix = name.rsplit("_", 1)
        (folder / f"{stem}.{suffix}").write_text(content, encoding="utf-8")
    return str(folder)


def test_a_folder_is_read_in_order_and_tells_what_it_left_out(tmp_path):
    source = fill(tmp_path / "d", b_txt="two", a_jsonl='{"text": "one"}', notes_md="x")
    (tmp_path / "d" / ".hidden").mkdir()
    fill(tmp_path / "d" / ".hidden", c_txt="no")
    fill(tmp_path / "d" / "inner", z_txt="three")
    splits, notes = read_source(source)
    assert [r.fields["text"] for r in splits["all"]] == ["one", "two", "three"]
    assert len(notes) == 1 and "notes.md" in notes[0]


def test_a_folder_whose_files_name_splits(tmp_path):
    source = fill(
        tmp_path / "d", **{"train-00_txt": "a", "train-01_txt": "b", "dev_txt": "c", "test_txt": "d"}
    )
    splits, notes = read_source(source)
    assert {name: [r.fields["text"] for r in rows] for name, rows in splits.items()} == {
        "train": ["a", "b"],
        "validation": ["c"],
        "test": ["d"],
    }
    assert "name their splits" in notes[0]


def test_one_more_file_and_the_names_are_only_names(tmp_path):
    splits, _ = read_source(fill(tmp_path / "d", train_txt="a", law_txt="b"))
    assert list(splits) == ["all"] and len(splits["all"]) == 2


def test_a_folder_without_data_lists_what_is_there(tmp_path):
    with pytest.raises(DataError, match=r"a\.pdf"):
        read_source(fill(tmp_path / "d", a_pdf="x"))


def test_subset_has_no_effect_on_a_file(tmp_path):
    source = fill(tmp_path / "d", a_txt="x")
    with pytest.raises(ConfigError, match="subset"):
        read_source(source, "main")


@pytest.fixture
def hub(monkeypatch):
    module = types.ModuleType("datasets")
    monkeypatch.setitem(sys.modules, "datasets", module)
    return module


def test_a_hub_data_set_with_its_splits(hub):
    hub.load_dataset = lambda name, subset: {
        "train": [{"text": f"{name} {subset}"}],
        "test": [{"text": "b"}, {"text": "c"}],
        "unsupervised": [{"text": "d"}],
    }
    splits, notes = read_source("owner/name", "main")
    assert {name: [r.fields["text"] for r in rows] for name, rows in splits.items()} == {
        "train": ["owner/name main"],
        "test": ["b", "c"],
    }
    assert splits["test"][1].place == "owner/name[test], line 2"
    assert "unsupervised" in notes[0]


def test_a_hub_that_cannot_be_reached_is_a_data_error(hub, tmp_path, monkeypatch):
    def offline(name, subset):
        raise ConnectionError("no route to host")

    hub.load_dataset = offline
    monkeypatch.chdir(tmp_path)
    for name in ("law", "owner/law.v1"):
        with pytest.raises(DataError, match="no route to host"):
            read_source(name)


def test_a_hub_name_without_the_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"constrained-adapters\[data\]"):
        read_source("owner/name")


@pytest.mark.parametrize("source", ["data/law.jsonl", "./lav", "a/b/c", "law.jsnl", "laws", "data/law"])
def test_what_looks_like_a_path_is_never_looked_up(hub, source, tmp_path, monkeypatch):
    fill(tmp_path / "law", a_txt="x")
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="no such"):
        read_source(source)
