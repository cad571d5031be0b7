"""The comparison in the terminal fits 80 columns and marks the best."""

from __future__ import annotations

import io

import pytest
from rich.cells import cell_len
from rich.console import Console

from constrained_adapters.cli.tables import print_result


def printed(result, width: int = 80) -> str:
    screen = io.StringIO()
    print_result(result, Console(file=screen, width=width, highlight=False))
    return screen.getvalue().replace("\u00a0", " ")


def row(text: str, name: str, table: int) -> list[str]:
    """Cells of a method's row in the table of that number."""
    lines = [line for line in text.splitlines() if line.startswith(f"{name} ")]
    return [part.strip() for part in lines[table].split("  ") if part.strip()]


def test_the_numbers_are_there_and_the_best_are_marked(result):
    text = printed(result)
    assert row(text, "crma", 0) == ["crma", "+1.4 % *", "70.0 % *", "80.0 %", "−1.4 *", "1.4 *", "90.0 %"]
    assert row(text, "lora", 0) == ["lora", "+84.0 %", "45.0 %", "80.0 %", "−84.0", "84.0", "90.0 %"]
    assert row(text, "crma", 1) == ["crma", "12.03 → 12.17 *", "1 min 42 s *", "1.8 MB", "no"]
    assert row(text, "crma", 2) == ["crma", "80.0 % *", "70.0 % *", "60.0 %"]
    assert row(text, "lora", 2) == ["lora", "30.0 %", "40.0 %", "65.0 % *"]
    assert "* best of its column" in text


def test_a_reference_is_shown_but_not_ranked(result):
    assert "*" not in "".join(row(printed(result), "joint", 0) + row(printed(result), "joint", 2))


def test_one_method_alone_is_not_marked(result):
    text = printed(result.model_copy(update={"methods": result.methods[:1]}))
    assert "*" not in text


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_nothing_is_cut_or_wider_than_the_terminal(result, width):
    text = printed(result, width)
    assert "…" not in text
    assert max(cell_len(line.rstrip()) for line in text.splitlines()) <= width


def test_cells_that_were_not_measured_are_dashes(result):
    method = result.methods[0].model_copy(
        update={"matrices": {"exact_match": [[None] * 3] * 4}, "summary": {"drift_percent": 1.0}}
    )
    text = printed(result.model_copy(update={"methods": [method]}))
    assert row(text, "crma", 1) == ["crma", "–", "–", "–"]
