import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from constrained_adapters.report import render_report, write_report
from constrained_adapters.report.page import flattened
from constrained_adapters.results import MethodResult, load_results

from .factory import ATTACK, make_method, make_result

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """Every element in order, what each id and reference is, and whether tags are nested rightly."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.ids, self.references, self.headings, self.open, self.words = (
            [],
            [],
            [],
            [],
            [],
            [],
        )
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.elements.append((tag, attributes))
        if "id" in attributes:
            self.ids.append(attributes["id"])
        for key in ("aria-labelledby", "for"):
            self.references += (attributes.get(key) or "").split()
        if (attributes.get("href") or "").startswith("#"):
            self.references.append(attributes["href"][1:])
        self.references += re.findall(
            r"url\(#([^)]+)\)", " ".join(value or "" for value in attributes.values())
        )
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes <{self.open[-1:]}>"
        self.open.pop()

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def html():
    return render_report(make_result())


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def test_the_document_is_well_formed_and_its_ids_hold_together(page):
    assert not page.open
    assert len(page.ids) == len(set(page.ids)), [i for i in page.ids if page.ids.count(i) > 1]
    assert set(page.references) <= set(page.ids), set(page.references) - set(page.ids)


def test_headings_descend_one_level_at_a_time(page):
    assert page.headings[0] == 1 and page.headings.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(page.headings, page.headings[1:], strict=False))


def test_tables_and_figures_are_described(html, page):
    assert page.all("html")[0]["lang"] == "en"
    assert len(page.all("caption")) == len(page.all("table")) > 6
    assert all(th.get("scope") in {"col", "row"} for th in page.all("th"))
    charts = [svg for svg in page.all("svg") if svg.get("role") == "img"]
    # Per method: drift, exact match, choice accuracy, general text, a curve per key; forecasts where there
    # are memories; change of weights, and importance by memories, per kind of module. And one front.
    assert len(charts) == 1 + (4 + 8 + 1 + 2 + 2) + (4 + 3 + 2)
    assert all(svg["aria-labelledby"] for svg in charts)
    described = re.findall(r"<desc id=\"pareto-desc\">([^<]+)", html)[0]
    assert "crma: learned 76.0 %, drift +1.9 %" in described and "On the front: crma, lora" in described


def test_nothing_is_fetched_and_no_script_runs(html, page):
    assert not page.all("script") and not page.all("iframe") and not page.all("img")
    assert [link["href"] for link in page.all("link")] == ["data:,"]
    assert "default-src 'none'" in page.all("meta")[2]["content"]
    assert not re.search(r"@import|url\(\s*['\"]?(?!#)", html)
    # The only address is the name of a namespace.
    assert set(re.findall(r"https?://[^\"'\s<]+", html)) == {"http://www.w3.org/2000/svg"}


def test_words_in_figures_stay_text_in_the_colours_of_the_page(html):
    figures = re.findall(r"<svg xmlns.*?</svg>", html, re.S)
    assert any(">数学</text>" in svg for svg in figures) and any(">Право</text>" in svg for svg in figures)
    assert not re.search(r"#[0-9a-fA-F]{6}", "".join(figures))
    assert "font-family" not in "".join(figures)
    assert "<style" not in "".join(figures)


def test_every_cell_of_r_is_there_with_its_change(page):
    words = " ".join("".join(page.words).split())
    for text in ("0.420", "0.530", "0.640", "+56.7\u00a0%", "82.0\u00a0%", "pts"):
        assert text.replace("\u00a0", " ") in words
    radios = [field for field in page.all("input") if field["type"] == "radio"]
    assert len(radios) == 6 and sum("checked" in field for field in radios) == 2


def test_equal_results_give_equal_bytes(html):
    assert render_report(make_result()) == html


def test_untrusted_text_stays_text():
    result = make_result(
        domains=[f"a{ATTACK}", f"b{ATTACK}"], title=ATTACK, created=ATTACK, base={ATTACK: ATTACK}
    )
    for method in result.methods:
        method.name, method.recipe = f"{method.name}{ATTACK}", ATTACK
        method.settings = {ATTACK: [{ATTACK: ATTACK}]}
        method.matrices[ATTACK] = method.matrices["exact_match"]
        method.samples[0] = method.samples[0].model_copy(
            update=dict.fromkeys(("domain", "prompt", "reference", "base", "learned", "final"), ATTACK)
        )
        for record in method.records:
            record.data_fingerprint = ATTACK
            record.curves[ATTACK] = record.curves["loss"]
    result.ledger = [{ATTACK: ATTACK, "nested": {ATTACK: [ATTACK]}}]
    text = render_report(result)
    page = Page(text)
    assert not page.open
    assert not page.all("script") and not page.all("img")
    assert not [
        attributes for _, attributes in page.elements if any(key.startswith("on") for key in attributes)
    ]
    assert "</script>" not in text
    assert "".join(page.words).count("<script>alert(1)</script>") > 20


def test_missing_cells_and_numbers_are_dashes_not_errors():
    result = make_result(["crma", "lora"])
    crma, lora = result.methods
    for matrix in crma.matrices.values():
        matrix[1][2] = matrix[2][1] = None
    lora.matrices = {"loss": [[None] * 3 for _ in range(4)], "exact_match": [[float("nan")] * 3]}
    lora.summary, lora.records, lora.samples, lora.general_nats = {}, [], [], [None, 1000.0]
    text = render_report(result)
    assert not Page(text).open
    assert "nan" not in re.sub(r"<style>.*?</style>", "", text, flags=re.S).lower().replace("finance", "")
    assert text.count(' none">–') == 6


@pytest.mark.parametrize(
    ("methods", "domains"),
    [(["lora"], ["medicine"]), (["crma"], ["medicine", "law"]), ([], []), (["joint"], ["数学", "Право"])],
)
def test_small_runs_have_a_report_too(methods, domains):
    page = Page(render_report(make_result(methods, domains)))
    assert not page.open
    assert ("pareto-title" in page.ids) is False


def test_a_run_of_one_empty_method_has_a_report():
    empty = MethodResult(
        name="lora",
        recipe="lora",
        settings={},
        domains=["a"],
        matrices={},
        general_nats=[],
        summary={},
        records=[],
    )
    assert not Page(
        render_report(make_result(methods=[], domains=["a"]).model_copy(update={"methods": [empty]}))
    ).open


def test_a_large_run_stays_under_three_megabytes(tmp_path):
    names = ["crma", "lora", "ewc"]
    result = make_result(names, [f"domain {number}" for number in range(20)], num_steps=2000)
    write_report(result, tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size < 3_000_000


def test_what_was_read_from_disk_gives_the_same_report(tmp_path, html):
    (tmp_path / "results.json").write_text(make_result().model_dump_json(), encoding="utf-8")
    write_report(load_results(tmp_path / "results.json"), tmp_path / "数学.html")
    assert (tmp_path / "数学.html").read_text(encoding="utf-8") == html
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.json", "数学.html"]


def test_results_are_not_changed():
    result = make_result()
    before = result.model_dump_json()
    render_report(result)
    assert result.model_dump_json() == before


def test_settings_are_flattened_with_their_order():
    tree = {"b": {"c": True, "e": {}}, "a": [{"x": 1.0}, {"y": []}]}
    assert flattened(tree) == [("b.c", "yes"), ("b.e", "(empty)"), ("a.1.x", "1"), ("a.2.y", "(empty)")]


def test_the_room_needs_no_torch(tmp_path):
    results = tmp_path / "results.json"
    results.write_text(make_result(["crma"], ["a", "b"], num_steps=3).model_dump_json(), encoding="utf-8")
    script = (
        "import json, pathlib, sys\n"
        "from constrained_adapters.report import write_report\n"
        "from constrained_adapters.results import load_results\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "write_report(load_results(folder / 'results.json'), folder / 'report.html')\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert not {"torch", "transformers", "peft", "datasets"} & set(json.loads(run.stdout))


def test_matplotlib_is_left_as_it_was(html):
    import matplotlib

    before = dict(matplotlib.rcParams)
    render_report(make_result(["lora"], ["a", "b"]))
    assert dict(matplotlib.rcParams) == before


def test_the_factory_is_like_a_run():
    method = make_method("crma")
    assert len(method.matrices["loss"]) == len(method.domains) + 1
