"""Packaged domains: each parser on a few lines of its format, the splits, the real files where they are."""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from importlib import resources
from pathlib import Path

import pytest

from constrained_adapters.assets import ASSETS, cache_path
from constrained_adapters.data.examples import Example
from constrained_adapters.data.packaged import (
    PACKAGED,
    chinese,
    finance,
    general,
    history,
    law,
    load_packaged,
)
from constrained_adapters.data.packaged import medicine as medicine_domain
from constrained_adapters.data.packaged import programming as programming_domain
from constrained_adapters.data.packaged.splits import (
    split_balanced,
    split_groups,
    split_official,
    take_balanced,
)
from constrained_adapters.errors import UnknownNameError

TABULAR = """<ICD10CM.tabular>
<chapter><name>7</name><desc>Diseases of the eye</desc><section>
  <diag><name>H25</name><desc>Age-related cataract</desc>
    <diag><name>H25.0</name><desc>Anterior cataract, right eye</desc></diag>
    <diag><name>H25.1</name><desc>Anterior cataract, left eye</desc></diag>
    <diag><name>H25.2</name><desc>Morgagnian cataract</desc></diag>
  </diag></section></chapter>
<chapter><name>20</name><desc>External causes</desc><section>
  <diag><name>W61</name><desc>Struck by duck</desc></diag></section></chapter>
</ICD10CM.tabular>"""

NEWS = """Category\tText
d\tstring
class\t
acq\tfirm one said it bought all the shares of firm two reuter
earn\tshr loss five cts
cocoa\tcocoa prices rose again in london on news of a poor harvest in africa reuter
"""

LICENCE = """---
key: tiny-1.0
category: {category}
is_deprecated: {deprecated}
notes: |
    category: not this one
---

TINY LICENSE ========
Permission is granted to everyone to read this text aloud, to print it on paper of any size, to hang it
on a wall, and to give it away, see https://example.org/tiny for more about it and its authors.
"""

IDIOMS = """,word,explanation
0,漫地漫天,漫满。充满天地之间。形容数量极多，到处皆是。亦作漫天漫地”。
1,漫天漫地,形容数量极多，到处皆是，充满天地之间。
2,绝路逢生,形容在最危险的时候得到生路。
3,一暴十寒,犹十寒一暴。
4,八仙过海各显神通,比喻做事各有各的一套办法，或各自拿出本领。
"""


def test_medicine_takes_leaves_and_one_of_each_pair_of_sides(tmp_path: Path) -> None:
    (tmp_path / "t.xml").write_text(TABULAR)
    found = list(medicine_domain.parse_tabular(tmp_path / "t.xml"))
    assert [example.prompt for example in found] == [
        "Diagnosis: Anterior cataract, right eye\nWhat kind of disorder is this?",
        "Diagnosis: Morgagnian cataract\nWhat kind of disorder is this?",
    ]
    assert {example.answer for example in found} == {"eye disorder"}


def test_finance_reads_orange_files(tmp_path: Path) -> None:
    (tmp_path / "n.tab").write_text(NEWS)
    (only,) = finance.parse_news(tmp_path / "n.tab")
    assert (
        only.prompt
        == "News: firm one said it bought all the shares of firm two\nWhat is the topic of this news?"
    )
    assert only.answer == "acquisitions" and len(only.choices) == 8


def test_programming_masks_the_module_in_name_and_text() -> None:
    rows = [
        {"module": "tarfile", "name": "open_TarFile", "doc": "Return a TarFile object, see tarfile."},
        {"module": "ast", "name": "dump", "doc": "Return a string for a tree."},
    ]
    first, second = programming_domain.parse_docstrings(json.dumps(row) for row in rows)
    assert first.prompt is not None and "tarfile" not in first.prompt.lower()
    assert first.prompt.startswith("Python docstring of open_[module]: Return a [module] object")
    assert first.choices == second.choices == ("ast", "tarfile")


@pytest.mark.parametrize(
    ("category", "deprecated", "answers"),
    [("Copyleft Limited", "no", ["weak copyleft"]), ("Permissive", "yes", []), ("CLA", "no", [])],
)
def test_law_reads_header_and_text(category: str, deprecated: str, answers: list[str]) -> None:
    found = law.parse_licence(LICENCE.format(category=category, deprecated=deprecated))
    assert [example.answer for example in found] == answers
    for example in found:
        assert example.prompt is not None
        assert example.prompt.startswith("Licence text: TINY LICENSE Permission is granted")
        assert "http" not in example.prompt and "===" not in example.prompt


def licence(words: str) -> list[Example]:
    return [Example(prompt=f"Licence text: {words}\nWhat category of licence is this?", answer="permissive")]


def test_law_groups_families_and_near_copies() -> None:
    text = " ".join(f"word{index}" for index in range(60))
    groups = law.group_related(
        {
            "gpl-2.0": licence("one two three four five six"),
            "gpl-3.0": licence("seven eight nine ten eleven twelve"),
            "alpha": licence(text),
            "beta": licence(text.replace("word59", "other")),
            "gamma": licence("nothing in common with any of the others"),
        }
    )
    assert sorted(len(examples) for examples in groups.values()) == [1, 2, 2]


def test_law_drops_what_is_near_to_an_evaluated_text() -> None:
    text = " ".join(f"word{index}" for index in range(60))
    near, far = (
        licence(text.replace("word3 ", "other "))[0],
        licence(text[:100] + text[100:].replace("word", "term"))[0],
    )
    assert law.drop_near([near, far], licence(text)) == [far]


def test_history_masks_years_and_presidents() -> None:
    words = " ".join(["word"] * 40)
    text = f"Short one.\n\nIn 1812, President Madison and the 1980's, see 1863-64: $3,000,000. {words}"
    (only,) = history.parse_speech(text, 1862, ["Madison"])
    assert only.answer == "Gilded Age"
    assert only.prompt is not None
    assert "In [year], President [name] and the [year], see [year]: $3,000,000." in only.prompt


def test_chinese_keeps_one_right_answer(tmp_path: Path) -> None:
    (tmp_path / "i.csv").write_text(IDIOMS, encoding="utf-8")
    idioms = chinese.read_idioms(tmp_path / "i.csv")
    assert idioms == {
        "漫地漫天": "漫满。充满天地之间。形容数量极多，到处皆是。",
        "绝路逢生": "形容在最危险的时候得到生路。",
    }


def test_chinese_options_hold_the_answer_once() -> None:
    heads, tails = "天地人山水火", "春夏秋冬风雨"
    idioms = {
        f"{head}中{index}{tail}": f"解释{head}{tail}" for index, head in enumerate(heads) for tail in tails
    }
    for example in chinese.split_idioms(idioms)["test"]:
        assert example.answer is not None and example.prompt is not None
        assert len(set(example.choices)) == 4 and example.choices.count(example.answer) == 1
        same_start = [choice for choice in example.choices if choice[0] == example.answer[0]]
        same_end = [choice for choice in example.choices if choice[-1] == example.answer[-1]]
        assert len(same_start) >= 2 and len(same_end) >= 2
        assert "、".join(example.choices) in example.prompt


def test_general_cuts_posts_and_tales(tmp_path: Path) -> None:
    post = " ".join(["post"] * 150)
    (tmp_path / "p.tab").write_text(f"a\nb\nc\nsci.space\t{post}\nsci.space\ttoo short\n")
    assert [example.text for example in general.parse_posts(tmp_path / "p.tab")] == [" ".join(["post"] * 100)]
    tale = " ".join(f"w{index}" for index in range(230))
    (tmp_path / "t.tab").write_text(f"a\nb\nc\nTitle\tSummary of it\t{tale}\n")
    (passages,) = general.parse_tales(tmp_path / "t.tab")
    assert [len((passage.text or "").split()) for passage in passages] == [100, 100]


def labelled(**counts: int) -> list[Example]:
    return [
        Example(prompt=f"{answer} {number}", answer=answer)
        for answer, count in counts.items()
        for number in range(count)
    ]


def test_any_front_part_is_balanced() -> None:
    taken, rest = take_balanced(labelled(a=10, b=10, c=2), 12)
    assert Counter(example.answer for example in taken[:6]) == {"a": 2, "b": 2, "c": 2}
    assert Counter(example.answer for example in taken) == {"a": 5, "b": 5, "c": 2}
    assert len(rest) == 10 and not set(rest) & set(taken)
    capped, _ = take_balanced(labelled(a=10, b=10), 12, max_share=0.2)
    assert len(capped) == 4, "a fifth of each answer"


def test_splits_share_nothing_and_never_change() -> None:
    pool = labelled(a=400, b=300, c=20)
    splits = split_balanced(pool, "x")
    assert splits == split_balanced(list(reversed(list(reversed(pool)))), "x")
    sides = [set(examples) for examples in splits.values()]
    assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])
    assert Counter(example.answer for example in splits["train"])["c"] >= 12


def test_official_test_texts_leave_the_training_set() -> None:
    splits = split_official(labelled(a=50), [Example(prompt="A  3", answer="a")], "x")
    assert [example.prompt for example in splits["test"]] == ["A  3"]
    prompts = {example.prompt for side in ("train", "validation") for example in splits[side]}
    assert "a 3" not in prompts and len(prompts) == 49


def test_groups_stay_whole() -> None:
    groups = {f"g{group}": labelled(**{f"g{group}": 3}) for group in range(200)}
    splits = split_groups(groups, "x")
    answers = [{example.answer for example in splits[side]} for side in ("train", "validation", "test")]
    assert not (answers[0] & answers[1] or answers[0] & answers[2] or answers[1] & answers[2])
    assert all(len(splits[side]) > 60 for side in splits)
    big = {**groups, "big": labelled(big=100)}
    assert "big" in {example.answer for example in split_groups(big, "x")["train"]}


def test_unknown_domain_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="medicine"):
        load_packaged("medecine")


def test_frozen_docstrings_are_whole() -> None:
    packed = (
        resources.files("constrained_adapters.data").joinpath("frozen", "programming.jsonl.gz").read_bytes()
    )
    rows = [json.loads(line) for line in gzip.decompress(packed).decode().splitlines()]
    assert len(rows) == 1415 and len({row["module"] for row in rows}) == 25
    assert all(len(row["doc"].split()) >= 6 for row in rows)


@pytest.mark.parametrize("name", sorted(PACKAGED))
def test_real_domain(name: str) -> None:
    asset = PACKAGED[name].asset
    if asset is not None and not (cache_path() / "assets" / f"{asset}-{ASSETS[asset].version}").is_dir():
        pytest.skip(f"{asset} is not in the cache; `crma assets` puts it there")
    splits = load_packaged(name)
    assert list(splits) == ["train", "validation", "test"]
    assert len(splits["train"]) >= 1000 and len(splits["validation"]) >= 195 and len(splits["test"]) == 200
    texts = [{example.prompt or example.text for example in examples} for examples in splits.values()]
    assert not (texts[0] & texts[1] or texts[0] & texts[2] or texts[1] & texts[2])
    for examples in splits.values():
        for example in examples:
            assert len((example.prompt or example.text or "").split()) < 120
            if name != "general":
                assert example.answer in example.choices and len(set(example.choices)) == len(example.choices)
    if name == "history":
        assert not any(re.search(r"\b1[89]\d\d\b", example.prompt or "") for example in splits["test"])
    if name == "law":
        assert law.drop_near(splits["train"], splits["test"]) == splits["train"]
