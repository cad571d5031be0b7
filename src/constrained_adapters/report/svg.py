"""Turn a matplotlib figure into inline SVG that takes its colours and fonts from the page.

Figures are drawn in sentinel colours, each of which stands for a CSS variable; the words stay
text, so that the browser's fonts render every script and the dark scheme recolours all of it.
"""

from __future__ import annotations

import io
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_COLOURS = 8
INK, MUTED, GRID, PAPER = "#0000a1", "#0000a2", "#0000a3", "#0000a4"
_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "paper"} | {
    f"#0000b{index}": f"series-{index + 1}" for index in range(NUM_COLOURS)
}
_SVG = "http://www.w3.org/2000/svg"
_XLINK_HREF = "{http://www.w3.org/1999/xlink}href"
_COLOUR = re.compile("|".join(_VARIABLES))
_FONT = re.compile(r"font-family: [^;]*;?\s*")  # the page says the family
_NUMBER = re.compile(r"-?\d+\.\d{2,}")


def series_colour(index: int) -> str:
    """Return the sentinel of the colour of series ``index``; colours repeat after :data:`NUM_COLOURS`."""
    return f"#0000b{index % NUM_COLOURS}"


@contextmanager
def drawing_style(salt: str) -> Iterator[None]:
    """Set matplotlib's style for the figures of the report, and restore what was set before.

    Args:
        salt: Makes the ids of clip paths and markers deterministic and different per figure.
    """
    from matplotlib import rc_context

    style: dict[str, object] = {
        "svg.fonttype": "none",
        "svg.hashsalt": salt,
        "text.parse_math": False,  # a domain's name is no formula
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": 12,
        "text.color": INK,
        "axes.edgecolor": GRID,
        "axes.facecolor": "none",
        "axes.labelcolor": MUTED,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.left": False,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.unicode_minus": True,
        "figure.facecolor": "none",
        "grid.color": GRID,
        "grid.linewidth": 0.8,
        "lines.solid_capstyle": "round",
        "xtick.color": GRID,
        "xtick.labelcolor": MUTED,
        "ytick.color": GRID,
        "ytick.labelcolor": MUTED,
        "ytick.left": False,
    }
    with rc_context(style), warnings.catch_warnings():  # type: ignore[arg-type]
        # Matplotlib only measures the text; the browser has the fonts for it.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from", category=UserWarning)
        warnings.filterwarnings(
            "ignore", message=r"Matplotlib currently does not support", category=UserWarning
        )
        yield


def inline_svg(figure: Figure, figure_id: str, title: str, description: str) -> str:
    """Write a figure as an ``<svg role="img">`` element.

    Args:
        figure: Drawn in the sentinel colours, inside :func:`drawing_style`.
        figure_id: Prefix of all ids inside; unique on the page.
        title: What the figure is.
        description: What it shows, with the key numbers.
    """
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    root = ET.fromstring(buffer.getvalue())
    _strip(root)
    used = set(re.findall(r"(?:url\(|href\"?[=:]\s*\"?)#([\w.-]+)", ET.tostring(root, encoding="unicode")))
    for element in root.iter():
        _restyle(element, figure_id, used)
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.set("role", "img")
    root.set("aria-labelledby", f"{figure_id}-title {figure_id}-desc")
    for position, (tag, text) in enumerate((("title", title), ("desc", description))):
        child = ET.Element(f"{{{_SVG}}}{tag}", {"id": f"{figure_id}-{tag}"})
        child.text = text
        root.insert(position, child)
    ET.register_namespace("", _SVG)
    return ET.tostring(root, encoding="unicode")


def _strip(parent: ET.Element) -> None:
    """Drop metadata and matplotlib's global ``<style>``, which would reach the whole page."""
    for child in list(parent):
        child.tail = None
        if child.tag in {f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"}:
            parent.remove(child)
        else:
            _strip(child)
    if parent.text is not None and not parent.text.strip():
        parent.text = None


def _restyle(element: ET.Element, figure_id: str, used: set[str]) -> None:
    name = element.attrib.pop("id", None)
    if name in used:
        element.set("id", f"{figure_id}-{name}")
    if (href := element.attrib.pop(_XLINK_HREF, None)) is not None:
        element.set("href", f"#{figure_id}-{href.removeprefix('#')}")
    for key, value in list(element.attrib.items()):
        if key == "transform" and value.startswith("rotate(-0"):
            del element.attrib[key]  # turned by nothing
        elif key == "clip-path":
            element.set(key, value.replace("url(#", f"url(#{figure_id}-"))
        elif key == "style":
            themed = _COLOUR.sub(lambda match: f"var(--{_VARIABLES[match[0]]})", value)
            element.set(key, _FONT.sub("", themed))
        elif key in {"d", "x", "y", "points"}:
            one_line = " ".join(value.split())
            element.set(key, _NUMBER.sub(lambda match: f"{float(match[0]):.1f}", one_line))
