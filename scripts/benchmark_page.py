"""Write what stands of the small benchmark into the documentation: its short table, and its figure.

Run:   python scripts/benchmark_page.py     (after crma benchmark benchmarks/small/plan.yaml)
Makes: the section of docs/benchmark.md, and docs/assets/small-pareto.svg
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TABLES = ROOT / "benchmarks" / "small" / "tables"
PAGE = ROOT / "docs" / "benchmark.md"
FIGURE = ROOT / "docs" / "assets" / "small-pareto.svg"
HEADING, REMARKS = "## The small one, so far\n", "\n° keeps"
COLUMNS: list[tuple[str, str, float, int, bool]] = [  # title, key, divisor, digits, with a sign
    ("Final %", "accuracy", 1, 1, False),
    ("Learned %", "learned", 1, 1, False),
    ("Drift %", "drift_percent", 1, 1, True),
    ("General perplexity %", "general_change_percent", 1, 1, True),
    ("Step, × LoRA's", "step_of_lora", 1, 2, False),
    ("Memories, min", "memory_minutes", 1, 1, False),
    ("Peak, GB", "peak_memory_mb", 1000, 1, False),
    ("Kept, MB a domain", "kept_kb", 1000, 1, False),
]


def main() -> None:
    """Renew the page and the figure."""
    page = PAGE.read_text(encoding="utf-8")
    start, end = page.index(HEADING) + len(HEADING), page.index(REMARKS)
    PAGE.write_text(f"{page[:start]}\n{table(read_rows())}{page[end:]}", encoding="utf-8")
    shutil.copyfile(TABLES / "pareto.svg", FIGURE)


def read_rows() -> list[dict[str, Any]]:
    """The rows of the benchmark's table."""
    rows: list[dict[str, Any]] = json.loads((TABLES / "table.json").read_text(encoding="utf-8"))["rows"]
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows of ``table.json`` but the base's, best final accuracy first, in Markdown."""
    shown = [row for row in rows if row["recipe"] != "base"]
    shown.sort(key=lambda row: -row["values"]["accuracy"]["mean"])
    titles = ["", *(title for title, *_ in COLUMNS), "Cells"]
    lines = [titles, ["---", *["---:"] * (len(titles) - 1)]]
    for row in shown:
        name = f"*{row['method']}*" if row["reference"] else f"`{row['method']}`"
        cells = [
            _number(row["values"][key], divisor, digits, sign=sign)
            for _, key, divisor, digits, sign in COLUMNS
        ]
        lines.append([name + " °" * row["keeps_old_data"], *cells, str(row["num_cells"])])
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _number(value: dict[str, float] | None, divisor: float, digits: int, *, sign: bool) -> str:
    if value is None:
        return "–"
    number = round(value["mean"] / divisor, digits)
    plus = "+" if sign and number > 0 else ""
    return f"{plus}{number:.{digits}f}".replace("-", "−")


if __name__ == "__main__":
    main()
