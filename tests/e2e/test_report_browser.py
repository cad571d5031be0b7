"""The report in a real browser: no request, no word on the console, no page wider than the screen."""

from __future__ import annotations

import pytest

from constrained_adapters.report import write_report
from constrained_adapters.report.several import combined

from ..unit.report.factory import ATTACK, make_assessment, make_result
from .chromium import Chromium, find_chromium

EXECUTABLE = find_chromium()
pytestmark = pytest.mark.skipif(
    EXECUTABLE is None, reason="no chromium, chromium-browser or google-chrome is installed"
)

# Contrast (WCAG 2) of each text with the nearest opaque ground behind it, the worst first.
CONTRAST = """
(() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
  const rgba = colour => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const linear = value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const light = colour => {
    const [r, g, b] = rgba(colour).map(value => linear(value / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = node => {
    for (; node; node = node.parentElement) {
      const colour = getComputedStyle(node).backgroundColor;
      if (rgba(colour)[3] > 250) return colour;
    }
    return "white";
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement, text = walker.currentNode.data.trim();
    if (!text || !node.checkVisibility() || node.closest(".hidden, .skip, title, desc")) continue;
    const style = getComputedStyle(node);
    const inks = [light(node.closest("svg") ? style.fill : style.color), light(ground(node))];
    const ratio = (Math.max(...inks) + 0.05) / (Math.min(...inks) + 0.05);
    found.push([Math.round(100 * ratio) / 100, text.slice(0, 30)]);
  }
  return found.sort((x, y) => x[0] - y[0]).slice(0, 5);
})()
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Chromium(EXECUTABLE, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(make_result(["crma", "lora", "joint"]), path, [make_assessment()])
    return path


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_it_fits_is_quiet_and_can_be_read(browser, report, width, dark):
    browser.open(report, width=width, dark=dark, mobile=width < 400)
    browser.evaluate("document.querySelectorAll('details').forEach(box => box.open = true)")
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    assert browser.complaints() == []
    worst = browser.evaluate(CONTRAST)
    assert worst[0][0] >= 4.5, worst


def test_dark_is_another_page_than_light(browser, report):
    grounds = []
    for dark in (False, True):
        browser.open(report, dark=dark)
        grounds.append(browser.evaluate("getComputedStyle(document.documentElement).backgroundColor"))
    assert grounds[0] != grounds[1]


def test_the_switch_shows_one_heat_map_and_works_from_the_keyboard(browser, report):
    browser.open(report)
    shown = "[...document.querySelectorAll('#method-1 .heat-panel')].map(panel => panel.checkVisibility())"
    assert browser.evaluate(shown) == [True, False, False]
    browser.evaluate("document.getElementById('method-1-heat-1').focus()")
    for kind in ("keyDown", "keyUp"):
        browser.call(
            "Input.dispatchKeyEvent", type=kind, key="ArrowRight", code="ArrowRight", windowsVirtualKeyCode=39
        )
    assert browser.evaluate(shown) == [False, True, False]


def test_print_shows_every_heat_map_and_every_folded_box(browser, report, tmp_path):
    browser.open(report)
    browser.call("Emulation.setEmulatedMedia", media="print")
    try:
        panels = "[...document.querySelectorAll('.heat-panel')].every(panel => panel.checkVisibility())"
        assert browser.evaluate(panels)
        boxes = (
            "[...document.querySelectorAll('details > :not(summary)')].every(box => box.checkVisibility())"
        )
        assert browser.evaluate(boxes)
        assert browser.evaluate("getComputedStyle(document.querySelector('.contents')).display") == "none"
        browser.print_pdf(tmp_path / "report.pdf")
        assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
    finally:
        browser.call("Emulation.setEmulatedMedia", media="")


def test_a_sample_that_attacks_does_nothing(browser, tmp_path):
    result = make_result(["lora"], ["medicine", "law"], title=ATTACK)
    sample = result.methods[0].samples[0]
    result.methods[0].samples[0] = sample.model_copy(
        update=dict.fromkeys(("domain", "prompt", "reference", "base", "learned", "final"), ATTACK)
    )
    write_report(result, tmp_path / "report.html")
    browser.open(tmp_path / "report.html")
    assert browser.complaints() == []
    assert browser.evaluate("document.querySelector('h1').textContent") == ATTACK
    assert browser.evaluate("document.querySelectorAll('script, img').length") == 0
    assert not any(message["method"] == "Page.javascriptDialogOpening" for message in browser.messages)


def test_every_figure_is_drawn_and_every_script_is_whole(browser, report):
    for width in (1280, 360):
        browser.open(report, width=width, mobile=width < 400)
        drawn = (
            "[...document.querySelectorAll('svg[role=img]')].filter(figure => "
            "figure.getBoundingClientRect().height < 80 || figure.querySelectorAll('path, use').length < 4)"
            ".map(figure => figure.getAttribute('aria-labelledby'))"
        )
        browser.evaluate("document.querySelectorAll('details').forEach(box => box.open = true)")
        assert browser.evaluate(drawn) == []
        words = browser.evaluate("document.body.innerText")
        assert "已知二次方程" in words and "гражданское право" in words and "\ufffd" not in words
        assert "Importance by layer and module" in words and "Diversity of what it writes" in words


def test_every_scrolling_table_can_be_reached_and_is_named(browser, report):
    browser.open(report)
    unnamed = (
        "[...document.querySelectorAll('.scroll')].filter(box => box.tabIndex !== 0 ||"
        " !(box.getAttribute('aria-label') ||"
        " document.getElementById(box.getAttribute('aria-labelledby'))?.textContent.trim())).length"
    )
    assert browser.evaluate(unnamed) == 0


def test_a_page_of_several_runs_fits_a_phone(browser, tmp_path):
    runs = [("march", make_result(["crma", "lora"])), ("may", make_result(["crma"]))]
    write_report(combined(runs), tmp_path / "report.html")
    browser.open(tmp_path / "report.html", width=360, mobile=True)
    assert browser.evaluate("document.documentElement.scrollWidth") == 360
    assert browser.complaints() == []
    assert "crma (may)" in browser.evaluate("document.getElementById('pareto-title').parentNode.textContent")
